"""Aggregation policies: which gradients make an update, and which workers go on.

Pure; runs in the parameter server. A policy sees ranks, steps and versions, never a gradient or a connection:
the server's state holds the gradients and does what the verdict says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from contract.study import Mode


@dataclass(frozen=True, slots=True)
class Push:
    """A gradient that arrived: its worker, the worker's step, the version it was computed on."""

    rank: int
    step: int
    version: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an event. Without a release, the worker's gradient is held."""

    update: Mapping[int, float] = field(default_factory=dict)
    """Rank → weight of the held gradients that make up one update; empty: no update."""

    release: frozenset[int] = frozenset()
    """Ranks that are answered the parameters as they are after the update."""


HOLD = Verdict()


class Policy(Protocol):
    """One instance per experiment; called under the server's lock, one event at a time."""

    def push(self, push: Push, version: int) -> Verdict:
        """A gradient arrived; `version` is that of the current parameters."""
        ...

    def finish(self, rank: int) -> Verdict:
        """A worker pushes no more."""
        ...


class Sync:
    """Average of the gradients of all workers; everybody waits for the slowest.

    Source: Chen et al. 2016, Revisiting Distributed Synchronous SGD (arXiv:1604.00981), without backups.
    """

    def __init__(self, workers: int) -> None:
        self._training = set(range(workers))
        self._held: set[int] = set()

    def push(self, push: Push, version: int) -> Verdict:  # noqa: ARG002 - all are of the same version
        """Hold until every training worker's gradient is there, then average them."""
        self._held.add(push.rank)
        return self._at_barrier()

    def finish(self, rank: int) -> Verdict:
        """The others need not wait for this worker any more."""
        self._training.discard(rank)
        return self._at_barrier()

    def _at_barrier(self) -> Verdict:
        if not self._held or self._held != self._training:
            return HOLD
        held, self._held = frozenset(self._held), set()
        return Verdict(update=dict.fromkeys(sorted(held), 1 / len(held)), release=held)


class Async:
    """Each gradient is applied on arrival, whatever the parameters have become since it was computed.

    Source: Dean et al. 2012, Large Scale Distributed Deep Networks (Downpour SGD).
    """

    def push(self, push: Push, version: int) -> Verdict:  # noqa: ARG002 - staleness does not matter
        """Apply at once."""
        return Verdict(update={push.rank: 1.0}, release=frozenset({push.rank}))

    def finish(self, rank: int) -> Verdict:  # noqa: ARG002 - nobody waits for anybody
        """Nothing follows."""
        return HOLD


def policy_for(mode: Mode, workers: int) -> Policy:
    """The policy of a mode for `workers` workers."""
    match mode:
        case Mode.SYNC:
            return Sync(workers)
        case Mode.ASYNC:
            return Async()
