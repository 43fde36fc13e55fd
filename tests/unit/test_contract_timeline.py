"""How long a training lasts: the modes' rules end when the server's own policies do, and obey the laws."""

from math import fsum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.aggregation import Aggregation, Mode
from contract.compute import Compute, Straggler
from contract.draws import draw_seconds
from contract.timeline import last_finish
from tests.unit.virtual_time import Simulation

DISTRIBUTIONS: list[dict[str, Any]] = [
    {"distribution": "exponential"},
    {"distribution": "shifted-exponential", "shift_ms": 30},
    {"distribution": "pareto", "tail_index": 3},
]


@st.composite
def trainings(draw: st.DrawFn) -> tuple[Mode, dict[str, Any], int, int, Compute]:
    """A mode with what it must be told, workers, steps of each, and compute."""
    mode, workers = draw(st.sampled_from(list(Mode))), draw(st.integers(2, 6))
    told: dict[str, Any] = {}
    match mode:
        case Mode.BACKUP:
            told = {"backup_workers": draw(st.integers(1, workers - 1))}
        case Mode.KSYNC | Mode.KASYNC:
            told = {"k": draw(st.integers(1, workers))}
        case Mode.SSP:
            told = {"staleness_bound": draw(st.integers(0, 4))}
        case Mode.DC_ASGD:
            told = {"dc_lambda": 0.04}
    stragglers = [Straggler(rank=0, slowdown=5)] if draw(st.booleans()) else []
    compute = Compute(mode="emulated", stragglers=stragglers, **draw(st.sampled_from(DISTRIBUTIONS)))
    return mode, told, workers, draw(st.integers(1, 12)), compute


@settings(deadline=None, max_examples=200)
@given(trainings())
def test_it_ends_when_the_servers_policies_do(
    training: tuple[Mode, dict[str, Any], int, int, Compute],
) -> None:
    mode, told, workers, steps, compute = training
    simulation = Simulation(mode, workers, steps, compute, **told)
    simulation.run()
    expected = last_finish(
        mode, Aggregation(**told), workers, steps, lambda rank, step: draw_seconds(0, rank, step, compute)
    )
    assert expected == pytest.approx(simulation.now)


def harmonic(n: int) -> float:
    return fsum(1 / i for i in range(1, n + 1))


@pytest.mark.parametrize(
    ("mode", "told", "law"),
    [
        (Mode.SYNC, {}, harmonic(8)),
        (Mode.BACKUP, {"backup_workers": 2}, harmonic(8) - harmonic(2)),
        (Mode.KSYNC, {"k": 3}, harmonic(8) - harmonic(5)),
    ],
)
def test_a_step_behind_a_barrier_is_the_law_of_ordered_draws(
    mode: Mode, told: dict[str, Any], law: float
) -> None:
    compute, steps = Compute(mode="emulated", mean_ms=1000), 4000
    ends = last_finish(
        mode, Aggregation(**told), 8, steps, lambda rank, step: draw_seconds(3, rank, step, compute)
    )
    assert ends / steps == pytest.approx(law, rel=0.03)


def test_constant_steps_take_as_long_in_every_mode() -> None:
    for mode, told in (
        (Mode.SYNC, {}),
        (Mode.ASYNC, {}),
        (Mode.SSP, {"staleness_bound": 1}),
        (Mode.KASYNC, {"k": 2}),
    ):
        assert last_finish(mode, Aggregation(**told), 4, 10, lambda *_: 0.5) == pytest.approx(5.0)
