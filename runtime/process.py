"""Set up this process: memory allocation, threads, signals; say what it runs on; end it.

Runs first in all tasks, never on import: a warm parent imports everything, then forks.
"""

import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import torch

from contract.errors import TrainingFailed
from runtime import malloc, temporary


@dataclass(frozen=True)
class Stop:
    """A signal that told this process to stop."""

    signum: int

    @property
    def reason(self) -> str:
        """What happened to whom it was sent to."""
        return f"stopped by {signal.Signals(self.signum).name}"

    @property
    def exit_code(self) -> int:
        """As of a process that the signal ended."""
        return 128 + self.signum


def set_up() -> None:
    """Tune malloc, and fix the number of torch's threads."""
    malloc.tune()
    torch.set_num_threads(thread_count(os.environ, cores=len(os.sched_getaffinity(0))))


def heed_stops(stopped: Callable[[Stop], int]) -> None:
    """At the first SIGTERM call `stopped`, in a thread of its own, and end the process with what it returns.

    A second one changes nothing. And nothing is raised in the main thread: that may be anywhere, with a lock held, a
    record half printed, or in the middle of a call of gRPC's that must not be cut short.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    # Python tells of a signal only where it has a handler; of Ctrl-C, too.
    signal.signal(signal.SIGTERM, lambda *_: None)

    def wait() -> None:
        while (signum := os.read(reader, 1)[0]) != signal.SIGTERM:
            continue
        code = Stop(signum).exit_code
        try:
            code = stopped(Stop(signum))
        finally:
            # Also where nothing can be said any more: nobody would hear of another signal.
            end(code)

    threading.Thread(target=wait, name="stops", daemon=True).start()


def end(code: int) -> NoReturn:
    """End the process with this exit code, from whatever thread.

    Not sys.exit: an interpreter that shuts down before Python 3.14 ends each thread that comes back from torch by
    pthread_exit, which C++ answers with std::terminate: a task that had done all its work would be counted as killed.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    temporary.remove_all()
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


def _cpu_model() -> str:
    """Name of the processor: Fargate gives different ones to the same task size."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
