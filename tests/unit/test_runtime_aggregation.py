"""The aggregator under threads: sums that do not depend on who comes first, and memory that does not grow."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.aggregation import Aggregator
from runtime.optimizer import MomentumSGD
from runtime.update import Update
from tests.unit.local_worker import PATIENCE, blocks_of_length

BLOCK = 8
ADD = partial(MomentumSGD, learning_rate=-1.0, momentum=0.0)
"""Parameters become the sum of all updates."""


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with blocks_of_length(BLOCK):
        yield


def new_aggregator(blocks: int, workers: int, *, in_rank_order: bool = True) -> Aggregator:
    return Aggregator(torch.zeros(blocks * BLOCK), ADD, workers=workers, in_rank_order=in_rank_order)


def update_of(aggregator: Aggregator, *ranks: int, decided: bool = True) -> Update:
    update = Update(len(aggregator.blocks))
    update.members |= set(ranks)
    update.decided = decided
    return update


def gradients_of(workers: int, length: int, seed: int = 0) -> list[Tensor]:
    """Of such different sizes that every order of adding them gives other bits."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * 10.0**rank for rank in range(workers)]


def applied_to(update: Update) -> set[int]:
    blocks: set[int] = set()
    update.follow(blocks.add)
    return blocks


@settings(deadline=None)
@given(data=st.data(), blocks=st.integers(1, 4), workers=st.integers(1, 4), lasting=st.booleans())
def test_a_sum_in_rank_order_has_the_same_bits_whoever_comes_first(
    data: st.DataObject, blocks: int, workers: int, lasting: bool
) -> None:
    aggregator = new_aggregator(blocks, workers)
    gradients = gradients_of(workers, blocks * BLOCK)
    update = update_of(aggregator, *range(workers))
    # Whose last gradient this is, is away while its blocks are on their way.
    aggregator.away = frozenset(data.draw(st.sets(st.integers(0, workers - 1))))
    sent = dict.fromkeys(range(workers), 0)
    while waiting := [rank for rank, count in sent.items() if count < blocks]:
        rank = data.draw(st.sampled_from(waiting))
        block = aggregator.blocks[sent[rank]]
        gradient = gradients[rank][block]
        aggregator.add(
            update, rank, 0, sent[rank], gradient if lasting else gradient.clone(), lasting=lasting
        )
        sent[rank] += 1
        # A block is applied exactly when all have sent it
        assert applied_to(update) == set(range(min(sent.values())))
    total = gradients[0].clone()
    for gradient in gradients[1:]:
        total.add_(gradient)
    assert torch.equal(aggregator.parameters, total * (1 / workers) if workers > 1 else total)


def run_in_threads(aggregator: Aggregator, update: Update, gradients: list[Tensor], seed: int) -> None:
    """Each rank sends its blocks in order from a thread of its own, from one buffer unless that was kept."""
    order = list(range(len(gradients)))
    random.Random(seed).shuffle(order)
    together = threading.Barrier(len(order))

    def send(rank: int) -> None:
        arriving = torch.empty(BLOCK)
        together.wait(PATIENCE)
        for index, block in enumerate(aggregator.blocks):
            arriving.copy_(gradients[rank][block])
            if aggregator.add(update, rank, 0, index, arriving):
                arriving = torch.empty(BLOCK)

    with ThreadPoolExecutor(len(order)) as pool:
        for future in [pool.submit(send, rank) for rank in order]:
            future.result(PATIENCE)


def test_threads_in_any_order_give_the_same_bits() -> None:
    gradients = gradients_of(6, 50 * BLOCK)
    outcomes = []
    for seed in range(5):
        aggregator = new_aggregator(50, 6)
        update = update_of(aggregator, *range(6))
        run_in_threads(aggregator, update, gradients, seed)
        assert applied_to(update) == set(range(50))
        outcomes.append(aggregator.parameters)
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)
    mean = torch.stack(gradients).double().mean(0)
    assert torch.allclose(outcomes[0].double(), mean, rtol=1e-5, atol=1e-2)


class DecidedAfterLooks(Update):
    """An update that is decided on right after somebody saw that it is not; then its members go away."""

    def __init__(self, aggregator: Aggregator, workers: int, looks: int) -> None:
        self._aggregator = aggregator
        self._looks = looks
        super().__init__(len(aggregator.blocks))
        self.members = set(range(workers))

    @property
    def decided(self) -> bool:
        self._looks -= 1
        if self._looks == 0:
            self._aggregator.away = frozenset(self.members)
        return self._looks < 0

    @decided.setter
    def decided(self, decided: bool) -> None:
        assert not decided


@pytest.mark.parametrize("looks", range(1, 6))
def test_a_decision_that_falls_between_two_looks_lets_nobody_pass_before_its_turn(looks: int) -> None:
    aggregator = new_aggregator(1, 3)
    gradients = gradients_of(3, BLOCK)
    update = DecidedAfterLooks(aggregator, 3, looks)
    for rank in (2, 1, 0):
        aggregator.add(update, rank, 0, 0, gradients[rank], lasting=True)
    assert torch.equal(aggregator.parameters, (gradients[0] + gradients[1] + gradients[2]) * (1 / 3))


def test_out_of_rank_order_threads_give_the_same_sum_but_for_rounding() -> None:
    gradients = gradients_of(6, 50 * BLOCK)
    aggregator = new_aggregator(50, 6, in_rank_order=False)
    run_in_threads(aggregator, update_of(aggregator, *range(6)), gradients, seed=0)
    mean = torch.stack(gradients).double().mean(0)
    assert torch.allclose(aggregator.parameters.double(), mean, rtol=1e-4, atol=1e-1)


class Sender:
    """A rank whose blocks come one after the other, until it is held back."""

    def __init__(self, pool: ThreadPoolExecutor, aggregator: Aggregator, update: Update, rank: int) -> None:
        self.kept = 0
        """Blocks that wait for their turn in the memory that this sender gave away."""
        self.at = -1
        """The block that is being added."""
        self._aggregator, self._update, self._rank = aggregator, update, rank
        self.done: Future[None] = pool.submit(self._send)

    def _send(self) -> None:
        for index in range(len(self._aggregator.blocks)):
            self.at = index
            self.kept += self._aggregator.add(self._update, self._rank, 0, index, torch.ones(BLOCK))


def wait_until_still(senders: list[Sender], blocks: int) -> None:
    """Until all senders send, and so many blocks are kept; or all are done."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        begun = all(sender.at >= 0 for sender in senders)
        if (begun and sum(s.kept for s in senders) >= blocks) or all(s.done.done() for s in senders):
            return
        pause.wait(0.005)
    raise AssertionError([(sender.at, sender.kept) for sender in senders])


BLOCKS = 40
SPARE = BLOCKS // 2
"""Blocks of a large model that may wait for their turn."""


def new_large_aggregator(workers: int) -> Aggregator:
    """One whose blocks are as few as they are here, but as large as those of a large model."""
    with patch("runtime.aggregation.SPARE_LENGTH", 0):
        return new_aggregator(BLOCKS, workers)


def test_no_more_blocks_wait_for_their_turn_than_half_the_parameters_have_and_senders_are_held_back() -> None:
    aggregator = new_large_aggregator(4)
    update = update_of(aggregator, *range(4))
    with ThreadPoolExecutor(3) as pool:
        early = [Sender(pool, aggregator, update, rank) for rank in (1, 2, 3)]
        wait_until_still(early, SPARE)
        time.sleep(0.1)
        # Given three gradients are there before the first one, half of one is kept, and all are held back
        assert sum(sender.kept for sender in early) == SPARE
        assert not any(sender.done.done() for sender in early if sender.at < BLOCKS - 1)
        assert applied_to(update) == set()
        # When the first one comes, all are freed
        for index in range(BLOCKS):
            aggregator.add(update, 0, 0, index, torch.ones(BLOCK))
        for sender in early:
            sender.done.result(PATIENCE)
    assert applied_to(update) == set(range(BLOCKS))
    assert torch.equal(aggregator.parameters, torch.ones(BLOCKS * BLOCK))
    # And for how long is known, of each
    assert set(update.held_seconds) == {1, 2, 3}
    assert all(0.05 <= seconds < PATIENCE for seconds in update.held_seconds.values())
    assert aggregator.apply_seconds < sum(update.held_seconds.values()), "which is no work"
    # And the memory can be used again
    again = update_of(aggregator, *range(4))
    for index in range(SPARE):
        assert aggregator.add(again, 1, 1, index, torch.ones(BLOCK))


def test_memory_that_does_not_change_until_its_worker_is_answered_takes_no_spare_block() -> None:
    aggregator = new_large_aggregator(4)
    update = update_of(aggregator, *range(4))
    for rank in (3, 2, 1):
        for index in range(BLOCKS):
            assert not aggregator.add(update, rank, 0, index, torch.ones(BLOCK), lasting=True)
    for index in range(BLOCKS):
        aggregator.add(update, 0, 0, index, torch.ones(BLOCK))
    assert applied_to(update) == set(range(BLOCKS))


@pytest.mark.parametrize("ending", ["lost", "stopped"])
def test_who_is_held_back_is_freed_when_its_turn_will_not_come(ending: str) -> None:
    aggregator = new_large_aggregator(3)
    update = update_of(aggregator, *range(3))
    with ThreadPoolExecutor(2) as pool:
        early = [Sender(pool, aggregator, update, rank) for rank in (1, 2)]
        wait_until_still(early, SPARE)
        if ending == "lost":
            aggregator.away |= {0}
            aggregator.lose(update, 0)
        else:
            aggregator.stop()
        for sender in early:
            sender.done.result(PATIENCE)
    if ending == "lost":
        assert applied_to(update) == set(range(BLOCKS))
        assert torch.equal(aggregator.parameters, torch.ones(BLOCKS * BLOCK))


def test_a_sender_that_is_lost_while_it_is_held_back_adds_nothing() -> None:
    aggregator = new_large_aggregator(3)
    update = update_of(aggregator, *range(3))
    for index in range(SPARE):
        assert aggregator.add(update, 1, 0, index, torch.ones(BLOCK))
    with ThreadPoolExecutor(1) as pool:
        held = Sender(pool, aggregator, update, 2)
        pause = threading.Event()
        while held.at < 0:
            pause.wait(0.005)
        aggregator.away |= {2}
        aggregator.lose(update, 2)
        held.done.result(PATIENCE)
    for index in range(BLOCKS):
        aggregator.add(update, 0, 0, index, torch.ones(BLOCK))
        if index >= SPARE:
            aggregator.add(update, 1, 0, index, torch.ones(BLOCK))
    assert torch.equal(aggregator.parameters, torch.ones(BLOCKS * BLOCK))


def test_what_a_lost_member_added_stays_and_what_only_waited_for_its_turn_does_not() -> None:
    aggregator = new_aggregator(2, 3)
    update = update_of(aggregator, *range(3), decided=False)
    # Given rank 0 has added its first block, and rank 1 waits with both
    aggregator.add(update, 0, 0, 0, torch.full((BLOCK,), 6.0))
    for index in range(2):
        aggregator.add(update, 1, 0, index, torch.full((BLOCK,), 3.0), lasting=True)
    aggregator.away |= {0}
    aggregator.lose(update, 0)
    update.decided = True
    for index in range(2):
        aggregator.add(update, 2, 0, index, torch.zeros(BLOCK))
    assert aggregator.parameters.view(2, BLOCK)[:, 0].tolist() == [3.0, 1.5]


def test_a_lost_member_that_is_back_joins_the_update_once_more() -> None:
    aggregator = new_aggregator(1, 2)
    update = update_of(aggregator, 0, decided=False)
    aggregator.add(update, 0, 0, 0, torch.full((BLOCK,), 9.0))
    aggregator.lose(update, 0)
    update.members |= {0, 1}
    aggregator.add(update, 1, 0, 0, torch.full((BLOCK,), 3.0), lasting=True)
    update.decided = True
    # The block waits for the new gradient, not for the old one
    assert applied_to(update) == set()
    aggregator.add(update, 0, 1, 0, torch.full((BLOCK,), 6.0))
    assert applied_to(update) == {0}
    assert aggregator.parameters[0] == 6.0


def test_nobodys_turn_waits_for_a_worker_that_came_back_after_the_update_was_decided_on() -> None:
    aggregator = new_aggregator(2, 2)
    aggregator.away = frozenset({0})
    update = update_of(aggregator, 1)
    aggregator.add(update, 1, 0, 0, torch.ones(BLOCK))
    aggregator.away = frozenset()
    aggregator.add(update, 1, 0, 1, torch.ones(BLOCK))
    assert applied_to(update) == {0, 1}


def test_who_was_lost_before_any_of_its_gradient_came_leaves_an_update_of_nothing() -> None:
    aggregator = new_aggregator(2, 1)
    update = update_of(aggregator, 0)
    aggregator.lose(update, 0)
    assert applied_to(update) == {0, 1}
    assert not aggregator.add(update, 0, 0, 0, torch.ones(BLOCK))
    assert not aggregator.parameters.any()


def test_one_gradient_alone_is_applied_as_it_is_and_not_copied() -> None:
    seen: list[Tensor] = []

    class Watching(MomentumSGD):
        def step(self, gradient: Tensor, factor: float = 1.0) -> None:  # noqa: ARG002 - as its base
            seen.append(gradient)

    aggregator = Aggregator(torch.zeros(BLOCK), partial(Watching, learning_rate=1.0, momentum=0.0), workers=2)
    gradient = torch.ones(BLOCK)
    assert not aggregator.add(update_of(aggregator, 1), 1, 0, 0, gradient)
    assert seen[0] is gradient
    weighted = update_of(aggregator, 1)
    weighted.weight = 0.5
    aggregator.add(weighted, 1, 1, 0, gradient)
    assert seen[1].tolist() == [0.5] * BLOCK


def test_the_learning_rate_of_an_update_is_its_own() -> None:
    aggregator = new_aggregator(1, 1)
    update = update_of(aggregator, 0)
    update.learning_factor = 0.25
    aggregator.add(update, 0, 0, 0, torch.ones(BLOCK))
    assert aggregator.parameters[0] == 0.25


@pytest.mark.parametrize("in_rank_order", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_after_a_restore_a_block_takes_what_it_lacks_and_no_more(
    in_rank_order: bool, order: tuple[int, int]
) -> None:
    first = new_aggregator(2, 2, in_rank_order=in_rank_order)
    half = update_of(first, 0, 1)
    for rank, index in [(0, 0), (1, 0), (0, 1)]:
        first.add(half, rank, 0, index, torch.full((BLOCK,), 2.0 + rank), lasting=True)
    # Given one block got both gradients, and the other one waits for the second
    parameters, steps, states = first.snapshot()
    assert steps == [[1, 1], [0, 0]], "what only waits has not been applied"
    second = new_aggregator(2, 2, in_rank_order=in_rank_order)
    second.restore(parameters, steps, states)
    again = update_of(second, 0, 1)
    for rank in order:
        for index in range(2):
            second.add(again, rank, 0, index, torch.full((BLOCK,), 2.0 + rank), lasting=True)
    assert applied_to(again) == {0, 1}
    assert second.parameters.tolist() == [2.5] * (2 * BLOCK)


def test_followers_hear_of_each_block_once_whenever_they_come() -> None:
    aggregator = new_aggregator(3, 1)
    update = update_of(aggregator, 0)
    early: list[int] = []
    late: list[int] = []
    update.follow(early.append)
    aggregator.add(update, 0, 0, 0, torch.ones(BLOCK))
    update.follow(late.append)
    for index in (1, 2):
        aggregator.add(update, 0, 0, index, torch.ones(BLOCK))
    aggregator.settle(update)
    assert early == late == [0, 1, 2]


def test_reading_never_sees_half_an_update() -> None:
    aggregator = new_aggregator(1, 1)
    stop = threading.Event()

    def read() -> int:
        out, reads = torch.empty(BLOCK), 0
        while not stop.is_set():
            aggregator.read(0, out)
            assert bool((out == out[0]).all())
            reads += 1
        return reads

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for step in range(300):
            aggregator.add(update_of(aggregator, 0), 0, step, 0, torch.ones(BLOCK))
        stop.set()
        reader.result(PATIENCE)
    assert aggregator.parameters[0] == 300
    assert aggregator.apply_seconds > 0
    assert aggregator.lock_seconds >= 0
