"""What the instrumentation of a step costs, from the bottom up: how often it does what, and what each of them takes.

Pure but for the clock: `measured_costs` runs the runtime's own code, many times over, in the bench's main process.
"""

import timeit
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Final

from bench.substitution import ALL_TRAINING, CLOCK, RECEIVES, SENDS
from runtime.accounting import Accounting
from runtime.membership import Membership
from runtime.training import Figures

SUMS = "a worker's sums"
"""Those of a training step; counted as the sum of all its figures, which is more than a step adds."""

REPEATS: Final = 9
CALLS_EACH: Final = 5_000
HEAD_BYTES: Final = 12


def measured_costs(*, workers: int, gradients: int, waited_seconds: float) -> dict[str, float]:
    """Seconds of each thing that is counted, with so many workers and gradients in an update.

    `waited_seconds`: of a gradient, which the time that it takes to count it depends on.

    In a loop, where all is in the processor's cache: in a step some of it will cost more.
    """
    accounting, member, stream = Accounting(), _in_training(workers), SimpleNamespace(count=0, seconds=0.0)
    accounting.start(0.0)
    accounting.all_training = True
    stalenesses = [0] * gradients
    figures, step = Figures(), Figures(steps=1, training=1.0)

    def add_up() -> None:
        nonlocal figures
        figures += step

    def interval() -> None:
        began = timeit.default_timer()
        stream.seconds += timeit.default_timer() - began

    def count() -> None:
        stream.count += HEAD_BYTES + 4

    empty = _seconds(lambda: None)
    costs = {
        CLOCK: _seconds(interval) / 2,
        "update": _seconds(lambda: accounting.update(1.0, stalenesses)),
        "wait": _seconds(lambda: accounting.wait(waited_seconds)),
        "drop": _seconds(accounting.drop),
        "repeat": _seconds(accounting.repeat),
        ALL_TRAINING: _seconds(lambda: member.all_training),
        SENDS: _seconds(count),
        RECEIVES: _seconds(count),
        SUMS: _seconds(add_up),
    }
    return {name: max(seconds - empty, 0.0) for name, seconds in costs.items()}


def cost_of_step(counts: Mapping[str, float], costs: Mapping[str, float]) -> float:
    """Seconds of instrumentation in a step, as if nothing of it ran beside anything else."""
    return sum(count * costs[name] for name, count in counts.items())


def _seconds(call: Callable[[], object]) -> float:
    # What else the machine does only adds to it.
    return min(timeit.repeat(call, number=CALLS_EACH, repeat=REPEATS)) / CALLS_EACH


def _in_training(workers: int) -> Membership:
    """All of them in the middle of it: none can be left out."""
    membership = Membership(workers)
    for rank in range(workers):
        membership.join(rank)
        membership.attend(rank)
        membership.ready(rank, steps=3, next_step=1)
    return membership
