"""Findings: sentences that say which way of training won, as far as the measurements carry.

Pure. A difference is claimed where its 95 % interval excludes "none"; with one seed there is no interval,
so the figures of that run are told, differences below NOISE are not, and the reader is warned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from contract.aggregation import Mode
from lambdas.publish_report.conditions import Condition, compared, lines, pairs
from lambdas.publish_report.estimates import Estimate, Spread, paired_difference, paired_ratio
from lambdas.publish_report.notes import chosen_by_first_block, notes, overload, partly_tested, unequal_work
from lambdas.publish_report.rankings import NOISE, losses, quorums, ranking, savings, side_by_side
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.wording import ABSENT, capitalized, count, listed, percent, ratio, seconds, signed


@dataclass(frozen=True)
class Findings:
    """What the study says."""

    headline: str
    """The comparison with most workers, or why there is none."""
    sentences: Sequence[str]
    """The other comparisons, from few workers to many, then scaling."""
    warnings: Sequence[str]
    """What the reader must know before believing any of it."""
    notes: Sequence[str]
    """How sure the figures are."""


def findings(results: Sequence[ExperimentResult]) -> Findings:
    """Judge the completed experiments of a study."""
    completed = [result for result in results if result.completed]
    if not completed:
        return Findings("No experiment completed: there is nothing to compare.", (), (), ())
    both, together = compared(completed), side_by_side(completed)
    in_words = {(c.label, c.workers) for group in [*both, *together] for c in group}
    alone = [
        _lonely(condition)
        for line in lines(completed).values()
        for condition in line
        if (condition.label, condition.workers) not in in_words
    ]
    # A ranking says more than the pair of sync and async with as many workers.
    comparisons = [(sync.workers, 0, _compared(sync, asynchronous)) for sync, asynchronous in both]
    comparisons += [(group[0].workers, 1, ranking(group)) for group in together]
    *others, headline = [*alone, *(sentence for _, _, sentence in sorted(comparisons) if sentence)]
    details = [sentence for group in together for sentence in [*quorums(group), *savings(group)]]
    return Findings(
        headline,
        [*others, *details, *_scaling(completed), *losses(completed)],
        [
            *overload(results),
            *unequal_work(completed),
            *partly_tested(completed),
            *chosen_by_first_block(completed),
        ],
        notes(results),
    )


def _compared(sync: Condition, asynchronous: Condition) -> str:
    return _comparison(sync, asynchronous) if sync.workers > 1 else _same_work(sync, asynchronous)


def _comparison(sync: Condition, asynchronous: Condition) -> str:
    times = pairs(asynchronous, sync, lambda result: result.training_seconds)
    relative = paired_ratio(times)
    with_workers = f"with {count(sync.workers, 'worker')}"
    both = f"{asynchronous.label} and {sync.label}"
    if relative is None:
        return (
            f"{capitalized(both)} {with_workers} share no seed with a measured training time: not compared."
        )
    faster, slower = (asynchronous, sync) if relative.value <= 1 else (sync, asynchronous)
    own = [sum(side) / len(times) for side in zip(*times, strict=True)]
    figures = f"{seconds(min(own))} against {seconds(max(own))}"
    accuracy = _accuracy(faster, slower)
    if relative.has_interval and not relative.excludes(1):
        low, high = ratio(relative.low), ratio(relative.high)
        return (
            f"No difference in training time detected between {both} {with_workers}"
            f" ({figures}; {asynchronous.label} takes {low} to {high} of {sync.label}'s time, 95 % interval over"
            f" {relative.pairs} seeds){accuracy}."
        )
    if not relative.has_interval and abs(relative.value - 1) < NOISE:
        return (
            f"{capitalized(both)} {with_workers} took the same time to within {100 * NOISE:.0f} %"
            f" ({seconds(own[0])} against {seconds(own[1])}){accuracy}."
        )
    return (
        f"{capitalized(faster.label)} {with_workers} finished {_times_sooner(relative)} sooner than {slower.label}"
        f" ({figures}{_interval_of_speed(relative)}){accuracy}."
    )


def _same_work(sync: Condition, asynchronous: Condition) -> str:
    """With one worker there is no barrier and no staleness: what differs shows how far runs differ."""
    times, accuracies = (
        [_mean(condition.spread(measure)) for condition in (sync, asynchronous)]
        for measure in (lambda r: r.training_seconds, lambda r: r.accuracy_percent)
    )
    worded = [(*map(seconds, times), ""), (*map(percent, accuracies), " accuracy")]
    measured = [figures for figures in worded if ABSENT not in figures]
    apart = [f"{one} against {other}{of}" for one, other, of in measured if one != other]
    alike = [f"{one}{of}" for one, other, of in measured if one == other]
    clauses = [f"{listed(apart)} differ by chance, not by mode"] if apart else []
    clauses += [f"{listed(alike)} in both"] if alike else []
    return f"With 1 worker sync and async do the same work: {'; '.join(clauses) or 'nothing was measured in both'}."


def _times_sooner(relative: Estimate) -> str:
    return ratio(max(relative.value, 1 / relative.value))


def _interval_of_speed(relative: Estimate) -> str:
    if not relative.has_interval:
        return ""
    ends = sorted(
        [relative.low, relative.high] if relative.value > 1 else [1 / relative.high, 1 / relative.low]
    )
    return f"; 95 % interval {ratio(ends[0])} to {ratio(ends[1])}, {relative.pairs} seeds"


def _accuracy(first: Condition, second: Condition) -> str:
    """The clause on accuracy, figures in the order in which the sentence named the two."""
    figures = pairs(first, second, lambda result: result.accuracy_percent)
    difference = paired_difference(figures)
    if difference is None:
        return ", and no accuracy was measured in both"
    one, other = (percent(sum(side) / len(figures)) for side in zip(*figures, strict=True))
    ended = f"{one} against {other}"
    if not difference.has_interval:
        if one == other:
            return f" and both ended at {one} accuracy{_images_apart(first, second)}"
        return f" and ended at {ended} accuracy{_images_apart(first, second)}"
    if difference.low == difference.high == 0:
        return f" and both ended at {one} accuracy with every seed"
    interval = f"95 % interval {signed(difference.low)} to {signed(difference.high)} points"
    if difference.excludes(0):
        return f" and ended at {ended} accuracy ({interval})"
    return f"; no difference in accuracy was detected ({ended}; {interval})"


def _images_apart(first: Condition, second: Condition) -> str:
    """What a difference of two runs is in test samples: the smaller, the less it means."""
    shared = {r.seed for r in first.results} & {r.seed for r in second.results}
    compared_runs = [
        result.worker_metrics_aggregated
        for condition in (first, second)
        for result in condition.results
        if result.seed in shared and result.accuracy_percent is not None
    ]
    if len(compared_runs) != 2:
        return ""
    one, other = compared_runs
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
        else "no other experiment with as many workers completed, so there is no comparison"
    )
    time, accuracy = (
        _mean(condition.spread(lambda result: result.training_seconds)),
        _mean(condition.spread(lambda result: result.accuracy_percent)),
    )
    return (
        f"{capitalized(condition.label)} with {count(condition.workers, 'worker')} trained for {seconds(time)}"
        f" and ended at {percent(accuracy)} accuracy; {alone}."
    )


def _mean(measured: Spread | None) -> float | None:
    return measured.mean if measured else None


def _scaling(results: Sequence[ExperimentResult]) -> list[str]:
    """From the fewest to the most workers, in each mode (and what it was told) that has several."""
    by_range: dict[tuple[int, int], list[str]] = {}
    for label, line in lines(results).items():
        measured = [condition for condition in line if condition.spread(lambda r: r.training_seconds)]
        if len(measured) < 2:
            continue
        few, many = measured[0], measured[-1]
        relative = paired_ratio(pairs(few, many, lambda result: result.training_seconds))
        if relative is not None:
            by_range.setdefault((few.workers, many.workers), []).append(_speed_up(label, relative))
    return [
        f"Going from {few} to {count(many, 'worker')}, {listed(phrases)} (ideal: {many / few:.3g}× faster)."
        for (few, many), phrases in by_range.items()
    ]


def _speed_up(label: str, relative: Estimate) -> str:
    if relative.has_interval and not relative.excludes(1):
        return f"{label} showed no difference in training time"
    if not relative.has_interval and abs(relative.value - 1) < NOISE:
        return f"{label} took the same time"
    if relative.value < 1:
        return f"{label} got {ratio(1 / relative.value)} slower"
    return f"{label} got {ratio(relative.value)} faster"
