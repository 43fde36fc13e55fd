"""What the server's state hands out: news, and tickets for pushes, with their answers.

Plain values; runs in the parameter server. Knows nothing of connections or of why an answer is what it is.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue
from typing import NamedTuple

from runtime.update import Update


class Phase(Enum):
    """Where the experiment is."""

    JOINING = "joining"
    """Not all workers are ready."""
    TRAINING = "training"
    """All workers were ready."""
    FINISHED = "finished"
    """Every worker that is left did all its steps."""
    ENDED = "ended"
    """Given up; the ending says why."""


OVER = frozenset({Phase.FINISHED, Phase.ENDED})


class News(NamedTuple):
    """What a worker is told unasked, as soon as it changes."""

    phase: Phase
    superseded: int = 0
    """Gradients that this worker computes on versions below this one will be dropped."""


class Answer(NamedTuple):
    """What a worker goes on with after a push, beside the parameters."""

    version: int
    waited_seconds: float = 0.0
    """How long its gradient was held back: see Ticket."""
    dropped: bool = False
    """The gradient came too late to count."""


Ready = SimpleQueue[int | None]
"""Blocks of the parameters that may leave; None: no more will."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A push that was begun: what has come of it, and its answer once the policy lets the worker go on."""

    rank: int
    step: int
    version: int
    """That its gradient was computed on."""
    ready: Ready
    """Where the blocks of the answer are told."""
    update: Update | None = None
    """What its gradient is part of; None until its first block is there, and where it does not count."""
    next_block: int = 0
    """Blocks before this one have been taken."""
    received_at: float | None = None
    """When its last block came."""
    released_at: float | None = None
    released_version: int = 0
    awaited: Sequence[Update] = ()
    """Updates that its worker waits for after it was let go on: others have a part in them."""
    counted: bool = False
    """How long its worker waited is in the figures."""
    dropped: bool = False
    void: bool = False
    """Its worker was lost: no more of it is taken."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def answer(self) -> Answer | None:
        """What the worker goes on with, as soon as it is let go on."""
        if self.released_at is None:
            return None
        return Answer(self.released_version, self.waited_seconds, self.dropped)

    @property
    def waited_seconds(self) -> float:
        """How long its worker waited for others.

        From when all of its gradient was there until all was there that it waited for; and before, as long as the
        rest of its gradient was not taken, since it was not its turn.
        """
        if self.released_at is None or self.received_at is None:
            return 0.0
        until, held_seconds = self.released_at, 0.0
        for update in self.awaited:
            until = max(until, update.complete_at)
            held_seconds += update.held_seconds.get(self.rank, 0.0)
        return max(until - self.received_at, 0.0) + held_seconds
