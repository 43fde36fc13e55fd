"""Threads of a measured server: one that fails ends its process, so that the round fails with its reason.

Runs in the children of a round.
"""

import os
import threading
import traceback
from collections.abc import Callable


def in_background(target: Callable[[], object]) -> None:
    """Run `target` in a thread of its own."""
    threading.Thread(target=_run, args=(target,), daemon=True).start()


def _run(target: Callable[[], object]) -> None:
    try:
        target()
    except BaseException:  # noqa: BLE001 - written to the log that the bench shows
        traceback.print_exc()
        os._exit(1)
