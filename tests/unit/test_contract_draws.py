"""Draws of emulated compute."""

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.compute import Compute, Straggler
from contract.draws import draw_seconds
from contract.seeding import derive_seed

PLACES = {"seed": st.integers(0, 2**31), "rank": st.integers(0, 31), "step": st.integers(0, 10**6)}
DISTRIBUTIONS: list[dict[str, Any]] = [
    {"distribution": "constant"},
    {"distribution": "exponential"},
    {"distribution": "shifted-exponential", "shift_ms": 30},
    {"distribution": "pareto", "tail_index": 5},
]


def compute_of(**settings: Any) -> Compute:
    return Compute(mode="emulated", **settings)


@settings(deadline=None)
@given(**PLACES, distribution=st.sampled_from(DISTRIBUTIONS))
def test_a_draw_depends_on_its_place_only(
    seed: int, rank: int, step: int, distribution: dict[str, Any]
) -> None:
    compute = compute_of(**distribution)
    draw = draw_seconds(seed, rank, step, compute)
    assert draw == draw_seconds(seed, rank, step, compute)
    assert draw >= 0
    assert math.isfinite(draw)
    slow = compute_of(**distribution, stragglers=[Straggler(rank=rank, slowdown=10)])
    assert draw_seconds(seed, rank, step, slow) == pytest.approx(10 * draw)
    assert draw_seconds(seed, rank + 1, step, slow) == draw_seconds(seed, rank + 1, step, compute)


@settings(deadline=None)
@given(**PLACES)
def test_no_draw_is_below_what_its_distribution_can_give(seed: int, rank: int, step: int) -> None:
    constant, exponential, shifted, pareto = (
        draw_seconds(seed, rank, step, compute_of(**distribution)) for distribution in DISTRIBUTIONS
    )
    assert constant == 0.05
    assert 0 <= exponential < 50 / 1000 * 64 * math.log(2)
    assert shifted == pytest.approx(0.03 + exponential * 0.4)
    assert pareto >= 0.05 * 4 / 5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: d["distribution"])
def test_draws_have_the_mean_and_the_deviation_that_are_documented(distribution: dict[str, Any]) -> None:
    compute = compute_of(**distribution)
    draws = [draw_seconds(0, rank, step, compute) for rank in range(8) for step in range(2500)]
    # The standard error of the mean of 20,000 draws is at most 0.7 %; fixed draws, so this never flickers.
    assert statistics.mean(draws) == pytest.approx(0.05, rel=0.02)
    assert compute.deviation_ms is not None
    # A Pareto draw's fourth moment is large: its sample deviation wanders.
    assert statistics.stdev(draws) == pytest.approx(compute.deviation_ms / 1000, rel=0.06, abs=1e-12)


def test_a_long_tail_has_no_deviation_but_the_median_that_is_documented() -> None:
    compute = compute_of(distribution="pareto", tail_index=1.5)
    assert compute.deviation_ms is None
    draws = [draw_seconds(0, rank, step, compute) for rank in range(4) for step in range(2500)]
    assert statistics.median(draws) == pytest.approx(0.05 * 0.5 / 1.5 * 2 ** (1 / 1.5), rel=0.02)


def test_the_slowest_of_four_draws_takes_as_long_as_the_law_says() -> None:
    compute = compute_of(mean_ms=1000)
    slowest = [max(draw_seconds(3, rank, step, compute) for rank in range(4)) for step in range(5000)]
    assert statistics.mean(slowest) == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=0.03)


def test_purposes_have_independent_numbers() -> None:
    assert derive_seed("shuffle", 1, 2) != derive_seed("compute", 1, 2)
    assert derive_seed("compute", 1, 23) != derive_seed("compute", 12, 3)
    assert 0 <= derive_seed("shuffle", 0) < 2**63
