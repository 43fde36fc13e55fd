"""Set up this process: memory allocation, threads, signals; and say what it runs on.

Runs first in both roles, never on import: a warm parent imports everything, then forks.
"""

import ctypes
import os
import platform
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import grpc
import torch

from contract.errors import TrainingFailed


class Stopped(BaseException):
    """The process was told to stop. Not an Exception: nothing that handles errors may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def set_up() -> None:
    """Tune malloc, fix the number of torch's threads, turn SIGTERM into Stopped."""
    _tune_malloc()
    torch.set_num_threads(thread_count(os.environ, cores=len(os.sched_getaffinity(0))))
    signal.signal(signal.SIGTERM, _stop)


def thread_count(environ: Mapping[str, str], cores: int) -> int:
    """Threads that torch computes with: OMP_NUM_THREADS, at most `cores`; without it one. Raises TrainingFailed.

    One, because workers share cores locally and have one vCPU each by default on AWS: with a thread a core each,
    they would take them from one another. A larger task says so by that variable, which torch itself would
    read, but not in a forked child of a warm parent.
    """
    given = environ.get("OMP_NUM_THREADS") or "1"
    if not given.isdecimal() or int(given) < 1:
        raise TrainingFailed(f"OMP_NUM_THREADS is '{given}'; expected a number of threads, 1 or more")
    return min(int(given), cores)


def host_facts() -> dict[str, Any]:
    """Fields of a TaskStarted record that tell one machine from another."""
    return {
        "hostname": socket.gethostname(),
        "cpu_model": _cpu_model(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "grpc_version": grpc.__version__,
    }


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


def _tune_malloc() -> None:
    """Let glibc keep freed memory for the next message instead of giving it back to the kernel.

    By default each message of some MB is mapped, faulted in page by page and unmapped again; measured at 44 MB
    with one worker: 4 updates/s, with this 16 to 20. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)  # take large blocks from the heap, not from mmap …
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)  # … never shrink the heap …
    mallopt(_M_TOP_PAD, 256 << 20)  # … and grow it in steps that need few calls; untouched pages cost nothing


# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def _cpu_model() -> str:
    """Name of the processor: Fargate gives different ones to the same task size."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
