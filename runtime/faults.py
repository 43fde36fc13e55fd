"""Crashes that a study asks for: the worker's process dies without a word before it pushes a certain step.

Runs in the worker. To its server and to the other workers nothing tells such a crash from a real one.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from contract.task import TaskEnvironment

_ATTEMPT: Final = "WORKER_ATTEMPT"
_AWAY: Final = "WORKER_AWAY_SECONDS"
"""How long a process that takes the place of a crashed one does nothing."""


def crash_if_due(environment: TaskEnvironment, step: int) -> None:
    """Die, if the study says that this worker does so now. Then this does not return.

    Each life has one crash to come; a step that the worker skipped while it was away does not put it off.
    """
    own = [crash for crash in environment.faults.crashes if crash.rank == environment.worker_rank]
    to_come = sorted(own, key=lambda crash: crash.step)[environment.worker_attempt :]
    if to_come and step >= to_come[0].step:
        _crash(environment, to_come[0].restart_after_seconds)


def stay_away(environ: Mapping[str, str]) -> None:
    """Do nothing for as long as a crashed worker stays away."""
    time.sleep(float(environ.get(_AWAY, 0)))


def _crash(environment: TaskEnvironment, restart_after_seconds: float | None) -> None:
    if restart_after_seconds is None:
        os.kill(os.getpid(), signal.SIGKILL)
        # The first process of a container cannot: the kernel spares it what it sends itself. As abrupt, and what
        # Docker reports of a task that was killed.
        os._exit(128 + signal.SIGKILL)
    # Another program takes this process over: all memory, threads and connections are gone, as after a crash.
    root = Path(__file__).parent.parent
    os.environ |= {
        _ATTEMPT: str(environment.worker_attempt + 1),
        _AWAY: str(restart_after_seconds),
        "PYTHONPATH": str(root),
    }
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "runtime", "worker"])  # noqa: S606 - no shell is the point
