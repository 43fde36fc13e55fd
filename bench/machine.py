"""The machine and the software that figures were measured with.

Runs in the bench's main process. No host name: figures are about a kind of machine.
"""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.systems.ray_actor import ray_version
from runtime import malloc
from runtime.process import host_facts


def machine() -> dict[str, Any]:
    """What must be known to compare figures of two machines, or of two days."""
    facts = host_facts()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu_model": facts["cpu_model"],
        "cores": facts["cpu_count"],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": facts["python_version"],
        "torch": facts["torch_version"],
        "grpc": version("grpcio"),
        "ray": ray_version(),
        "threads_per_process": 1,
        "tuned_malloc": malloc.ENVIRONMENT,
    }
