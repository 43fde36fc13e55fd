"""Draws of emulated compute."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.compute import draw_seconds
from runtime.seeding import derive_seed

PLACES = {"seed": st.integers(0, 2**31), "rank": st.integers(0, 31), "step": st.integers(0, 10**6)}


@settings(deadline=None)
@given(**PLACES)
def test_a_draw_depends_on_its_place_only(seed: int, rank: int, step: int) -> None:
    draw = draw_seconds(seed, rank, step, "exponential", 50)
    assert draw == draw_seconds(seed, rank, step, "exponential", 50)
    assert draw == pytest.approx(draw_seconds(seed, rank, step, "exponential", 100) / 2)
    assert 0 <= draw < 50 / 1000 * 64 * math.log(2)
    assert draw_seconds(seed, rank, step, "constant", 50) == 0.05


def test_exponential_draws_have_the_mean_and_the_deviation_that_are_asked_for() -> None:
    draws = [draw_seconds(0, rank, step, "exponential", 50) for rank in range(8) for step in range(2500)]
    # The standard error of 20,000 draws is 0.7 %; fixed draws, so this never flickers.
    assert statistics.mean(draws) == pytest.approx(0.05, rel=0.02)
    assert statistics.stdev(draws) == pytest.approx(0.05, rel=0.03)


def test_the_slowest_of_four_draws_takes_as_long_as_the_law_says() -> None:
    slowest = [
        max(draw_seconds(3, rank, step, "exponential", 1000) for rank in range(4)) for step in range(5000)
    ]
    assert statistics.mean(slowest) == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=0.03)


def test_purposes_have_independent_numbers() -> None:
    assert derive_seed("shuffle", 1, 2) != derive_seed("compute", 1, 2)
    assert derive_seed("compute", 1, 23) != derive_seed("compute", 12, 3)
    assert 0 <= derive_seed("shuffle", 0) < 2**63
