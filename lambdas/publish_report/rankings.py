"""Rankings: sentences that set all conditions with one number of workers side by side.

Pure. As in `findings`: a difference is claimed where its 95 % interval excludes "none"; of single runs the figures
are told, and differences below NOISE are not.
"""

from collections import Counter
from collections.abc import Sequence

from contract.aggregation import Mode
from lambdas.publish_report.conditions import Condition, Measure, lines, pairs
from lambdas.publish_report.estimates import Estimate, paired_difference, paired_ratio, quantile
from lambdas.publish_report.labels import UNCOMPRESSED, compression_label
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.wording import (
    byte_count,
    capitalized,
    count,
    listed,
    percent,
    ratio,
    seconds,
    signed,
)

NOISE = 0.05
"""Two single runs whose times differ by less than this tell nothing apart."""

QUORUM_MODES = (Mode.BACKUP, Mode.KSYNC)
"""Sync, but for how many gradients a step waits for."""


def side_by_side(results: Sequence[ExperimentResult]) -> list[list[Condition]]:
    """The conditions with each number of workers that has several, workers ascending; sync and async alone are none."""
    by_workers: dict[int, list[Condition]] = {}
    for line in lines(results).values():
        for condition in line:
            by_workers.setdefault(condition.workers, []).append(condition)
    return [
        together
        for _, together in sorted(by_workers.items())
        if len(together) > 1 and not _classic_pair(together)
    ]


def _classic_pair(together: Sequence[Condition]) -> bool:
    """They have a sentence of their own."""
    modes = [condition.mode for condition in together]
    return modes == [Mode.SYNC, Mode.ASYNC] and len({condition.link for condition in together}) == 1


def ranking(together: Sequence[Condition]) -> str:
    """Who finished first, how much longer the others took, and how far accuracies are apart."""
    timed = _means(together, lambda result: result.training_seconds)
    if len(timed) < 2:
        return ""
    best, first = timed[0]
    ratios = [
        (other, relative)
        for _, other in timed[1:]
        if (relative := paired_ratio(pairs(other, first, lambda result: result.training_seconds)))
    ]
    ratios.sort(key=lambda pair: pair[1].value)
    tied = [pair for pair in ratios if _tied(pair[1])]
    slower = [pair for pair in ratios if not _tied(pair[1])]
    sentence = f"With {count(first.workers, 'worker')} {first.label} finished first, after {seconds(best)}"
    sentence += "".join(f", {_not_told_apart(tied)}" if tied else "")
    sentence += f"; {_as_long(slower)}" if slower else ""
    return f"{sentence}.{_accuracies(together)}"


def _means(together: Sequence[Condition], measure: Measure) -> list[tuple[float, Condition]]:
    """The mean of a figure under each condition that has it, ascending."""
    measured = [(spread.mean, condition) for condition in together if (spread := condition.spread(measure))]
    return sorted(measured, key=lambda pair: pair[0])


def _tied(relative: Estimate) -> bool:
    if relative.has_interval:
        return not relative.excludes(1)
    return abs(relative.value - 1) < NOISE


def _not_told_apart(tied: Sequence[tuple[Condition, Estimate]]) -> str:
    if not tied[0][1].has_interval:
        return f"within {100 * NOISE:.0f} % of {listed([other.label for other, _ in tied])}"
    intervals = [f"{other.label} ({ratio(e.low)} to {ratio(e.high)} of its time)" for other, e in tied]
    return f"not told apart from {listed(intervals)}"


def _as_long(slower: Sequence[tuple[Condition, Estimate]]) -> str:
    (nearest, relative), *others = slower
    phrases = [f"{nearest.label} took {_times(relative, ' as long')}"]
    return listed(phrases + [f"{other.label} {_times(relative)}" for other, relative in others])


def _times(relative: Estimate, unit: str = "") -> str:
    interval = f" ({ratio(relative.low)} to {ratio(relative.high)})" if relative.has_interval else ""
    return f"{ratio(relative.value)}{unit}{interval}"


def _accuracies(together: Sequence[Condition]) -> str:
    """From the least to the most accurate."""
    measured = _means(together, lambda result: result.accuracy_percent)
    if len(measured) < 2:
        return ""
    low, least = measured[0]
    high, most = max(measured, key=lambda pair: pair[0])  # of several the first
    if percent(low) == percent(high):
        return f" All ended at {percent(high)} accuracy."
    sentence = (
        f" Accuracy ended between {percent(low)} with {least.label} and {percent(high)} with {most.label}"
    )
    difference = paired_difference(pairs(most, least, lambda result: result.accuracy_percent))
    if difference is None or not difference.has_interval:
        return f"{sentence}."
    interval = f"95 % interval of the difference {signed(difference.low)} to {signed(difference.high)} points"
    return f"{sentence}; {interval}{'' if difference.excludes(0) else ', so none was detected'}."


def quorums(together: Sequence[Condition]) -> list[str]:
    """What not waiting for the slowest bought, against sync over the same link."""
    sync = {condition.link: condition for condition in together if condition.mode is Mode.SYNC}
    return [
        sentence
        for condition in together
        if condition.mode in QUORUM_MODES and condition.link in sync
        if (sentence := _quorum(condition, sync[condition.link]))
    ]


def _quorum(condition: Condition, sync: Condition) -> str:
    relative = paired_ratio(pairs(sync, condition, lambda result: result.server_metrics.mean_step_seconds))
    own, others = (
        each.spread(lambda result: result.server_metrics.mean_step_seconds) for each in (condition, sync)
    )
    if relative is None or own is None or others is None:
        return ""
    compared = "not told apart" if _tied(relative) else f"{ratio(relative.value)} as long"
    interval = (
        f", 95 % interval {ratio(relative.low)} to {ratio(relative.high)}" if relative.has_interval else ""
    )
    return (
        f"{capitalized(condition.label)} with {count(condition.workers, 'worker')} took {seconds(own.mean)} for a step,"
        f" {sync.label} {seconds(others.mean)} ({compared}{interval}){_dropped(condition)}{_tails(condition, sync)}."
    )


def _dropped(condition: Condition) -> str:
    """The price: gradients that came too late, of all that came."""
    metrics = [result.server_metrics for result in condition.results]
    dropped = sum(each.dropped_gradients or 0 for each in metrics)
    came = dropped + sum(each.gradients_processed or 0 for each in metrics)
    return (
        f"; {percent(100 * dropped / came)} of its gradients came too late and were dropped" if came else ""
    )


def _tails(condition: Condition, sync: Condition) -> str:
    longest = [_longest_waits(each) for each in (condition, sync)]
    if None in longest:
        return ""
    own, others = map(seconds, longest)
    return f"; 99 % of its gradients were held for at most {own}, of {sync.label}'s for {others}"


def _longest_waits(condition: Condition) -> float | None:
    """What 99 % of the gradients were held for at most, all runs taken together."""
    histograms = [result.server_metrics.barrier_wait_histogram or {} for result in condition.results]
    together: Counter[float] = sum(map(Counter, histograms), Counter())
    return quantile(together, 0.99)


def savings(together: Sequence[Condition]) -> list[str]:
    """What compression saved on the way, for each mode that ran with several encodings over one network."""
    groups: dict[tuple[Mode, float, float], list[Condition]] = {}
    for condition in together:
        key = (condition.mode, condition.link.slowness, condition.link.latency_ms)
        groups.setdefault(key, []).append(condition)
    return [sentence for group in groups.values() if (sentence := _saving(group))]


def _saving(group: Sequence[Condition]) -> str:
    weighed = [(_encoding(condition), bytes_) for condition in group if (bytes_ := _step_bytes(condition))]
    if len(weighed) < 2 or weighed[0][0] != UNCOMPRESSED:
        return ""
    (_, most), *others = weighed
    less = [f"{encoding} {ratio(most / bytes_)} less" for encoding, bytes_ in others]
    condition = group[0]
    return (
        f"A step of a worker of {condition.mode} with {count(condition.workers, 'worker')} took {byte_count(most)} both"
        f" ways as {UNCOMPRESSED}; {listed(less)}."
    )


def _encoding(condition: Condition) -> str:
    return compression_label(condition.results[0].exchange)


def _step_bytes(condition: Condition) -> float | None:
    """Both ways; None where they were not all counted, as those that go through shared memory."""
    found = [result.traffic for result in condition.results]
    sums = [
        (traffic.sent_bytes_per_step or 0.0) + (traffic.received_bytes_per_step or 0.0)
        for traffic in found
        if traffic and traffic.sent_bytes_per_step and "shared-memory" not in traffic.transports
    ]
    return sum(sums) / len(sums) if len(sums) == len(found) else None


def losses(results: Sequence[ExperimentResult]) -> list[str]:
    """One sentence on workers that were lost; none where none was."""
    hit = [result for result in results if result.completed and result.server_metrics.lost_workers]
    if not hit:
        return []
    lost = sum(len(result.server_metrics.lost_workers or ()) for result in hit)
    back = sum(len(result.server_metrics.rejoined_workers or ()) for result in hit)
    steps = sum(result.server_metrics.lost_steps or 0 for result in hit)
    again = "none came back" if not back else "all came back" if back == lost else f"{back} of them came back"
    return [
        f"{count(lost, 'worker')} {'was' if lost == 1 else 'were'} lost in"
        f" {count(len(hit), 'experiment')}, which completed all the same; {again}, and"
        f" {count(steps, 'step')} {'was' if steps == 1 else 'were'} never made."
    ]
