import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.case import Sample, Variant
from bench.harness import (
    MIN_ROUNDS,
    MIN_UPDATES,
    Contestant,
    goes_on,
    laps_for,
    median_interval,
    rounds_for,
    rows_of,
    share_of_time,
    shuffled,
    spread_of,
    updates_each,
)

LIMIT = Contestant("limit", Variant(option="in turn"))
SLOW, FAST = (Contestant("peer", Variant(malloc)) for malloc in ("default", "tuned"))
NAMES = {"limit": ("raw", "tcp"), "absent": ("absent", "tcp"), "peer": ("peer", "tcp")}


def sample(rate: float, *, cpu: float | None = 1.0, peak: int | None = 100) -> Sample:
    return Sample(
        updates=10,
        seconds=10 / rate,
        loopback_bytes=8_000,
        server_cpu_seconds=cpu,
        server_peak_bytes=peak,
    )


def test_a_row_has_the_figures_of_the_fastest_variant() -> None:
    samples = {
        LIMIT: [sample(200)],
        SLOW: [sample(10), sample(1000), sample(11)],
        FAST: [sample(90), sample(100), sample(120, peak=300)],
    }
    limit, peer = rows_of(samples, NAMES, limit="limit", parameters=1000, workers=1)
    assert (limit.system, limit.ratio_to_raw_tcp) == ("raw", 1.0)
    assert (peer.system, peer.variant, peer.rounds) == ("peer", "tuned malloc", 3)
    assert peer.updates_per_second == pytest.approx(100)
    assert peer.updates_per_second_quartiles == pytest.approx((95, 110))
    assert peer.other_variants == {"default malloc": 11}
    assert peer.ratio_to_raw_tcp == 0.5
    assert peer.bytes_per_second == pytest.approx(100 * 8000)
    # One CPU second for ten updates of 8 kB.
    assert peer.server_cpu_seconds_per_gb == pytest.approx(1 / (10 * 8000 / 1e9))
    assert peer.server_peak_bytes == 300
    assert peer.loopback_bytes_per_update == 800


def test_without_a_limit_there_is_no_ratio_and_without_a_server_no_cost() -> None:
    (row,) = rows_of({FAST: [sample(5, cpu=None, peak=None)]}, NAMES, limit="limit", parameters=10, workers=4)
    assert row.ratio_to_raw_tcp is None
    assert row.server_cpu_seconds_per_gb is None
    assert row.server_peak_bytes is None


@given(st.integers(0, 1000))
def test_every_round_has_everyone_once(seed: int) -> None:
    everyone = [LIMIT, SLOW, FAST]
    assert sorted(shuffled(everyone, seed), key=str) == sorted(everyone, key=str)


def test_orders_differ_between_rounds() -> None:
    everyone = [Contestant(str(number), Variant()) for number in range(10)]
    orders = [shuffled(everyone, seed) for seed in range(5)]
    assert shuffled(everyone, 0) == orders[0]
    assert all(one != other for one, other in itertools.pairwise(orders))


@given(st.floats(0.01, 1e5), st.integers(1, 32), st.floats(0.1, 10))
def test_rounds_last_as_long_as_asked_unless_a_system_is_too_slow(
    rate: float, workers: int, seconds: float
) -> None:
    updates = updates_each(rate, workers, seconds)
    assert updates >= MIN_UPDATES
    if updates > MIN_UPDATES:
        assert math.isclose(updates * workers / rate, seconds, abs_tol=0.51 * workers / rate)


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_quartiles_enclose_the_median(figures: list[float]) -> None:
    spread = spread_of(figures)
    assert min(figures) <= spread.lower <= spread.median <= spread.upper <= max(figures)


@pytest.mark.parametrize(
    ("count", "lower", "upper"), [(1, 1, 1), (3, 1, 3), (6, 1, 6), (9, 2, 8), (20, 6, 15)]
)
def test_the_interval_of_a_median_is_between_two_of_the_figures(count: int, lower: int, upper: int) -> None:
    # The ranks of Conover's table A3 for a coin.
    figures = list(range(count, 0, -1))
    assert median_interval(figures) == (lower, upper)


def test_the_interval_has_the_median_as_often_as_it_says() -> None:
    source = random.Random(0)
    draws = ([source.expovariate(1) for _ in range(15)] for _ in range(2000))
    intervals = [median_interval(draw) for draw in draws]
    inside = sum(lower <= math.log(2) <= upper for lower, upper in intervals) / len(intervals)
    # Fifteen coins show four to eleven heads in 96.5 of 100 cases; two thousand draws are off by 0.4.
    assert inside == pytest.approx(0.965, abs=0.013)


def test_what_starts_slowly_has_fewer_rounds() -> None:
    rounds = [(rounds_for(9, workers, slow_start=slow)) for workers in (1, 4, 16) for slow in (False, True)]
    assert rounds == [9, 3, 9, 3, 9, 1]


def test_what_is_started_once_is_timed_several_times() -> None:
    laps = [(laps_for(workers, slow_start=slow)) for workers in (1, 4, 16) for slow in (False, True)]
    assert laps == [1, 1, 1, 1, 1, MIN_ROUNDS]


def test_few_rounds_are_measured_however_late_it_is() -> None:
    assert goes_on(MIN_ROUNDS - 1, 9, in_time=False)
    assert not goes_on(MIN_ROUNDS, 9, in_time=False)
    assert goes_on(8, 9, in_time=True)
    assert not goes_on(9, 9, in_time=True)


def test_time_that_is_not_used_is_shared_by_the_rest() -> None:
    assert share_of_time(0, 90, 9) == 10
    assert share_of_time(2, 90, 8) == 13
    assert share_of_time(100, 90, 2) == 100
