"""The tables of report.html as plain rows: what stands in which cell, in words.

Pure: results → text cells. Knows no HTML; the template decides how a table looks, and escapes every cell.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from contract.aggregation import BARRIER_MODES
from lambdas.publish_report.conditions import Condition, lines
from lambdas.publish_report.estimates import Spread
from lambdas.publish_report.labels import labels_of
from lambdas.publish_report.laws import Law, laws_of
from lambdas.publish_report.results import (
    AsyncServerMetrics,
    EmitterRecords,
    ExperimentResult,
    StudyOutcome,
    TaskProvenance,
)
from lambdas.publish_report.series import (
    Series,
    baseline,
    epoch_accuracies,
    epoch_durations,
    over_workers,
    speed_up,
)
from lambdas.publish_report.wording import (
    ABSENT,
    count,
    listed,
    milliseconds,
    number,
    percent,
    ratio,
    seconds,
    signed,
)


class Column(NamedTuple):
    """A column's heading, and what stands below it."""

    label: str
    kind: Literal["text", "figure", "mode", "status"] = "text"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell names its row."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    bars: Sequence[Sequence[float]] = ()
    """For each row the shares of a stacked bar; empty where the table has none."""
    partial: frozenset[int] = frozenset()
    """Indices of rows whose figures are those of an experiment that did not complete."""


LAST_EPOCH = (
    " Accuracy: the final parameters, on the whole test set. That of the last epoch can differ without a barrier:"
    " there each worker tests its share of the test set on the parameters of the moment when it ends the epoch."
)


def _ends_apart(result: ExperimentResult) -> bool:
    """Whether the final accuracy and the last epoch's are of different parameters."""
    final = result.worker_metrics_aggregated.final_test_source == "final parameters"
    return final and result.total_workers > 1 and result.mode not in BARRIER_MODES


def summary(results: Sequence[ExperimentResult]) -> Table:
    """All experiments, complete or not, one row each."""
    several_seeds = len({result.seed for result in results}) > 1
    all_completed = all(result.completed for result in results)
    fields: list[tuple[Column, Callable[[ExperimentResult], str]]] = [
        (Column("Experiment"), lambda r: r.experiment_name),
        (Column("Mode", "mode"), lambda r: r.mode.value),
        (Column("Workers", "figure"), lambda r: str(r.total_workers)),
    ]
    fields += [(Column("Seed", "figure"), lambda r: str(r.seed))] if several_seeds else []
    fields += [] if all_completed else [(Column("Status", "status"), lambda r: r.status.value)]
    fields += [
        (Column("Time (s)", "figure"), lambda r: number(r.training_seconds)),
        (Column("Epoch (s)", "figure"), lambda r: number(r.epoch_seconds)),
        (Column("Accuracy (%)", "figure"), lambda r: number(r.accuracy_percent)),
        (Column("Updates/s", "figure"), lambda r: number(r.server_metrics.updates_per_second, 1)),
        (Column("Staleness", "figure"), _staleness),
    ]
    return Table(
        "Time: from the first parameters to the last worker's finish. Epoch: mean over workers and epochs,"
        " without testing. Staleness: mean over the whole run, in updates."
        + (LAST_EPOCH if any(map(_ends_apart, results)) else "")
        + ("" if all_completed else " Of what did not complete, figures are as far as it came."),
        [column for column, _ in fields],
        [[cell(result) for _, cell in fields] for result in results],
        partial=frozenset(i for i, result in enumerate(results) if not result.completed),
    )


def _staleness(result: ExperimentResult) -> str:
    metrics = result.server_metrics
    return number(metrics.average_gradient_staleness) if isinstance(metrics, AsyncServerMetrics) else ABSENT


def scaling_figures(results: Sequence[ExperimentResult]) -> Table:
    """What the scaling plot draws."""
    columns, series = [Column("Workers")], []
    for label, found in lines(results).items():
        few = baseline(found)
        sooner = "speed-up" if few in {None, 1} else f"speed-up against {count(few or 0, 'worker')}"
        columns += [Column(f"{label}: {what}", "figure") for what in ("time", "epoch", "accuracy", sooner)]
        series += [
            _worded(over_workers(found, lambda r: r.training_seconds), seconds),
            _worded(over_workers(found, lambda r: r.epoch_seconds), seconds),
            _worded(over_workers(found, lambda r: r.accuracy_percent), percent),
            _worded(speed_up(found), ratio),
        ]
    caption = (
        "Figures of the scaling plot: mean over seeds (speed-up: geometric mean), and in brackets the range."
    )
    return Table(caption, columns, _joined(series))


def comparison_figures(sync: Condition, asynchronous: Condition) -> Table:
    """What the lower panels of a comparison plot draw."""
    columns = [
        Column("Epoch"),
        Column("sync: duration", "figure"),
        Column("async: duration", "figure"),
        Column("sync: accuracy", "figure"),
        Column("async: accuracy", "figure"),
    ]
    series = [
        _worded(epoch_durations(sync), seconds),
        _worded(epoch_durations(asynchronous), seconds),
        _worded(epoch_accuracies(sync), percent),
        _worded(epoch_accuracies(asynchronous), percent),
    ]
    return Table("Figures by epoch: mean, and in brackets the range.", columns, _joined(series))


def _worded(series: Series, wording: Callable[[float], str]) -> dict[int, str]:
    return {place: _with_range(measured, wording) for place, measured in series.items()}


def _with_range(measured: Spread, wording: Callable[[float], str]) -> str:
    mean, low, high = wording(measured.mean), wording(measured.low), wording(measured.high)
    return mean if low == high else f"{mean} ({low} to {high})"


def _joined(series: Sequence[dict[int, str]]) -> list[list[str]]:
    places = sorted({place for column in series for place in column})
    return [[str(place), *(column.get(place, ABSENT) for column in series)] for place in places]


def laws(results: Iterable[ExperimentResult]) -> Table:
    """Measured against predicted, for every completed experiment that a law speaks of."""
    found = [law for result in results for law in laws_of(result)]
    caption = "Predicted by theory, and measured."
    if any(law.margin for law in found):
        caption += " ± holds 95 % of runs of as many updates, or more, before any overhead."
        caption += (
            " The difference is overhead plus the luck of the draws (±); one run does not tell them apart."
        )
    columns = [
        Column("Experiment"),
        Column("Law"),
        Column("Predicted", "figure"),
        Column("Measured", "figure"),
        Column("Difference", "figure"),
    ]
    return Table(caption, columns, [_law_row(law) for law in found])


def _law_row(law: Law) -> list[str]:
    wording = milliseconds if law.unit == "s" else number
    predicted = wording(law.predicted)
    if law.margin:
        predicted = predicted.replace(" ms", f" ± {1000 * law.margin:.1f} ms")
    difference = ABSENT
    if law.predicted is not None and law.measured is not None:
        gap = law.measured - law.predicted
        relative = f" ({signed(100 * gap / law.predicted)} %)" if law.predicted else ""
        difference = (f"{signed(1000 * gap)} ms" if law.unit == "s" else signed(gap, 2)) + relative
    return [law.experiment, law.statement, predicted, wording(law.measured), difference]


def data_quality(results: Iterable[ExperimentResult]) -> Table:
    """Records that arrived, against those that were sent."""
    columns = [
        Column("Experiment"),
        Column("Received", "figure"),
        Column("Expected", "figure"),
        Column("Remarks"),
    ]
    return Table("Metric records of each experiment.", columns, [_quality_row(result) for result in results])


def _quality_row(result: ExperimentResult) -> list[str]:
    received = sum(emitter.received for emitter in result.records)
    expected = [emitter.expected for emitter in result.records if emitter.expected is not None]
    known = len(expected) == len(result.records)
    remarks = [remark for emitter in result.records if (remark := _remark(emitter))]
    return [
        result.experiment_name,
        f"{received:,}",
        f"{sum(expected):,}" if known else "not known",
        "; ".join(remarks) or "complete",
    ]


def _remark(emitter: EmitterRecords) -> str:
    name = task_name(emitter.role, emitter.rank)
    if not emitter.received:
        return f"{name}: nothing arrived"
    problems = [f"{count(emitter.missing, 'record')} missing"] if emitter.missing else []
    problems += ["no final record"] if emitter.expected is None else []
    return f"{name}: {listed(problems)}" if problems else ""


def task_name(role: str, rank: int) -> str:
    """How people call a task."""
    if role == "server":
        return f"server shard {rank}" if rank else "server"
    return f"worker {rank}"


def provenance(outcome: StudyOutcome, results: Sequence[ExperimentResult]) -> list[tuple[str, str]]:
    """Where and with what the study ran; several values, where tasks differ, with the number of tasks."""
    tasks = [task for result in results for task in result.provenance]
    seeds = sorted({result.seed for result in results})
    rows = [
        ("Study", outcome.study_id),
        ("Began", f"{outcome.started_at:%Y-%m-%d %H:%M:%S %Z}"),
        ("Ended", f"{outcome.ended_at:%Y-%m-%d %H:%M:%S %Z}"),
        ("Conditions", "; ".join(labels_of(results))),
        ("Seeds", listed([str(seed) for seed in seeds])),
        ("CPU model", _distinct(tasks, lambda task: task.cpu_model)),
        ("CPUs seen by a task", _distinct(tasks, lambda task: str(task.cpu_count))),
        ("Torch threads", _distinct(tasks, lambda task: str(task.threads))),
        ("Device", _distinct(tasks, lambda task: task.device)),
        ("torch", _distinct(tasks, lambda task: task.torch_version)),
        ("grpc", _distinct(tasks, lambda task: task.grpc_version)),
        ("Python", _distinct(tasks, lambda task: task.python_version)),
        ("Model parameters", _distinct(tasks, lambda task: f"{task.parameters:,}")),
    ]
    return [(label, value or ABSENT) for label, value in rows]


def _distinct(tasks: Sequence[TaskProvenance], of: Callable[[TaskProvenance], str]) -> str:
    values = Counter(of(task) for task in tasks)
    if len(values) <= 1:
        return "".join(values)
    return listed([f"{value} ({count(tasks, 'task')})" for value, tasks in sorted(values.items())])


def notices(outcome: StudyOutcome, results: Sequence[ExperimentResult]) -> list[str]:
    """What the reader should know before believing a difference."""
    models = {task.cpu_model for result in results for task in result.provenance}
    differing = (
        f"Tasks ran on {len(models)} CPU models: times of different experiments may not be comparable."
    )
    return [*outcome.warnings, *([differing] if len(models) > 1 else [])]
