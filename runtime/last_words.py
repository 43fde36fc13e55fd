"""What a task that gives up says: one record, one line, the same words.

Runs in both roles; knows nothing of why.
"""

import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from contract.errors import LockstepError
from contract.metrics import TaskFailed
from runtime import process
from runtime.emitter import Emitter
from runtime.ending import VanishedPeer
from runtime.process import Stop

MAX_REASON = 4000
"""Longest reason that a record holds."""


def reason_of(error: Exception) -> str:
    """Why, in one line however many the error has; with its type where the error is not one of ours."""
    name = "" if isinstance(error, LockstepError) else f"{type(error).__name__}: "
    return "; ".join(line.strip(" -") for line in f"{name}{error}".splitlines())[:MAX_REASON]


class LastWords:
    """How a task ended, told once: who knows of an end first has the say, and ends the process.

    Any other thread that comes to an end waits here meanwhile, for ever.
    """

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._had = threading.Lock()
        self.before_stop: Callable[[Stop], None] = lambda _: None
        """What this task does when it is told to stop; its other threads go on meanwhile."""

    def done(self) -> None:
        """All that there was to do is done."""
        self._had.acquire()

    def failed(self, error: Exception) -> None:
        """Record why, and print it; with its traceback where the error is a mistake of ours."""
        self._had.acquire()
        if not isinstance(error, LockstepError):
            self._complain_of(error)
        self._tell(reason_of(error), error.peer if isinstance(error, VanishedPeer) else "")

    def abandon(self, error: LockstepError) -> NoReturn:
        """Tell of a failure, and end the process from whatever thread: its main thread cannot be waited for."""
        self.failed(error)
        process.end(1)

    def stopped(self, stop: Stop) -> NoReturn:
        """Do what is to be done before, tell of it, and end the process."""
        self._had.acquire()
        try:
            self.before_stop(stop)
        except Exception as error:  # noqa: BLE001 - whatever it is, this task has been told to stop
            self._complain_of(error)
        self._tell(stop.reason)
        process.end(stop.exit_code)

    def _tell(self, reason: str, lost_peer: str = "") -> None:
        self._emitter.emit_last(TaskFailed, reason=reason, lost_peer=lost_peer)
        self._complain(reason)

    def _complain_of(self, error: Exception) -> None:
        for line in "".join(traceback.format_exception(error)).splitlines():
            self._complain(line)

    def _complain(self, line: str) -> None:
        print(  # noqa: T201 - for people and logs
            f"lockstep-{self._emitter.role} {self._emitter.whose}: {line}", file=sys.stderr, flush=True
        )
