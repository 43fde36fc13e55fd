"""When a metric line may go on to the log forwarder: a burst becomes a brisk walk.

Runs on an event loop between containers and the emulator; must not know HTTP or containers.

AWS's log driver and subscriptions deliver in batches. MiniStack calls the subscribed function once a line, at once,
and starts another process for it, half a second of CPU, where all that it has are busy: 8 workers that say hello
together on 2 cores were followed by more than 100 processes. Paced, the few that are there keep up.
"""

from __future__ import annotations

import asyncio
import time

from contract.metrics import MARKER

SPACING_SECONDS = 0.05


class DeliveryPacer:
    """Spaces the metric lines of all containers; other lines pass at once."""

    def __init__(self, spacing_seconds: float = SPACING_SECONDS) -> None:
        self._spacing = spacing_seconds
        self._next_turn = 0.0

    async def turn(self, text: bytes) -> None:
        """Return when this line may go on."""
        if not text.startswith(MARKER.encode()):
            return
        now = time.monotonic()
        turn, self._next_turn = self._next_turn, max(self._next_turn, now) + self._spacing
        if turn > now:
            await asyncio.sleep(turn - now)
