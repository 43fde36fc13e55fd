"""Waiting for processes, and looking at those that may end at any moment."""

import time
from collections.abc import Callable

import psutil

DEADLINE_SECONDS = 60  # only a hanging test reaches it


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    """Whether it has; of one that has, nobody may have taken notice: a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
