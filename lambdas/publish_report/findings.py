"""Findings: sentences that say which way of training won, as far as the measurements carry.

Pure. A difference is claimed where its 95 % interval excludes "none"; with one seed there is no interval,
so the figures of that run are told, differences below NOISE are not, and the reader is warned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from contract.aggregation import Mode
from lambdas.publish_report.conditions import Condition, compared, conditions, pairs
from lambdas.publish_report.estimates import Estimate, Spread, paired_difference, paired_ratio
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.wording import count, listed, percent, ratio, seconds, signed

NOISE = 0.05
"""Two single runs whose times differ by less than this tell nothing apart."""


@dataclass(frozen=True)
class Findings:
    """What the study says."""

    headline: str
    """The comparison with most workers, or why there is none."""
    sentences: Sequence[str]
    """The other comparisons, from few workers to many, then scaling."""
    notes: Sequence[str]
    """How far to believe them."""


def findings(results: Sequence[ExperimentResult]) -> Findings:
    """Judge the completed experiments of a study."""
    completed = [result for result in results if result.completed]
    if not completed:
        return Findings("No experiment completed: there is nothing to compare.", (), ())
    both = compared(completed)
    paired = [
        _comparison(sync, asynchronous) if sync.workers > 1 else _same_work(sync, asynchronous)
        for sync, asynchronous in both
    ]
    alone = [
        _lonely(condition)
        for mode in Mode
        for condition in conditions(completed, mode)
        if mode not in {Mode.SYNC, Mode.ASYNC} or condition.workers not in {sync.workers for sync, _ in both}
    ]
    *others, headline = [*alone, *paired]
    return Findings(headline, [*others, *_scaling(completed)], _notes(completed))


def _comparison(sync: Condition, asynchronous: Condition) -> str:
    times = pairs(asynchronous, sync, lambda result: result.training_seconds)
    relative = paired_ratio(times)
    with_workers = f"with {count(sync.workers, 'worker')}"
    if relative is None:
        return f"Sync and async {with_workers} share no seed with a measured training time: not compared."
    faster, slower = ("async", "sync") if relative.value <= 1 else ("sync", "async")
    own = [sum(side) / len(times) for side in zip(*times, strict=True)]
    figures = f"{seconds(min(own))} against {seconds(max(own))}"
    accuracy = _accuracy(sync, asynchronous, (faster, slower))
    if relative.has_interval and not relative.excludes(1):
        low, high = ratio(relative.low), ratio(relative.high)
        return (
            f"No difference in training time detected between async and sync {with_workers}"
            f" ({figures}; async takes {low} to {high} of sync's time, 95 % interval over"
            f" {relative.pairs} seeds){accuracy}."
        )
    if not relative.has_interval and abs(relative.value - 1) < NOISE:
        return (
            f"Async and sync {with_workers} took the same time to within {100 * NOISE:.0f} %"
            f" ({seconds(own[0])} against {seconds(own[1])}){accuracy}."
        )
    return (
        f"{faster.capitalize()} {with_workers} finished {_times_sooner(relative)} sooner than {slower}"
        f" ({figures}{_interval_of_speed(relative)}){accuracy}."
    )


def _same_work(sync: Condition, asynchronous: Condition) -> str:
    """With one worker there is no barrier and no staleness: what differs shows how far runs differ."""
    times, accuracies = (
        [_mean(condition.spread(measure)) for condition in (sync, asynchronous)]
        for measure in (lambda r: r.training_seconds, lambda r: r.accuracy_percent)
    )
    return (
        f"With 1 worker sync and async do the same work: {seconds(times[0])} against {seconds(times[1])} and"
        f" {percent(accuracies[0])} against {percent(accuracies[1])} accuracy differ by chance, not by mode."
    )


def _times_sooner(relative: Estimate) -> str:
    return ratio(max(relative.value, 1 / relative.value))


def _interval_of_speed(relative: Estimate) -> str:
    if not relative.has_interval:
        return ""
    ends = sorted(
        [relative.low, relative.high] if relative.value > 1 else [1 / relative.high, 1 / relative.low]
    )
    return f"; 95 % interval {ratio(ends[0])} to {ratio(ends[1])}, {relative.pairs} seeds"


def _accuracy(sync: Condition, asynchronous: Condition, order: tuple[str, str]) -> str:
    """The clause on accuracy, figures in the order in which the sentence named the modes."""
    figures = pairs(asynchronous, sync, lambda result: result.accuracy_percent)
    difference = paired_difference(figures)
    if difference is None:
        return ", and no accuracy was measured in both"
    own = dict(
        zip(("async", "sync"), (sum(side) / len(figures) for side in zip(*figures, strict=True)), strict=True)
    )
    ended = f"{percent(own[order[0]])} against {percent(own[order[1]])}"
    if not difference.has_interval:
        return f" and ended at {ended} accuracy{_images_apart(sync, asynchronous)}"
    if difference.low == difference.high == 0:
        return f" and both ended at {percent(own['sync'])} accuracy with every seed"
    sign = 1 if order[0] == "async" else -1
    low, high = sorted((sign * difference.low, sign * difference.high))
    interval = f"95 % interval {signed(low)} to {signed(high)} points"
    if difference.excludes(0):
        return f" and ended at {ended} accuracy ({interval})"
    return f"; no difference in accuracy was detected ({ended}; {interval})"


def _images_apart(sync: Condition, asynchronous: Condition) -> str:
    """What a difference of single runs is in test samples: the smaller, the less it means."""
    one, other = (condition.results[0].worker_metrics_aggregated for condition in (sync, asynchronous))
    if one.final_test_correct is None or other.final_test_correct is None:
        return ""
    if one.final_test_samples != other.final_test_samples:
        return ""
    apart = abs(one.final_test_correct - other.final_test_correct)
    return f" ({apart} of {count(one.final_test_samples or 0, 'test sample')} apart)"


def _lonely(condition: Condition) -> str:
    other = {Mode.SYNC: Mode.ASYNC, Mode.ASYNC: Mode.SYNC}.get(condition.mode)
    alone = (
        f"no {other} experiment with as many workers completed, so there is no comparison"
        if other
        else "only sync and async are compared in words"
    )
    time, accuracy = (
        _mean(condition.spread(lambda result: result.training_seconds)),
        _mean(condition.spread(lambda result: result.accuracy_percent)),
    )
    return (
        f"{condition.mode.capitalize()} with {count(condition.workers, 'worker')} trained for {seconds(time)}"
        f" and ended at {percent(accuracy)} accuracy; {alone}."
    )


def _mean(measured: Spread | None) -> float | None:
    return measured.mean if measured else None


def _scaling(results: Sequence[ExperimentResult]) -> list[str]:
    """From the fewest to the most workers, in each mode that has several."""
    by_range: dict[tuple[int, int], list[str]] = {}
    for mode in Mode:
        measured = [
            condition
            for condition in conditions(results, mode)
            if condition.spread(lambda r: r.training_seconds)
        ]
        if len(measured) < 2:
            continue
        few, many = measured[0], measured[-1]
        relative = paired_ratio(pairs(few, many, lambda result: result.training_seconds))
        if relative is not None:
            by_range.setdefault((few.workers, many.workers), []).append(_speed_up(mode, relative))
    return [
        f"Going from {few} to {count(many, 'worker')}, {listed(phrases)} (ideal: {many / few:.3g}× faster)."
        for (few, many), phrases in by_range.items()
    ]


def _speed_up(mode: Mode, relative: Estimate) -> str:
    if relative.has_interval and not relative.excludes(1):
        return f"{mode} showed no difference in training time"
    if not relative.has_interval and abs(relative.value - 1) < NOISE:
        return f"{mode} took the same time"
    if relative.value < 1:
        return f"{mode} got {ratio(1 / relative.value)} slower"
    return f"{mode} got {ratio(relative.value)} faster"


def _notes(results: Sequence[ExperimentResult]) -> list[str]:
    seeds = {result.seed for result in results}
    if len(seeds) == 1:
        return [
            f"One seed ({min(seeds)}) gives no interval: these are single runs, and another seed may turn a"
            " small difference round. List several seeds in the study for intervals."
        ]
    return [
        f"{len(seeds)} seeds. Intervals are Student's t over pairs of runs with the same seed"
        " (of logarithms, where ratios are given)."
    ]
