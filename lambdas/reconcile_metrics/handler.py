"""ReconcileMetrics: rows in the table against records emitted; what is missing is read from the log streams.

Runs once all experiments were judged. A subscription usually delivers within minutes, and may skip: so wait
for a while, then read the source.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.metrics import MetricRecord
from contract.table import Status
from lambdas.causes import readable
from lambdas.environment import ReconcileEnvironment
from lambdas.metric_lines import parse_lines
from lambdas.reconcile_metrics.gaps import Gaps, find_gaps, settle
from lambdas.reconcile_metrics.log_lines import metric_lines
from lambdas.rows import ExperimentRow
from lambdas.table import ExperimentTable
from lambdas.task_logs import TaskLogs
from lambdas.tasks import END_SECONDS, TaskList
from lambdas.verdict import CLOCKS_DIFFER, TaskOutcome, of_this_run

logger = Logger(service="reconcile_metrics")

LINES_AT_ONCE = 1000
"""Lines of the log streams that are in memory."""

WITHOUT_VERDICT = {
    Status.PLANNED: ("NotStarted", "no task of it was started"),
    Status.RUNNING: ("NotJudged", "JudgeExperiment could not tell how its tasks ended"),
}
"""Error and cause of an experiment that still is so when every other has ended."""

ENDED = "Lockstep: the experiment has ended"

MAX_OBSTACLE = 1000
"""Characters that are told of what kept tasks from being ended."""

Suspects = frozenset[tuple[str, str, int]]
"""(experiment, role, rank) of tasks whose records may not all be in the table."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:  # noqa: ARG001 - Lambda passes it
    """Close the gaps of one study's records and settle every experiment whose tasks have ended.

    `unjudged` holds the name and the error of each experiment that the state machine could not bring to a verdict.
    """
    study_id = event["study_id"]
    logger.append_keys(study_id=study_id)
    environment = ReconcileEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    tasks = TaskList.of(environment.cluster_arn)
    rows, obstacles = _ended(tasks, table.experiments(study_id), environment.quiet_seconds)
    suspects = _wait_for_records(table, rows, environment.patience_seconds)
    began = {row.experiment.name: row.started_at for row in rows}
    backfilled = _backfill(table, study_id, suspects, began, environment.log_group_name) if suspects else 0
    # An execution goes on as it began, also where the state machine was deployed anew meanwhile.
    errors = {item["name"]: item["error"] for item in event.get("unjudged", [])}
    logs = TaskLogs.named(environment.log_group_name)
    for row in rows:
        caught = errors.get(row.experiment.name)
        if obstacle := obstacles.get(row.experiment.task_group):
            table.explain(row.experiment, _why_without_end(obstacle, caught))
        else:
            _settle(table, logs, row, caught)
    logger.info("reconciled", experiments=len(rows), backfilled=backfilled)
    return {"experiments": len(rows), "backfilled": backfilled}


def _ended(
    tasks: TaskList, rows: list[ExperimentRow], quiet_seconds: float
) -> tuple[list[ExperimentRow], Mapping[str, Exception]]:
    """Experiments that JudgeExperiment did not bring to an end are ended here, all at once, with how their tasks did.

    Those with which that fails too are returned by their group with what failed: they get no verdict, ConcludeStudy
    fails for it, and so sweep_tasks ends them.
    """
    unended = [row.experiment.task_group for row in rows if row.status is Status.RUNNING]
    if not unended:
        return rows, {}
    outcomes: dict[str, list[TaskOutcome]] = {group: [] for group in unended}
    obstacles: dict[str, Exception] = {}
    try:
        for task in tasks.end(lambda task: task.group in unended, ENDED, quiet_seconds=quiet_seconds):
            outcomes[task.group].append(task.outcome)
    except Exception:
        logger.exception("not ended", groups=unended)
        outcomes, obstacles = _ended_one_by_one(tasks, unended)
    return [
        replace(row, tasks=of_this_run(outcomes[group], row.started_at))
        if (group := row.experiment.task_group) in outcomes
        else row
        for row in rows
    ], obstacles


def _ended_one_by_one(
    tasks: TaskList, groups: Iterable[str]
) -> tuple[dict[str, list[TaskOutcome]], dict[str, Exception]]:
    """One that cannot be ended costs no other its verdict. All have END_SECONDS together: they end side by side."""
    deadline = time.monotonic() + END_SECONDS
    outcomes: dict[str, list[TaskOutcome]] = {}
    obstacles: dict[str, Exception] = {}
    for group in groups:
        try:
            outcomes[group] = tasks.end_group(group, ENDED, patience_seconds=deadline - time.monotonic())
        except Exception as error:  # noqa: BLE001 - the row tells it
            obstacles[group] = error
    return outcomes, obstacles


def _why_without_end(obstacle: Exception, caught: dict[str, str] | None) -> str:
    parts = obstacle.exceptions if isinstance(obstacle, ExceptionGroup) else ()
    said = "; ".join([f"{type(obstacle).__name__}: {obstacle}", *map(str, parts)])[:MAX_OBSTACLE]
    before = (
        f"; before that, JudgeExperiment failed: {caught['Error']}: {readable(caught['Cause'])}"
        if caught
        else ""
    )
    return f"its tasks could not be ended: {said}{before}"


def _wait_for_records(table: ExperimentTable, rows: list[ExperimentRow], patience_seconds: float) -> Suspects:
    """Give the subscription time to deliver; returns which tasks' records it may not have brought."""
    deadline = time.monotonic() + patience_seconds
    pause = 0.25
    gaps: dict[str, Gaps] = {}
    # What was never started has emitted nothing.
    awaited = [row for row in rows if row.status is not Status.PLANNED]
    while True:
        gaps |= {row.experiment.name: _gaps(table, row) for row in awaited}
        awaited = [row for row in awaited if not gaps[row.experiment.name].closed]
        if not awaited or time.monotonic() >= deadline:
            return frozenset((name, *emitter) for name, found in gaps.items() for emitter in found.suspects)
        time.sleep(pause)
        pause = min(2 * pause, 10)


def _gaps(table: ExperimentTable, row: ExperimentRow) -> Gaps:
    records = table.records(row.experiment.study_id, row.experiment.name)
    return find_gaps(row.experiment, row.tasks, records)


def _backfill(
    table: ExperimentTable, study_id: str, suspects: Suspects, began: Mapping[str, str], log_group_name: str
) -> int:
    """Write every record of `suspects` that the log streams hold of the present run. Returns how many there were.

    `began`: when each experiment began, as its row says. A redriven one has an earlier run in the same streams.
    """
    study = table.study(study_id)
    if study is None:
        return 0
    since_ms = int(datetime.fromisoformat(study.created_at).timestamp() * 1000)
    lines = metric_lines(log_group_name, study_id, since_ms)
    backfilled = 0
    while some := list(islice(lines, LINES_AT_ONCE)):
        backfilled += table.put_records(
            record
            for record in parse_lines(some).records
            if record.study == study_id
            and (record.experiment, record.role, record.rank) in suspects
            and _is_of_run(record, began[record.experiment])
        )
    return backfilled


def _is_of_run(record: MetricRecord, began: str) -> bool:
    return not began or record.timestamp >= datetime.fromisoformat(began) - CLOCKS_DIFFER


def _settle(
    table: ExperimentTable, logs: TaskLogs, row: ExperimentRow, caught: dict[str, str] | None
) -> None:
    """Write the last word on an experiment; `caught` is the error that kept it from a verdict, if that is known."""
    if row.status in {Status.STOPPING, Status.ABORTED}:
        return
    error = _error_without_verdict(row, caught) if row.status in WITHOUT_VERDICT else row.error
    records = table.records(row.experiment.study_id, row.experiment.name)
    verdict, warnings = settle(row.experiment, row.tasks, error, records)
    # Lines that were on their way when the experiment was judged have arrived by now.
    tasks = logs.attached(row.tasks, records) if verdict.status is Status.FAILED else row.tasks
    table.settle(row.experiment, verdict, tasks=tasks, error=error, warnings=warnings)


def _error_without_verdict(row: ExperimentRow, caught: dict[str, str] | None) -> dict[str, str] | None:
    """Why there is none; None where nothing but the verdict is missing."""
    if row.tasks and all(task.succeeded for task in row.tasks):
        return None
    error, cause = WITHOUT_VERDICT[row.status]
    why = f": {caught['Error']}: {caught['Cause']}" if caught else "; the execution's history may say more"
    return {"Error": error, "Cause": cause + why}
