"""The pools of blocks and payloads: what came back is handed out again, and nothing to two at a time."""

import torch

from runtime.aggregation import Aggregator
from runtime.optimizer import MomentumSGD
from runtime.parameters import memory_of
from runtime.pool import BlockPool, PayloadPool
from runtime.update import Update


def test_a_block_that_came_back_is_handed_out_again_by_its_length() -> None:
    pool = BlockPool()
    long, short = pool.take(8), pool.take(3)
    pool.give(long)
    pool.give(short)
    assert pool.take(3) is short
    assert pool.take(8) is long
    assert pool.take(8) is not long


def test_a_block_is_lent_for_a_context() -> None:
    pool = BlockPool()
    with pool.lent(8) as lent:
        assert pool.take(8) is not lent
    assert pool.take(8) is lent


def test_a_payload_comes_back_once_nobody_has_a_view_of_it() -> None:
    pool = PayloadPool()
    payload = pool.take(1000)
    assert len(payload) == 1000
    address, view = payload.data_ptr(), memory_of(payload)[10:]
    del payload
    view[0] = 7
    assert pool.take(1000).data_ptr() != address
    del view
    # Of another length, too, if the same power of two fits it.
    assert {pool.take(900).data_ptr() for _ in range(3)} == {address}


def test_steps_of_many_workers_use_the_same_memory_again() -> None:
    aggregator = Aggregator(
        torch.zeros(8),
        lambda block: MomentumSGD(block, learning_rate=1.0, momentum=0.0),
        workers=4,
        in_rank_order=True,
    )
    used = set()
    for step in range(20):
        update = Update(blocks=1)
        update.members |= set(range(4))
        update.decided = True
        for rank in (2, 3, 0, 1):
            gradient = aggregator.pool.take(8).fill_(rank)
            used.add(gradient.data_ptr())
            if not aggregator.add(update, rank, step, 0, gradient):
                aggregator.pool.give(gradient)
    # Three may wait at a time, and the sum is the fourth.
    assert len(used) <= 4
    assert torch.equal(aggregator.parameters, torch.full((8,), -20 * 1.5))
