"""Conditions of a study: completed experiments by mode, what it was told, and number of workers, runs side by side.

Pure; what plots, findings and tables mean by "async with 4 workers".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from contract.aggregation import KEY_OF, SYMBOL_OF, Mode
from lambdas.publish_report.estimates import Spread, spread
from lambdas.publish_report.results import ExperimentResult

Measure = Callable[[ExperimentResult], float | None]


@dataclass(frozen=True)
class Condition:
    """All completed experiments of one mode, told the same, with one number of workers; never without results."""

    mode: Mode
    label: str
    """The mode, with what it was told where the study tells it several things: "ksync (k = 2)"."""
    workers: int
    results: Sequence[ExperimentResult]

    def by_seed(self, measure: Measure) -> Mapping[int, float]:
        """A figure for every seed that has it, ascending: the mean of the runs that repeat the seed."""
        values: dict[int, list[float]] = {}
        for result in self.results:
            if (value := measure(result)) is not None:
                values.setdefault(result.seed, []).append(value)
        return {seed: fmean(repeated) for seed, repeated in sorted(values.items())}

    def spread(self, measure: Measure) -> Spread | None:
        """Mean and range of a figure over the seeds; None where none has it."""
        return spread(self.by_seed(measure).values())


def conditions(results: Iterable[ExperimentResult], mode: Mode) -> list[Condition]:
    """The completed experiments of `mode`, by what it was told and by number of workers, both ascending.

    Seeds ascend in each; the order of `results` does not matter.
    """
    own = [result for result in results if result.completed and result.mode is mode]
    several = len({_told(result) for result in own}) > 1
    found: dict[tuple[float, int], list[ExperimentResult]] = {}
    for result in sorted(own, key=lambda r: (_told(r), r.total_workers, r.seed, r.experiment_name)):
        found.setdefault((_told(result), result.total_workers), []).append(result)
    return [
        Condition(mode, _label(mode, told if several else None), workers, together)
        for (told, workers), together in found.items()
    ]


def lines(results: Sequence[ExperimentResult]) -> dict[str, list[Condition]]:
    """What a line of a plot joins: label → its conditions by number of workers; in the order of the modes."""
    joined: dict[str, list[Condition]] = {}
    for mode in Mode:
        for condition in conditions(results, mode):
            joined.setdefault(condition.label, []).append(condition)
    return joined


def compared(results: Sequence[ExperimentResult]) -> list[tuple[Condition, Condition]]:
    """(sync, async) for every number of workers that completed in both modes, ascending."""
    of_async = {condition.workers: condition for condition in conditions(results, Mode.ASYNC)}
    return [
        (condition, of_async[condition.workers])
        for condition in conditions(results, Mode.SYNC)
        if condition.workers in of_async
    ]


def pairs(first: Condition, second: Condition, measure: Measure) -> list[tuple[float, float]]:
    """A figure under both conditions, for every seed that has it under both, seeds ascending."""
    one, other = first.by_seed(measure), second.by_seed(measure)
    return [(value, other[seed]) for seed, value in one.items() if seed in other]


def _told(result: ExperimentResult) -> float:
    """What tells variants of a mode apart; a mode that is told nothing has one."""
    return float(result.aggregation.value(result.mode) or 0)


def _label(mode: Mode, told: float | None) -> str:
    return mode.value if told is None else f"{mode} ({SYMBOL_OF[KEY_OF[mode]]} = {told:g})"
