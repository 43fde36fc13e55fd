"""Learning-rate schedules, against torch's where torch has them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from contract.training import ScheduleName
from runtime.schedule import Schedule

EPOCHS, UPDATES = 12, 5


def rates_of_torch(scheduler: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = scheduler(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def rates_of_ours(schedule: Schedule, updates_per_epoch: int) -> list[float]:
    total = int(schedule.epochs * updates_per_epoch)
    return [schedule.factor(i / updates_per_epoch, (i + 1) / updates_per_epoch) for i in range(total)]


def test_step_falls_as_torchs_at_the_first_update_of_an_epoch() -> None:
    ours = rates_of_ours(Schedule(EPOCHS, "step", decay_epochs=4, decay_factor=0.3), UPDATES)
    theirs = rates_of_torch(lambda o: lr_scheduler.StepLR(o, 4 * UPDATES, gamma=0.3), EPOCHS * UPDATES)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert len(set(ours)) == 3


@pytest.mark.parametrize("updates", [3, 7, 29, 89])
def test_boundaries_are_exact_whatever_divides_an_epoch(updates: int) -> None:
    ours = rates_of_ours(Schedule(EPOCHS, "step", decay_epochs=1, decay_factor=0.5), updates)
    assert ours == [0.5 ** (i // updates) for i in range(EPOCHS * updates)]


def test_cosine_falls_as_torchs() -> None:
    total = EPOCHS * UPDATES
    theirs = rates_of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, total), total)
    assert rates_of_ours(Schedule(EPOCHS, "cosine"), UPDATES) == pytest.approx(theirs, rel=1e-9)


def test_warm_up_rises_linearly_and_the_first_update_counts() -> None:
    ours = rates_of_ours(Schedule(4, warmup_epochs=2), UPDATES)
    assert ours == pytest.approx([(i + 1) / 10 for i in range(10)] + [1.0] * 10)


@given(
    name=st.sampled_from(["constant", "step", "cosine"]),
    begins=st.floats(0, 20),
    span=st.floats(1e-6, 1),
    warmup=st.floats(0, 10),
)
def test_a_factor_is_never_negative_nor_above_one(
    name: ScheduleName, begins: float, span: float, warmup: float
) -> None:
    schedule = Schedule(20, name, decay_epochs=3, warmup_epochs=warmup)
    factor = schedule.factor(begins, begins + span)
    assert 0 <= factor <= 1
    assert math.isfinite(factor)
