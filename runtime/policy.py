"""Aggregation policies: which gradients make an update, which workers go on, whose work is in vain.

Pure; runs in the parameter server. A policy sees ranks, steps and versions, never a gradient or a connection:
the server's state holds the gradients and does what the verdict says. In the formulas w is the parameters, η
the learning rate (momentum, schedules and Adam are the optimizer's), g a gradient, τ its staleness: the
version that it is applied to, less the version that it was computed on.

A policy is told of a gradient when its first block is there. Of a model of several blocks "the first K gradients" are
those that began to arrive first: the rest of them is waited for, over however slow a link, so that blocks can be added
as they come. A worker that computes slowly begins late, and is passed over; one that sends slowly is not.
"""

from dataclasses import dataclass
from typing import Protocol

from contract.aggregation import Aggregation, Mode


@dataclass(frozen=True, slots=True)
class Push:
    """A gradient that arrived: its worker, the worker's step, the version it was computed on."""

    rank: int
    step: int
    version: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an event. Without a release, the worker's gradient is held."""

    update: frozenset[int] = frozenset()
    """Ranks whose held gradients make up one update; empty: no update."""

    weight: float = 1.0
    """What the mean of these gradients is multiplied by."""

    release: frozenset[int] = frozenset()
    """Ranks that are answered the parameters as they are after the update."""

    dropped: frozenset[int] = frozenset()
    """Those of the released whose gradient came too late to count."""

    cancelled: frozenset[int] = frozenset()
    """Ranks that compute on a version whose gradients do not count any more: they may stop early."""


HOLD = Verdict()


class Policy(Protocol):
    """One instance per experiment; called under the server's lock, one event at a time."""

    delay_compensation: float
    """λ of the compensation that gradients get before they are applied; 0: none."""

    in_rank_order: bool
    """Whether gradients are summed in the order of ranks: then the same seed gives the same bits."""

    answers_at_once: bool
    """Whether every push is released by its own verdict."""

    in_step: bool
    """Whether all workers compute on the same version: one that comes back goes on at the step of the others."""

    staleness_bound: int | None
    """s, where whoever has done c steps is given parameters with everybody's gradients of the first c - s steps."""

    def enter(self, rank: int, step: int) -> None:
        """A worker that was lost is back; it pushes `step` next."""
        ...

    def push(self, push: Push, version: int) -> Verdict:
        """A gradient arrived; `version` is that of the current parameters."""
        ...

    def leave(self, rank: int) -> Verdict:
        """A worker pushes no more: it was released from its last step, or is lost. What it pushed is not held."""
        ...


class _Quorum:
    """Average of the first K gradients that are held; of all, where fewer than K workers still train.

    First is whose first block came first.
    """

    delay_compensation = 0.0
    in_rank_order = False
    answers_at_once = False
    in_step = False
    staleness_bound: int | None = None

    def __init__(self, workers: int, k: int) -> None:
        self._k = k
        self._training = set(range(workers))
        self._held: set[int] = set()

    def enter(self, rank: int, step: int) -> None:  # noqa: ARG002 - a quorum counts workers, not steps
        """Count on this worker again."""
        self._training.add(rank)

    def push(self, push: Push, version: int) -> Verdict:  # noqa: ARG002 - the forms differ in what they make of it
        """Hold until K gradients are there, then average them."""
        self._held.add(push.rank)
        return self._at_quorum()

    def leave(self, rank: int) -> Verdict:
        """The others need not wait for this worker any more."""
        self._training.discard(rank)
        self._held.discard(rank)
        return self._at_quorum()

    def _at_quorum(self) -> Verdict:
        if not self._held or len(self._held) < min(self._k, len(self._training)):
            return HOLD
        held, self._held = frozenset(self._held), set()
        return Verdict(update=held, release=held, cancelled=self._in_vain(held))

    def _in_vain(self, held: frozenset[int]) -> frozenset[int]:  # noqa: ARG002 - late gradients count as well
        return frozenset()


class KAsync(_Quorum):
    """K-async SGD: w ← w - η·(1/K)·Σ g over the first K gradients, whatever version each was computed on.

    Their K workers go on from the new version, the other N - K keep computing, so an update ages N - K
    gradients: mean τ = (N - K)/K. Mean time of an update, exponential draws of mean m: m·(H_N - H_{N-K}),
    for what is left of such a draw is distributed as a new one. The first K are those whose first block came first.
    Source: Dutta et al. 2018, Slow and Stale Gradients Can Win the Race (arXiv:1803.01113).
    """


class KSync(_Quorum):
    """K-sync SGD: w ← w - η·(1/K)·Σ g over the first K gradients of the current version, τ = 0.

    The other workers are cancelled: what they push on an older version is dropped, and they go on from the
    new one. Mean time of an update, exponential draws of mean m: m·(H_N - H_{N-K}). The first K are those whose first
    block came first.
    Source: Dutta et al. 2018, Slow and Stale Gradients Can Win the Race (arXiv:1803.01113).
    """

    in_step = True

    def push(self, push: Push, version: int) -> Verdict:
        """Hold until K gradients of this version are there, then average them; drop an older one."""
        if push.version < version:
            late = frozenset({push.rank})
            return Verdict(release=late, dropped=late)
        return super().push(push, version)

    def _in_vain(self, held: frozenset[int]) -> frozenset[int]:
        return frozenset(self._training - held)


class Sync(KSync):
    """Average of the gradients of all N workers: w ← w - η·(1/N)·Σ g; everybody waits for the slowest.

    Mean time of an update: E[max of N draws]; exponential: m·H_N.
    Source: Chen et al. 2016, Revisiting Distributed Synchronous SGD (arXiv:1604.00981), without backups.
    """

    in_rank_order = True

    def __init__(self, workers: int) -> None:
        super().__init__(workers, k=workers)


class Backup(KSync):
    """Sync with backup workers: of N + b workers, the first N gradients of a step make its update.

    w ← w - η·(1/N)·Σ g; the b slowest gradients of each step, those whose first block came last, are dropped.
    Mean time of an update, exponential draws: m·(H_{N+b} - H_b).
    Source: Chen et al. 2016, Revisiting Distributed Synchronous SGD (arXiv:1604.00981).
    """

    def __init__(self, workers: int, backup_workers: int) -> None:
        """`workers`: all of them, N + b."""
        super().__init__(workers, k=workers - backup_workers)


class Async:
    """Each gradient is applied on arrival: w ← w - η·g, whatever has become of w since it was computed.

    Total τ = (N - 1)·updates while all workers have a gradient under way. Mean time of an update: m/N.
    Source: Dean et al. 2012, Large Scale Distributed Deep Networks (Downpour SGD).
    """

    delay_compensation = 0.0
    in_rank_order = False
    answers_at_once = True
    in_step = False
    staleness_bound: int | None = None

    def enter(self, rank: int, step: int) -> None:
        """Nothing follows."""

    def push(self, push: Push, version: int) -> Verdict:
        """Apply at once."""
        own = frozenset({push.rank})
        return Verdict(update=own, weight=self._weight(version - push.version), release=own)

    def leave(self, rank: int) -> Verdict:  # noqa: ARG002 - nobody waits for anybody
        """Nothing follows."""
        return HOLD

    def _weight(self, staleness: int) -> float:  # noqa: ARG002 - all gradients count in full
        return 1.0


class StalenessAware(Async):
    """Async with a step size that falls with staleness: w ← w - (η/τ)·g; fresh gradients (τ ≤ 1) in full.

    The weight is put on the gradient, as in the paper, so that momentum remembers it weighted.
    Source: Zhang et al. 2016, Staleness-aware Async-SGD (arXiv:1511.05950), where every gradient makes an update.
    """

    def _weight(self, staleness: int) -> float:
        return 1.0 / max(staleness, 1)


class DelayCompensated(Async):
    """Delay-compensated async SGD with constant λ (DC-ASGD-c): w ← w - η·(g + λ·g⊙g⊙(w - w_bak)).

    w_bak is what the worker last pulled: the parameters that g was computed on. λ·g⊙g stands for the diagonal
    of the Hessian in the first-order term of g's Taylor expansion from w_bak to w.
    Source: Zheng et al. 2017, Asynchronous Stochastic Gradient Descent with Delay Compensation (arXiv:1609.08326).
    """

    def __init__(self, dc_lambda: float) -> None:
        self.delay_compensation = dc_lambda


class Ssp:
    """Stale synchronous parallel: async, but nobody starts a step more than s steps ahead of the slowest.

    w ← w - η·g on arrival; the worker is released when its clock c (steps done) is at most s above the lowest
    clock, and sees the first c - s gradients of everybody. So clocks differ by at most s + 1, and
    τ ≤ (N - 1)·(2s + 1).
    Source: Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server.
    """

    delay_compensation = 0.0
    in_rank_order = False
    answers_at_once = False
    in_step = False

    def __init__(self, workers: int, staleness_bound: int) -> None:
        self.staleness_bound: int | None = staleness_bound
        self._bound = staleness_bound
        self._clocks = dict.fromkeys(range(workers), 0)
        self._waiting: set[int] = set()

    def enter(self, rank: int, step: int) -> None:
        """The others wait for this worker again."""
        self._clocks[rank] = step

    def push(self, push: Push, version: int) -> Verdict:  # noqa: ARG002 - the bound is on clocks, not versions
        """Apply at once; release whoever is not too far ahead now."""
        self._clocks[push.rank] = push.step + 1
        self._waiting.add(push.rank)
        return Verdict(update=frozenset({push.rank}), release=self._within_bound())

    def leave(self, rank: int) -> Verdict:
        """The clock of this worker stands; the others do not wait for it."""
        self._clocks.pop(rank, None)
        self._waiting.discard(rank)
        return Verdict(release=self._within_bound())

    def _within_bound(self) -> frozenset[int]:
        slowest = min(self._clocks.values(), default=0)
        ready = frozenset(r for r in self._waiting if self._clocks[r] - slowest <= self._bound)
        self._waiting -= ready
        return ready


def policy_for(mode: Mode, workers: int, aggregation: Aggregation | None = None) -> Policy:  # noqa: PLR0911 - one each
    """The policy of a mode for `workers` workers. Raises ValueError where `aggregation` lacks what it needs."""
    value = (aggregation or Aggregation()).value(mode)
    match mode:
        case Mode.SYNC:
            return Sync(workers)
        case Mode.ASYNC:
            return Async()
        case Mode.STALENESS_AWARE:
            return StalenessAware()
        case Mode.DC_ASGD if value is not None:
            return DelayCompensated(float(value))
        case Mode.BACKUP if value is not None:
            return Backup(workers, int(value))
        case Mode.SSP if value is not None:
            return Ssp(workers, int(value))
        case Mode.KSYNC if value is not None:
            return KSync(workers, int(value))
        case Mode.KASYNC if value is not None:
            return KAsync(workers, int(value))
    raise ValueError(f"mode {mode} is not told what it needs")
