"""What the server's state hands out: parameters, answers to pushes, news.

Plain values; runs in the parameter server. Knows nothing of gRPC or of why an answer is what it is.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from runtime.policy import Push


class Phase(Enum):
    """Where the experiment is."""

    JOINING = "joining"
    """Not all workers are there."""
    TRAINING = "training"
    """All workers are there."""
    FINISHED = "finished"
    """Every worker did all its steps."""
    ENDED = "ended"
    """Given up; the ending says why."""


OVER = frozenset({Phase.FINISHED, Phase.ENDED})


class News(NamedTuple):
    """What a worker is told unasked, as soon as it changes."""

    phase: Phase
    superseded: int = 0
    """Gradients that this worker computes on versions below this one will be dropped."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Parameters as they were at a version: raw fp32 bytes."""

    version: int
    data: bytes


class Answer(NamedTuple):
    """What a worker goes on with after a push."""

    snapshot: Snapshot
    waited_seconds: float = 0.0
    """How long its gradient was held back."""
    dropped: bool = False
    """The gradient came too late to count."""


@dataclass(slots=True)
class Ticket:
    """A push that was taken; its answer comes when the policy lets the worker go on."""

    push: Push
    arrived_at: float
    answer: Answer | None = None
