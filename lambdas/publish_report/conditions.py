"""Conditions of a study: completed experiments by mode and number of workers, seeds side by side.

Pure; what plots, findings and tables mean by "async with 4 workers".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from contract.aggregation import Mode
from lambdas.publish_report.estimates import Spread, spread
from lambdas.publish_report.results import ExperimentResult

Measure = Callable[[ExperimentResult], float | None]


@dataclass(frozen=True)
class Condition:
    """All completed experiments of one mode with one number of workers; `results` is never empty."""

    mode: Mode
    workers: int
    results: Sequence[ExperimentResult]

    def spread(self, measure: Measure) -> Spread | None:
        """Mean and range of a figure over the seeds; None where none has it."""
        return spread(measure(result) for result in self.results)


def conditions(results: Iterable[ExperimentResult], mode: Mode) -> list[Condition]:
    """The completed experiments of `mode`, by number of workers, ascending; seeds ascending in each."""
    found: dict[int, list[ExperimentResult]] = {}
    for result in sorted(results, key=lambda result: (result.total_workers, result.seed)):
        if result.completed and result.mode is mode:
            found.setdefault(result.total_workers, []).append(result)
    return [Condition(mode, workers, together) for workers, together in found.items()]


def compared(results: Sequence[ExperimentResult]) -> list[tuple[Condition, Condition]]:
    """(sync, async) for every number of workers that completed in both modes, ascending."""
    of_async = {condition.workers: condition for condition in conditions(results, Mode.ASYNC)}
    return [
        (condition, of_async[condition.workers])
        for condition in conditions(results, Mode.SYNC)
        if condition.workers in of_async
    ]


def pairs(first: Condition, second: Condition, measure: Measure) -> list[tuple[float, float]]:
    """A figure under both conditions, for every seed that has it under both."""
    by_seed = [
        {r.seed: value for r in condition.results if (value := measure(r)) is not None}
        for condition in (first, second)
    ]
    return [(value, by_seed[1][seed]) for seed, value in by_seed[0].items() if seed in by_seed[1]]
