"""Add gradients and apply updates, block by block, as blocks arrive.

Runs in the parameter server, called by many threads at once; knows nothing of workers' steps, policies or
connections. An update is decided on as a whole; each of its blocks is applied as soon as all its gradients
have that block there, whatever the other blocks wait for.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from runtime.blocks import blocks_of
from runtime.compensation import compensate
from runtime.optimizer import Optimizer
from runtime.parameters import memory_of
from runtime.pool import BlockPool
from runtime.timed_condition import TimedCondition
from runtime.update import Update

OptimizerFactory = Callable[[Tensor], Optimizer]
"""Makes the optimizer of one block, for its parameters."""


SPARE_LENGTH: Final = 1 << 22
"""Elements that may wait for their turn: these, 16 MiB, or half as many as the parameters have, if that is more.

Beyond that senders wait, or memory would grow with the workers; less would have those of small models wait often."""


@dataclass(slots=True, eq=False)
class _Partial:
    """What has come of one block of an update."""

    total: Tensor | None = None
    """Sum of the gradients of `ranks`, but for the stale ones, and of `lost`."""
    ranks: set[int] = field(default_factory=set)
    lost: list[int] = field(default_factory=list)
    """Those whose gradient is in the sum, but who were lost since; who comes back may be in it once more."""
    stale: set[int] = field(default_factory=set)
    """Those whose gradient this block had got before, from a server that was restarted."""
    parked: dict[int, Tensor] = field(default_factory=dict)
    """Gradients that came before their turn; the memory of those of `owned` is ours."""
    owned: set[int] = field(default_factory=set)


class _Block:
    """A block of the parameters, and what is on its way into it. A context manager: who enters may change it."""

    def __init__(
        self, parameters: Tensor, optimizer: Optimizer, workers: int, clock: Callable[[], float]
    ) -> None:
        self.parameters = parameters
        self.memory = memory_of(parameters)
        self.optimizer = optimizer
        self.partials: dict[Update, _Partial] = {}
        self.steps = [0] * workers
        """Rank → the step whose gradient this block has not got yet."""
        self.changed = TimedCondition(clock)
        """Its lock guards all of this."""
        self.entered_at = self.apply_seconds = 0.0
        self._clock = clock

    def __enter__(self) -> None:
        self.changed.__enter__()
        self.entered_at = self._clock()

    def __exit__(self, *_: object) -> None:
        self.apply_seconds += self._clock() - self.entered_at
        self.changed.release()

    def wait(self) -> float:
        """Let others in, until one of them has changed something; returns how long that took, in seconds."""
        left_at = self._clock()
        self.apply_seconds += left_at - self.entered_at
        self.changed.wait()
        self.entered_at = self._clock()
        return self.entered_at - left_at


class Aggregator:
    """The parameters and their optimizers, by block. Any thread may call any method."""

    def __init__(
        self,
        parameters: Tensor,
        optimizer: OptimizerFactory,
        *,
        workers: int,
        in_rank_order: bool = False,
        delay_compensation: float = 0.0,
        held: Mapping[int, Tensor] | None = None,
        pool: BlockPool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parameters`: flat fp32, changed in place; `clock`: seconds, monotonic.

        `in_rank_order`: add gradients in the order of ranks, whoever comes first: floating-point sums depend on it.
        `delay_compensation`: λ, 0 for none; `held`: rank → the parameters that the worker holds, for it.
        """
        self.blocks = blocks_of(parameters.numel())
        self.parameters = parameters
        self._blocks = [_Block(parameters[b], optimizer(parameters[b]), workers, clock) for b in self.blocks]
        self._in_rank_order = in_rank_order
        self._delay_compensation = delay_compensation
        self._held = held or {}
        self.away: frozenset[int] = frozenset()
        """Ranks that push no more, for now or for good: nobody's turn waits for theirs. Then, `settle`."""
        self.pool = pool or BlockPool()
        """Where memory for the gradients of `add` comes from, and goes back to."""
        self._stopped = False
        self._spare = threading.Semaphore(max(len(self.blocks) // 2, SPARE_LENGTH // self.blocks[0].stop))

    def add(
        self, update: Update, rank: int, step: int, index: int, gradient: Tensor, *, lasting: bool = False
    ) -> bool:
        """Add one block of a member's gradient; apply the block if it was the last that the update waited for.

        Waits where the gradient's turn has not come and there is no room to keep it: this is what holds a sender
        back. Who is no member any more was lost: nothing is added. Returns whether `gradient` was kept: its memory is
        the aggregator's then. `lasting`: it stays the caller's, who does not change it before its worker is answered.
        """
        block = self._blocks[index]
        with block:
            if rank not in update.members:
                return False
            partial = block.partials.setdefault(update, _Partial())
            if step < block.steps[rank]:
                partial.stale.add(rank)
                partial.ranks.add(rank)
                self._settle(index, block, update)
                return False
            alone = update.decided and update.members == {rank}
            if alone and partial.total is None and not partial.parked:
                del block.partials[update]
                block.steps[rank] = step + 1
                self._apply(index, block, update, gradient, rank=rank, scale=update.weight)
                return False
            parked = self._park_until_turn(block, update, rank, gradient, lasting=lasting)
            taken = False
            if rank in update.members:
                block.steps[rank] = step + 1
                taken = not parked and self._sum(partial, rank, gradient, owned=not lasting)
                self._settle(index, block, update)
            return taken or (parked and not lasting)

    @contextmanager
    def reading(self, index: int) -> Iterator[memoryview]:
        """The bytes of a block of the parameters, which is not updated meanwhile."""
        block = self._blocks[index]
        with block.changed:
            yield block.memory

    def settle(self, update: Update) -> None:
        """Apply whatever an update does not wait for any more, since it was decided on or lost a member."""
        for index, block in enumerate(self._blocks):
            with block:
                self._settle(index, block, update)

    def lose(self, update: Update, rank: int) -> None:
        """The rest of a member's gradient will not come. What was added stays, and nothing waits for more."""
        update.members.discard(rank)
        for index, block in enumerate(self._blocks):
            with block:
                if (partial := block.partials.get(update)) is not None:
                    self._forget(block, partial, rank)
                self._settle(index, block, update)

    def read(self, index: int, out: Tensor) -> None:
        """Copy a block of the parameters to `out`, as they are between two updates."""
        block = self._blocks[index]
        with block.changed:
            out.copy_(block.parameters)

    def stop(self) -> None:
        """Let go whoever waits for a turn: it will not come."""
        self._stopped = True
        for block in self._blocks:
            with block.changed:
                block.changed.notify_all()

    @property
    def apply_seconds(self) -> float:
        """Time that threads spent adding gradients up and in the optimizers."""
        return sum(block.apply_seconds for block in self._blocks)

    @property
    def lock_seconds(self) -> float:
        """Time that threads waited for the locks of blocks."""
        return sum(block.changed.waited_seconds for block in self._blocks)

    def snapshot(self) -> tuple[Tensor, list[list[int]], list[dict[str, Tensor]]]:
        """Parameters, steps by block and rank, and states of the optimizers: each block as it was at one moment.

        A gradient that waits in a block for others has not changed it yet: its step is not among those it got.
        """
        parameters, steps, states = torch.empty_like(self.parameters), [], []
        for block, part in zip(self._blocks, self.blocks, strict=True):
            with block.changed:
                parameters[part] = block.parameters
                steps.append(self._applied_steps(block))
                states.append(block.optimizer.state())
        return parameters, steps, states

    def restore(
        self, parameters: Tensor, steps: Sequence[Sequence[int]], states: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Go on from a snapshot."""
        self.parameters.copy_(parameters)
        for block, block_steps, state in zip(self._blocks, steps, states, strict=True):
            block.steps = list(block_steps)
            block.optimizer.restore(state)

    # The block's lock is held below.

    def _park_until_turn(
        self, block: _Block, update: Update, rank: int, gradient: Tensor, *, lasting: bool
    ) -> bool:
        """Return True where the gradient waits for its turn; False once its turn has come, or never will."""
        partial = block.partials[update]
        while rank in update.members and not self._is_turn(update, partial, rank) and not self._stopped:
            if lasting or self._spare.acquire(blocking=False):
                partial.parked[rank] = gradient
                if not lasting:
                    partial.owned.add(rank)
                return True
            waited = update.held_seconds.get(rank, 0.0)
            update.held_seconds[rank] = waited + block.wait()
        return False

    def _is_turn(self, update: Update, partial: _Partial, rank: int) -> bool:
        if not self._in_rank_order:
            return True
        # Before asking whether it is decided: who pushed its last goes away right after the decision, and counts.
        away = self.away
        if update.decided:
            # Who is away may have blocks of its last gradient on their way; who is back may not be in this update.
            return all(other in partial.ranks for other in range(rank) if other in update.members)
        return all(other in partial.ranks or other in away for other in range(rank))

    def _sum(self, partial: _Partial, rank: int, gradient: Tensor, *, owned: bool) -> bool:
        """Add a gradient to the sum. Returns whether it is the sum now, which it may become if its memory is ours."""
        partial.ranks.add(rank)
        if partial.total is not None:
            partial.total.add_(gradient)
            return False
        partial.total = gradient if owned else self.pool.take(len(gradient)).copy_(gradient)
        return owned

    def _sum_parked(self, partial: _Partial, rank: int) -> None:
        gradient, owned = partial.parked.pop(rank), rank in partial.owned
        if owned:
            self._leave_spare(partial, rank)
        if not self._sum(partial, rank, gradient, owned=owned) and owned:
            self.pool.give(gradient)

    def _leave_spare(self, partial: _Partial, rank: int) -> None:
        partial.owned.discard(rank)
        self._spare.release()

    def _forget(self, block: _Block, partial: _Partial, rank: int) -> None:
        """A lost worker may come back, and push the same step again: to this block too if it was not added yet."""
        if (gradient := partial.parked.pop(rank, None)) is not None:
            if rank in partial.owned:
                self._leave_spare(partial, rank)
                self.pool.give(gradient)
            block.steps[rank] -= 1
        if rank in partial.ranks - partial.stale:
            partial.lost.append(rank)
        partial.ranks.discard(rank)
        partial.stale.discard(rank)

    def _applied_steps(self, block: _Block) -> list[int]:
        steps = list(block.steps)
        for partial in block.partials.values():
            for rank in [*(partial.ranks - partial.stale), *partial.parked, *partial.lost]:
                steps[rank] -= 1
        return steps

    def _settle(self, index: int, block: _Block, update: Update) -> None:
        """Add what has its turn now; apply the block if all is there."""
        partial = block.partials.get(update)
        if partial is None:
            if update.decided and not update.members:
                update.mark(index, block.entered_at)
            return
        for rank in sorted(partial.parked):
            if not self._is_turn(update, partial, rank):
                break
            self._sum_parked(partial, rank)
        block.changed.notify_all()
        if not update.decided or not update.members <= partial.ranks:
            return
        del block.partials[update]
        if partial.total is None:
            update.mark(index, block.entered_at)
            return
        scale = update.weight / (len(partial.ranks - partial.stale) + len(partial.lost))
        rank = min(partial.ranks, default=0)
        if scale != 1.0:
            partial.total.mul_(scale)
        self._apply(index, block, update, partial.total, rank=rank)
        self.pool.give(partial.total)

    def _apply(
        self, index: int, block: _Block, update: Update, gradient: Tensor, *, rank: int, scale: float = 1.0
    ) -> None:
        """`rank`: whose gradient it is, if it is that of one."""
        if scale != 1.0:
            gradient = gradient * scale
        if self._delay_compensation:
            held = self._held[rank][self.blocks[index]]
            gradient = compensate(gradient, block.parameters, held, self._delay_compensation)
        block.optimizer.step(gradient, update.learning_factor)
        update.mark(index, block.entered_at)
