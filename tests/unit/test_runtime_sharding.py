"""Shards of training and test samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import TrainingFailed
from runtime.sharding import Sharding, share_of_tests

SHARDINGS = st.builds(
    Sharding,
    samples=st.integers(32, 2000),
    workers=st.integers(1, 32),
    batch_size=st.integers(1, 200),
    seed=st.integers(0, 2**31 - 1),
)


@settings(deadline=None)
@given(sharding=SHARDINGS, epoch=st.integers(1, 100))
def test_the_shards_of_an_epoch_make_up_all_samples_once(sharding: Sharding, epoch: int) -> None:
    shards = [sharding.shard(rank, epoch) for rank in range(sharding.workers)]
    assert sorted(torch.cat(shards).tolist()) == list(range(sharding.samples))


@settings(deadline=None)
@given(sharding=SHARDINGS, epoch=st.integers(1, 100))
def test_every_rank_makes_the_same_number_of_steps_with_batches_of_its_shard(
    sharding: Sharding, epoch: int
) -> None:
    for rank in range(sharding.workers):
        batches = sharding.batches(rank, epoch)
        assert len(batches) == sharding.steps_per_epoch >= 1
        assert {len(batch) for batch in batches} == {sharding.batch}
        assert torch.equal(torch.cat(batches), sharding.shard(rank, epoch)[: sum(map(len, batches))])
    smallest = sharding.samples // sharding.workers
    assert sharding.batch == min(sharding.batch_size, smallest)
    assert smallest - sharding.batch < sharding.steps_per_epoch * sharding.batch <= smallest


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    sharding, other = (Sharding(samples=100, workers=2, batch_size=8, seed=seed) for seed in (0, 1))
    orders = [sharding.shard(0, 1), sharding.shard(0, 2), other.shard(0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert torch.equal(sharding.shard(0, 1), orders[0])


@settings(deadline=None)
@given(samples=st.integers(0, 1000), workers=st.integers(1, 32))
def test_the_shares_make_up_the_test_set_once(samples: int, workers: int) -> None:
    shares = [share_of_tests(samples, workers, rank) for rank in range(workers)]
    assert sorted(torch.cat(shares).tolist()) == list(range(samples))


def test_more_workers_than_samples_are_refused() -> None:
    with pytest.raises(TrainingFailed, match="3 training samples are too few for 4 workers"):
        Sharding(samples=3, workers=4, batch_size=1, seed=0)
