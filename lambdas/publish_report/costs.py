"""What a study cost: the plan's estimate beside what its tasks took, at the plan's prices.

Pure: outcomes → a table of report.html, and the same figures for study.json. AWS's bill alone says what was paid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from contract.cost import Cost, task_cost
from contract.forecast import ExperimentForecast, Forecast
from contract.history import Measured
from contract.metrics import ServerSummary
from contract.prices import dollars
from lambdas.publish_report.results import ExperimentOutcome, StudyOutcome
from lambdas.publish_report.sections import Column, Table
from lambdas.publish_report.wording import ABSENT, number, signed
from lambdas.verdict import TaskOutcome, without_vain_starts


@dataclass(frozen=True)
class Spent:
    """What tasks took that have ended."""

    task_seconds: float
    cost: Cost
    """Of the tasks alone."""
    tasks: int

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.task_seconds + other.task_seconds, self.cost + other.cost, self.tasks + other.tasks)


NOTHING = Spent(0.0, Cost(), 0)


def seconds_of(task: TaskOutcome) -> float | None:
    """How long AWS bills a task: from the pull of its image to its end; None where it never came so far."""
    if not task.started_at or not task.stopped_at:
        return None
    return (datetime.fromisoformat(task.stopped_at) - datetime.fromisoformat(task.started_at)).total_seconds()


def spent(outcome: ExperimentOutcome, plan: Forecast) -> Spent:
    """What an experiment's tasks took, those that were lost among them."""
    experiment, total = outcome.experiment, NOTHING
    for task in outcome.tasks:
        if (seconds := seconds_of(task)) is None:
            continue
        size = experiment.server if task.role == "server" else experiment.worker
        cost = task_cost(
            plan.prices,
            plan.architecture,
            size,
            seconds,
            spot=task.role == "worker" and experiment.worker.spot,
            public_ipv4=plan.public_ipv4,
        )
        total += Spent(seconds, cost, 1)
    return total


def measured_of(outcome: ExperimentOutcome, ended_at: datetime) -> Measured | None:
    """What the next experiment like it can be told from; None where it did not complete as planned."""
    times: dict[str, list[float]] = {"server": [], "worker": []}
    for task in without_vain_starts(outcome.tasks):
        if (seconds := seconds_of(task)) is not None and task.role in times:
            times[task.role].append(seconds)
    summary = next((record for record in outcome.records if isinstance(record, ServerSummary)), None)
    if summary is None or summary.lost_workers or not all(times.values()):
        return None
    return Measured(
        study_id=outcome.experiment.study_id,
        experiment=outcome.experiment.name,
        ended_at=ended_at.isoformat(timespec="seconds"),
        training_seconds=summary.total_training_time_seconds,
        server_seconds=fmean(times["server"]),
        worker_seconds=fmean(times["worker"]),
    )


def costs(outcome: StudyOutcome) -> Table:
    """Estimated beside actual, by experiment and in total; no rows where the study was planned without an estimate."""
    columns = [
        Column("Experiment"),
        Column("Task-seconds: estimated", "figure"),
        Column("actual", "figure"),
        Column("difference", "figure"),
        Column("Tasks' cost: estimated", "figure"),
        Column("actual", "figure"),
        Column("Estimate from"),
    ]
    plan = outcome.forecast
    if plan is None:
        return Table("", columns, [])
    rows, total = [], NOTHING
    for each, planned in _pairs(outcome.experiments, plan):
        took = spent(each, plan)
        total += took
        rows.append(_row(planned.name, planned.task_seconds, planned.cost.tasks, took, planned.basis.value))
    rows.append(_row("All", plan.task_seconds, _tasks_cost(plan), total, ""))
    return Table(_caption(plan), columns, rows)


def cost_document(outcome: StudyOutcome) -> dict[str, Any] | None:
    """The same for programs: US dollars and seconds; None where the study was planned without an estimate."""
    plan = outcome.forecast
    if plan is None:
        return None
    took = {each.experiment.name: spent(each, plan) for each in outcome.experiments}
    total = sum(took.values(), start=NOTHING)
    return {
        "hypothetical": plan.hypothetical,
        "prices": {"region": plan.prices.region, "date": plan.prices.date},
        "architecture": plan.architecture,
        "estimated_usd": plan.total_usd,
        "estimated_usd_by_kind": plan.cost.model_dump(),
        "tasks": _compared(plan.task_seconds, _tasks_cost(plan), total),
        "experiments": [
            {
                "experiment": planned.name,
                "basis": planned.basis.value,
                **_compared(planned.task_seconds, planned.cost.tasks, took[planned.name]),
            }
            for _, planned in _pairs(outcome.experiments, plan)
        ],
    }


def _compared(task_seconds: float, usd: float, took: Spent) -> dict[str, Any]:
    return {
        "estimated_task_seconds": task_seconds,
        "actual_task_seconds": took.task_seconds,
        "estimated_tasks_usd": usd,
        "actual_tasks_usd": took.cost.tasks,
        "tasks_counted": took.tasks,
    }


def _pairs(
    experiments: Sequence[ExperimentOutcome], plan: Forecast
) -> list[tuple[ExperimentOutcome, ExperimentForecast]]:
    planned = {each.name: each for each in plan.experiments}
    return [(each, planned[each.experiment.name]) for each in experiments]


def _tasks_cost(plan: Forecast) -> float:
    return sum(each.cost.tasks for each in plan.experiments)


def _row(name: str, task_seconds: float, usd: float, took: Spent, basis: str) -> list[str]:
    known = took.tasks > 0
    difference = ABSENT
    if known and task_seconds:
        difference = f"{signed(100 * (took.task_seconds / task_seconds - 1))} %"
    return [
        name,
        number(task_seconds, 0),
        number(took.task_seconds if known else None, 0),
        difference,
        dollars(usd),
        dollars(took.cost.tasks) if known else ABSENT,
        basis,
    ]


def _caption(plan: Forecast) -> str:
    processors = "Arm" if plan.architecture == "arm64" else "x86"
    where = (
        "Nothing was paid: the study ran on the embedded cloud, and these are what its tasks would have cost on AWS,"
        if plan.hypothetical
        else "What the tasks cost by the prices"
    )
    return (
        f"{where} {'at' if plan.hypothetical else 'of'} Fargate's {processors} prices of {plan.prices.region},"
        f" {plan.prices.date}: vCPUs, memory and public addresses, at least a minute of each task. With"
        f" functions, state transitions, logs and table the plan came to {dollars(plan.total_usd)}: "
        f"{plan.cost.breakdown()}."
    )
