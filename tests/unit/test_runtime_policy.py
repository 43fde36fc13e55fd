"""Aggregation policies, event by event, without gradients."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.aggregation import KEY_OF, Aggregation, Mode
from runtime.policy import (
    HOLD,
    Async,
    Backup,
    DelayCompensated,
    KAsync,
    KSync,
    Policy,
    Push,
    Ssp,
    StalenessAware,
    Sync,
    Verdict,
    policy_for,
)


def push_of(rank: int, version: int = 0, step: int | None = None) -> Push:
    return Push(rank=rank, step=version if step is None else step, version=version)


def averaged(*ranks: int) -> Verdict:
    """The gradients of these make an update, and all of them go on."""
    return Verdict(update=frozenset(ranks), release=frozenset(ranks))


@settings(deadline=None)
@given(order=st.permutations(range(5)))
def test_sync_holds_every_gradient_until_the_last_and_then_averages_all(order: list[int]) -> None:
    policy = Sync(5)
    assert [policy.push(push_of(rank), 0) for rank in order[:-1]] == [HOLD] * 4
    verdict = policy.push(push_of(order[-1]), 0)
    assert verdict == Verdict(update=frozenset(range(5)), release=frozenset(range(5)))


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
    assert policy.leave(1) == averaged(0, 2)
    assert policy.leave(0) == HOLD
    assert policy.push(push_of(2, 1), 1) == averaged(2)


@settings(deadline=None)
@given(ranks=st.lists(st.integers(0, 7), min_size=1))
def test_async_applies_each_gradient_on_arrival(ranks: list[int]) -> None:
    policy = Async()
    for version, rank in enumerate(ranks):
        assert policy.push(push_of(rank), version) == averaged(rank)
    assert policy.leave(ranks[0]) == HOLD


@pytest.mark.parametrize("policy", [KSync(4, k=3), Backup(4, backup_workers=1)], ids=["ksync", "backup"])
def test_the_first_k_of_a_version_count_and_the_rest_start_over(policy: Policy) -> None:
    # Given the quorum is 3 of 4
    assert [policy.push(push_of(rank), 0) for rank in (3, 0)] == [HOLD] * 2
    # When the third gradient comes, then the fourth worker is cancelled
    assert policy.push(push_of(2), 0) == replace(averaged(0, 2, 3), cancelled=frozenset({1}))
    # And what it pushes is dropped; it goes on at once, and may be among the first of the next version
    late = frozenset({1})
    assert policy.push(push_of(1), 1) == Verdict(release=late, dropped=late)
    assert [policy.push(push_of(rank, 1), 1) for rank in (1, 3)] == [HOLD] * 2
    assert policy.push(push_of(0, 1), 1).cancelled == frozenset({2})


def test_kasync_takes_the_first_k_of_any_version_and_lets_the_rest_compute() -> None:
    policy = KAsync(3, k=2)
    assert policy.push(push_of(0), 0) == HOLD
    assert policy.push(push_of(1), 0) == averaged(0, 1)
    # The third worker's gradient on version 0 counts in the next update
    assert policy.push(push_of(2, 0), 1) == HOLD
    assert policy.push(push_of(1, 1), 1) == averaged(1, 2)


@pytest.mark.parametrize("policy", [KSync(3, k=2), KAsync(3, k=2)])
def test_a_quorum_is_never_more_than_those_who_still_train(policy: Policy) -> None:
    assert policy.push(push_of(0), 0) == HOLD
    assert policy.leave(1) == HOLD
    assert policy.leave(2) == averaged(0)
    assert policy.push(push_of(0, 1), 1) == averaged(0)
    assert policy.leave(0) == HOLD


@pytest.mark.parametrize("policy", [KSync(3, k=2), KAsync(3, k=2), Backup(3, backup_workers=1), Sync(2)])
def test_a_quorum_forgets_what_a_lost_worker_pushed_and_counts_on_it_again_once_it_is_back(
    policy: Policy,
) -> None:
    assert policy.push(push_of(0), 0) == HOLD
    # Given worker 0 is lost, its gradient counts for no quorum
    assert policy.leave(0) == HOLD
    policy.enter(0, step=4)
    assert policy.push(push_of(1), 0) == HOLD
    assert policy.push(push_of(0, step=4), 0).update == frozenset({0, 1})


def test_ssp_applies_at_once_and_holds_who_is_too_far_ahead() -> None:
    policy = Ssp(2, staleness_bound=1)
    both = frozenset({0, 1})
    assert policy.push(push_of(0, step=0), 0) == averaged(0)
    # Clock 2 against 0 is more than 1 ahead: applied, and held
    assert policy.push(push_of(0, step=1), 1) == Verdict(update=frozenset({0}))
    assert policy.push(push_of(1, step=0), 2) == Verdict(update=frozenset({1}), release=both)


def test_ssp_does_not_wait_for_a_worker_that_has_finished() -> None:
    policy = Ssp(3, staleness_bound=0)
    assert policy.push(push_of(0, step=0), 0) == Verdict(update=frozenset({0}))
    assert policy.push(push_of(1, step=0), 1) == Verdict(update=frozenset({1}))
    assert policy.leave(2) == Verdict(release=frozenset({0, 1}))
    assert policy.leave(0) == HOLD
    assert policy.leave(1) == HOLD


def test_ssp_waits_for_a_worker_that_is_back_from_the_step_that_it_goes_on_with() -> None:
    policy = Ssp(2, staleness_bound=1)
    policy.push(push_of(0, step=0), 0)
    policy.push(push_of(0, step=1), 1)
    assert policy.leave(1) == Verdict(release=frozenset({0}))
    assert policy.push(push_of(0, step=2), 2) == averaged(0)
    policy.enter(1, step=2)
    # Clock 4 against 2
    assert policy.push(push_of(0, step=3), 3) == Verdict(update=frozenset({0}))
    assert policy.push(push_of(1, step=2), 4).release == frozenset({0, 1})


@pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (1, 1.0), (2, 0.5), (30, 1 / 30)])
def test_staleness_aware_divides_by_staleness(staleness: int, weight: float) -> None:
    version = 30
    verdict = StalenessAware().push(push_of(1, version - staleness), version)
    assert verdict == replace(averaged(1), weight=weight)


def test_only_dc_asgd_asks_for_compensation() -> None:
    told = Aggregation(backup_workers=1, staleness_bound=0, k=2, dc_lambda=0.04)
    asked = {mode: policy_for(mode, 3, told).delay_compensation for mode in Mode}
    assert {mode: value for mode, value in asked.items() if value} == {Mode.DC_ASGD: 0.04}
    assert policy_for(Mode.DC_ASGD, 3, told).push(push_of(2, 0), 5) == averaged(2)


def test_every_mode_has_its_policy_and_is_told_what_it_needs() -> None:
    told = Aggregation(backup_workers=1, staleness_bound=0, k=2, dc_lambda=0.04)
    assert {mode: type(policy_for(mode, 3, told)) for mode in Mode} == {
        Mode.SYNC: Sync,
        Mode.ASYNC: Async,
        Mode.BACKUP: Backup,
        Mode.SSP: Ssp,
        Mode.KSYNC: KSync,
        Mode.KASYNC: KAsync,
        Mode.STALENESS_AWARE: StalenessAware,
        Mode.DC_ASGD: DelayCompensated,
    }
    for mode in KEY_OF:
        with pytest.raises(ValueError, match=f"mode {mode} is not told"):
            policy_for(mode, 3)
