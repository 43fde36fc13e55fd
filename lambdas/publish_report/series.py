"""Series that plots draw and tables list: over the epochs of a condition, over the conditions of a mode.

Pure; what was not measured is not in a series, so that nothing is drawn where nothing was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from lambdas.publish_report.conditions import Condition, Measure, pairs
from lambdas.publish_report.estimates import Spread, paired_ratio, spread

Series = Mapping[int, Spread]
"""Epoch or number of workers, ascending → mean and range."""


def epoch_durations(condition: Condition) -> Series:
    """Per epoch the mean over workers and seeds, and the fastest and slowest of all of them."""
    by_epoch: dict[int, list[tuple[float, float, float]]] = {}
    for result in condition.results:
        for epoch in result.worker_metrics_aggregated.epoch_times_by_epoch:
            by_epoch.setdefault(epoch.epoch, []).append((epoch.avg_time, epoch.min_time, epoch.max_time))
    series = {}
    for number, times in sorted(by_epoch.items()):
        averages, fastest, slowest = zip(*times, strict=True)
        series[number] = Spread(fmean(averages), min(fastest), max(slowest), len(times))
    return series


def epoch_accuracies(condition: Condition) -> Series:
    """Per epoch the mean and range over seeds, of epochs that all workers tested."""
    by_epoch: dict[int, list[float | None]] = {}
    for result in condition.results:
        for epoch in result.worker_metrics_aggregated.accuracy_by_epoch:
            if epoch.workers == condition.workers:
                by_epoch.setdefault(epoch.epoch, []).append(epoch.test_accuracy_percent)
    return {
        number: measured
        for number, values in sorted(by_epoch.items())
        if (measured := spread(values)) is not None
    }


def over_workers(found: Iterable[Condition], measure: Measure) -> Series:
    """A figure for every number of workers that has it."""
    return {
        condition.workers: measured
        for condition in found
        if (measured := condition.spread(measure)) is not None
    }


def speed_up(found: Sequence[Condition]) -> Series:
    """How many times sooner than with the `baseline` of the same mode: geometric mean over seeds, and range."""
    timed = _timed(found)
    series = {}
    for condition in timed:
        times = pairs(timed[0], condition, lambda result: result.training_seconds)
        relative = paired_ratio(times)
        if relative is not None:
            ratios = [base / time for base, time in times if base > 0 and time > 0]
            low, high = min(ratios), max(ratios)
            # Logarithms and back may end a rounding error outside
            series[condition.workers] = Spread(min(max(relative.value, low), high), low, high, len(ratios))
    return series


def baseline(found: Sequence[Condition]) -> int | None:
    """The fewest workers whose training time is known: what `speed_up` refers to."""
    return next((condition.workers for condition in _timed(found)), None)


def _timed(found: Sequence[Condition]) -> list[Condition]:
    return [condition for condition in found if condition.spread(lambda result: result.training_seconds)]
