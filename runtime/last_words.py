"""What a task says last: how it ended, in one record, and why it failed in one line with the same words.

Runs in both roles; knows nothing of why.
"""

import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from contract.errors import LockstepError
from contract.metrics import Record, TaskFailed
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
    """How a task ended, told once, by whichever thread knows of an end first: its last record, and its exit code."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._telling = threading.Lock()
        self._exit_code: int | None = None
        self.before_stop: Callable[[Stop], None] = lambda _: None
        """What this task does when it is told to stop; its main thread goes on meanwhile."""

    def done(self, summary: type[Record], **fields: Any) -> None:
        """Record what came of it: all that this task is there for is done."""
        with self._telling:
            if self._exit_code is None:
                self._emitter.emit(summary, **fields)
                self._exit_code = 0

    def failed(self, error: Exception) -> int:
        """Record why, and print it; with its traceback where the error is a mistake of ours. Returns the exit code."""
        with self._telling:
            if self._exit_code is None:
                if not isinstance(error, LockstepError):
                    self._complain_of(error)
                self._tell(reason_of(error), error.peer if isinstance(error, VanishedPeer) else "")
                self._exit_code = 1
            return self._exit_code

    def abandon(self, error: LockstepError) -> NoReturn:
        """Tell of a failure, and end the process from whatever thread: its main thread cannot be waited for."""
        code = 1
        try:
            code = self.failed(error)
        finally:
            process.end(code)

    def stopped(self, stop: Stop) -> int:
        """Do what is to be done before, and tell of it, unless an end was told already. Returns the exit code.

        The process is to end next: any other thread that comes to tell of an end waits here, for ever.
        """
        self._telling.acquire()
        if self._exit_code is not None:
            return self._exit_code
        try:
            self.before_stop(stop)
        except Exception as error:  # noqa: BLE001 - whatever it is, this task has been told to stop
            self._complain_of(error)
        self._tell(stop.reason)
        return stop.exit_code

    def _tell(self, reason: str, lost_peer: str = "") -> None:
        self._emitter.emit(TaskFailed, reason=reason, lost_peer=lost_peer)
        self._complain(reason)

    def _complain_of(self, error: Exception) -> None:
        for line in "".join(traceback.format_exception(error)).splitlines():
            self._complain(line)

    def _complain(self, line: str) -> None:
        print(  # noqa: T201 - for people and logs
            f"lockstep-{self._emitter.role} {self._emitter.whose}: {line}", file=sys.stderr, flush=True
        )
