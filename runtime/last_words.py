"""What a task that gives up says: one record, one line, the same words.

Runs in both roles; knows nothing of why.
"""

import sys
import traceback

from contract.errors import LockstepError
from contract.metrics import TaskFailed
from runtime import process
from runtime.emitter import Emitter
from runtime.ending import VanishedPeer

MAX_REASON = 4000
"""Longest reason that a record holds."""


def reason_of(error: BaseException) -> str:
    """Why, in one line however many the error has; with its type where the error is not one of ours."""
    name = "" if isinstance(error, LockstepError | process.Stopped) else f"{type(error).__name__}: "
    return "; ".join(line.strip(" -") for line in f"{name}{error}".splitlines())[:MAX_REASON]


def say_failed(emitter: Emitter, error: BaseException) -> None:
    """Record the failure and print it on stderr."""
    reason = reason_of(error)
    peer = error.peer if isinstance(error, VanishedPeer) else ""
    emitter.emit(TaskFailed, reason=reason, lost_peer=peer)
    _complain(emitter, reason)


def say_unexpected(emitter: Emitter) -> None:
    """Print the error that is being handled with its traceback: a mistake of ours."""
    for line in traceback.format_exc().splitlines():
        _complain(emitter, line)


def _complain(emitter: Emitter, line: str) -> None:
    print(  # noqa: T201 - for people and logs
        f"lockstep-{emitter.role} {emitter.whose}: {line}", file=sys.stderr, flush=True
    )


def abandon(emitter: Emitter, error: LockstepError) -> None:
    """Say why, and end the process from whatever thread: its main thread cannot be waited for."""
    say_failed(emitter, error)
    process.end(1)
