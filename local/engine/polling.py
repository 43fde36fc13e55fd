"""When to let a poller wait: turns a 100 ms poll of a running container into a long poll.

Runs in the engine process, on its event loop; must not know HTTP or containers.

MiniStack's ECS watches every running task with two inspects, a sleep of 100 ms, two inspects, and so on, one thread
per task. Measured on 2 cores with idle containers, CPU of engine + emulator in percent of one core: answered at once
5.9 + 26 with 10 containers and 14 + 76 with 33; held as below 1.2 + 3.4 and 3.5 + 10. Nobody learns of an exit later
for it: a held inspect is answered the moment the container exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable

# The watcher's sleep never ends early, so its next inspect comes this long after our last answer, while anybody
# else's comes at a random moment, mostly while the watcher is held. The upper bound leaves room for a busy machine.
SHORTEST_GAP_SECONDS, LONGEST_GAP_SECONDS = 0.1, 0.4
# A task's start (inspect, reload, reload for the address) must not be held: holds begin after this many answers.
ANSWERS_BEFORE_HOLDING = 5
# Drawn anew for each hold: answered together, more connections than docker-py keeps (10) would come back at once,
# and urllib3 closes the surplus with a warning each. The maximum stays far below MiniStack's client timeout (10 s).
SHORTEST_HOLD_SECONDS, LONGEST_HOLD_SECONDS = 0.7, 1.3


class PollPacer:
    """Paces the inspects of one running container: those that come in a poller's rhythm wait, others never do.

    An inspect that arrives while another is held lets that one go. So if somebody else's is taken for the watcher's,
    it waits only until the watcher itself arrives, milliseconds later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers = 0
        self._last_answer = float("-inf")
        self._held: asyncio.Event | None = None

    async def pace(self) -> None:
        """Return when an inspect that arrives now should be answered."""
        self.release()
        gap = self._clock() - self._last_answer
        in_rhythm = SHORTEST_GAP_SECONDS <= gap <= LONGEST_GAP_SECONDS
        if in_rhythm and self._answers >= ANSWERS_BEFORE_HOLDING:
            held = self._held = asyncio.Event()
            share = secrets.randbelow(1000) / 1000
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    held.wait(),
                    SHORTEST_HOLD_SECONDS + share * (LONGEST_HOLD_SECONDS - SHORTEST_HOLD_SECONDS),
                )
        self._answers += 1
        self._last_answer = self._clock()

    def release(self) -> None:
        """Answer the held inspect now, if there is one."""
        if self._held is not None:
            self._held.set()
            self._held = None
