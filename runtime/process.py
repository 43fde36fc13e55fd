"""Set up this process: memory allocation, threads, signals; and say what it runs on.

Runs first in both roles, never on import: a warm parent imports everything, then forks.
"""

import os
import platform
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import grpc
import torch

from contract.errors import TrainingFailed
from runtime import malloc


class Stopped(BaseException):
    """The process was told to stop. Not an Exception: nothing that handles errors may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def set_up() -> None:
    """Tune malloc, fix the number of torch's threads, turn SIGTERM into Stopped."""
    malloc.tune()
    torch.set_num_threads(thread_count(os.environ, cores=len(os.sched_getaffinity(0))))
    signal.signal(signal.SIGTERM, _stop)


def heed_no_stop() -> None:
    """From here on a SIGTERM changes nothing: this process ends anyway, and says why without being cut short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end(code: int) -> NoReturn:
    """End the process with this exit code, from whatever thread.

    Not sys.exit: an interpreter that shuts down before Python 3.14 ends each thread that comes back from torch by
    pthread_exit, which C++ answers with std::terminate: a task that had done all its work would be counted as killed.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


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
    heed_no_stop()
    raise Stopped(signum)


def _cpu_model() -> str:
    """Name of the processor: Fargate gives different ones to the same task size."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
