"""When a server beside the emulator has to end: on a signal, or with the process that started it.

Runs on the server's event loop; must not know what it serves.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


def when_asked_to_end(end: Callable[[], None]) -> None:
    """Call `end` on SIGTERM, on SIGINT, and when the process that started this one is gone."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    # Not by PR_SET_PDEATHSIG alone, which local/processes.py sets: it follows the *thread* that started the
    # server, and whoever starts it by other means (a shell, a test) sets none.
    if parent := os.getppid():  # 0: it lives in another PID namespace, where nothing can be seen of it
        watch = os.pidfd_open(parent)

        def parent_gone() -> None:
            loop.remove_reader(watch)  # it stays readable: the loop would spin until the server has ended
            os.close(watch)
            end()

        loop.add_reader(watch, parent_gone)
