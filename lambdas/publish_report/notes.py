"""Notes: how far the findings of a study can be believed.

Pure. What may mislead a reader outright is a warning; how sure the figures are is a note.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from contract.aggregation import ONE_SERVER_MODES, Mode, quorum
from contract.exchange import WHOLE_LENGTH
from lambdas.publish_report.conditions import lines
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.wording import count, listed


def overload(results: Iterable[ExperimentResult]) -> list[str]:
    """One warning where real compute ran more tasks of an experiment on a host than it has cores; else none."""
    found = [crowd for result in results if result.completed for crowd in _crowds(result)]
    if not found:
        return []
    processes, cores = max(found, key=lambda crowd: (crowd[0] / crowd[1], crowd[0]))
    shared = f"{processes} processes shared {count(cores, 'core')}"
    return [
        f"{shared if len(found) == 1 else f'Up to {shared}'}: times are not those of {processes} machines;"
        " use emulated compute, or AWS."
    ]


def unequal_work(completed: Iterable[ExperimentResult]) -> list[str]:
    """A warning where experiments lost different numbers of steps: then times are not those of the same work."""
    lost = {result.server_metrics.lost_steps or 0 for result in completed}
    if len(lost) < 2:
        return []
    return [
        "Workers that were away made fewer steps: times and accuracies are not all those of the same work."
    ]


def partly_tested(completed: Iterable[ExperimentResult]) -> list[str]:
    """A warning for each experiment whose accuracy is that of some workers' shares of the test set."""
    tested = [(result.experiment_name, result.worker_metrics_aggregated) for result in completed]
    return [
        f"{name}: accuracy is that of epoch {of.final_test_epoch} on"
        f" {count(of.final_test_samples or 0, 'test sample')}, the shares of the workers that finished: the others"
        " were lost, and nobody tested the final parameters."
        for name, of in tested
        if of.final_test_source == "shares of finished workers"
    ]


def chosen_by_first_block(completed: Iterable[ExperimentResult]) -> list[str]:
    """A warning where a mode was to pass slow workers over, but does not where it is their links that are slow."""
    found = {result.mode for result in completed if _waits_for_links(result)}
    if not found:
        return []
    return [
        f"In {listed([mode.value for mode in Mode if mode in found])} a worker is chosen when the first block of its"
        " gradient comes, and the rest of it is waited for: with models of more than"
        f" {WHOLE_LENGTH:,} parameters slow computing is passed over, and slow links, which differ here, are not."
    ]


def _waits_for_links(result: ExperimentResult) -> bool:
    """Whether some workers are chosen, by a part of what they send, and their links differ."""
    workers = result.total_workers
    chooses = result.mode in ONE_SERVER_MODES and quorum(result.mode, result.aggregation, workers) < workers
    parameters = max((task.parameters for task in result.provenance), default=0)
    links = [result.network.of(rank) for rank in range(workers)]
    return chooses and parameters > WHOLE_LENGTH and any(link != links[0] for link in links)


def _crowds(result: ExperimentResult) -> Iterator[tuple[int, int]]:
    """(tasks, cores) of every host that had fewer cores than tasks of this experiment."""
    if result.compute.mode != "real":
        return
    cores = {task.hostname: task.cpu_count for task in result.provenance}
    for host, tasks in Counter(task.hostname for task in result.provenance).items():
        if tasks > cores[host] > 0:
            yield tasks, cores[host]


def notes(results: Sequence[ExperimentResult]) -> list[str]:
    """On seeds and intervals, of which only completed experiments speak."""
    conditions = [condition for line in lines(results).values() for condition in line]
    seeds = [{result.seed for result in condition.results} for condition in conditions]
    if not seeds:
        return []
    repeated = any(len(c.results) > len(own) for c, own in zip(conditions, seeds, strict=True))
    averaged = ["Runs that repeat a condition with the same seed are averaged first."] if repeated else []
    each = sorted({len(own) for own in seeds})
    if each[-1] == 1:
        return [_without_interval(results, set().union(*seeds), repeated), *averaged]
    number = f"{each[0]} seeds." if len(each) == 1 else f"{each[0]} to {each[-1]} seeds for each condition."
    return [
        f"{number} Times and accuracies are means over them, ratios are geometric means. Intervals are"
        " Student's t over pairs of runs with the same seed (of logarithms, where ratios are given).",
        *averaged,
    ]


def _without_interval(results: Sequence[ExperimentResult], seeds: set[int], repeated: bool) -> str:
    """No condition has two seeds, be it for want of seeds or because each condition has another."""
    if len(seeds) == 1:
        planned = {result.seed for result in results}
        only = f", of {_named(planned)} the only one that completed" if planned != seeds else ""
        subject = f"One seed ({min(seeds)}{only}) gives no interval"
    else:
        subject = f"One seed for each condition (of {_named(seeds)}) gives no interval"
    single = "" if repeated else "these are single runs, and "
    return (
        f"{subject}: {single}another seed may turn a small difference round.{_order_of_arrival(results)}"
        " List several seeds in the study for intervals."
    )


def _order_of_arrival(results: Iterable[ExperimentResult]) -> str:
    """Only an average over all workers is the same whoever comes first."""
    own = {result.mode for result in results if result.completed and result.total_workers > 1}
    modes = [mode.value for mode in Mode if mode in own - {Mode.SYNC}]
    if not modes:
        return ""
    return f" In {listed(modes)} even the same seed gives different runs: gradients arrive in another order."


def _named(seeds: Iterable[int]) -> str:
    return f"seeds {listed([str(seed) for seed in sorted(seeds)])}"
