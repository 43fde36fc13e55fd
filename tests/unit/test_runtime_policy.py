"""Aggregation policies, as the server's state drives them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.study import Mode
from runtime.policy import HOLD, Async, Push, Sync, Verdict, policy_for


def push_of(rank: int, version: int = 0) -> Push:
    return Push(rank=rank, step=version, version=version)


@settings(deadline=None)
@given(order=st.permutations(range(5)))
def test_sync_holds_every_gradient_until_the_last_and_then_averages_in_rank_order(order: list[int]) -> None:
    policy = Sync(5)
    assert [policy.push(push_of(rank), 0) for rank in order[:-1]] == [HOLD] * 4
    verdict = policy.push(push_of(order[-1]), 0)
    assert list(verdict.update.items()) == [(rank, 1 / 5) for rank in range(5)]
    assert verdict.release == frozenset(range(5))


@settings(deadline=None)
@given(rounds=st.lists(st.permutations(range(3)), min_size=1, max_size=5))
def test_sync_has_one_barrier_per_step(rounds: list[list[int]]) -> None:
    policy = Sync(3)
    verdicts = [policy.push(push_of(rank, v), v) for v, order in enumerate(rounds) for rank in order]
    assert [bool(verdict.update) for verdict in verdicts] == [False, False, True] * len(rounds)


def test_sync_does_not_wait_for_a_worker_that_has_finished() -> None:
    policy = Sync(3)
    policy.push(push_of(0), 0)
    policy.push(push_of(2), 0)
    assert policy.finish(1) == Verdict(update={0: 0.5, 2: 0.5}, release=frozenset({0, 2}))
    assert policy.finish(0) == HOLD
    assert policy.push(push_of(2, 1), 1) == Verdict(update={2: 1.0}, release=frozenset({2}))


@settings(deadline=None)
@given(ranks=st.lists(st.integers(0, 7), min_size=1))
def test_async_applies_each_gradient_on_arrival(ranks: list[int]) -> None:
    policy = Async()
    for version, rank in enumerate(ranks):
        expected = Verdict(update={rank: 1.0}, release=frozenset({rank}))
        assert policy.push(push_of(rank), version) == expected
    assert policy.finish(ranks[0]) == HOLD


def test_every_mode_has_its_policy() -> None:
    assert {mode: type(policy_for(mode, 2)) for mode in Mode} == {Mode.SYNC: Sync, Mode.ASYNC: Async}
