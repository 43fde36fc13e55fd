"""ReconcileMetrics: rows in the table against records emitted; what is missing is read from the log streams.

Runs once all experiments were judged. A subscription usually delivers within minutes, and may skip: so wait
for a while, then read the source.
"""

import time
from datetime import datetime
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.table import Status
from lambdas.environment import ReconcileEnvironment
from lambdas.metric_lines import parse_lines
from lambdas.reconcile_metrics.gaps import Gaps, find_gaps, settle
from lambdas.reconcile_metrics.log_lines import metric_lines
from lambdas.table import ExperimentRow, ExperimentTable

logger = Logger(service="reconcile_metrics")

NOT_JUDGED = {
    "Error": "NotJudged",
    "Cause": "JudgeExperiment could not tell how its tasks ended; the execution's history says why",
}
"""Of an experiment that is still RUNNING when every other has ended."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:  # noqa: ARG001 - Lambda passes it
    """Close the gaps of one study's records and settle every experiment."""
    study_id = event["study_id"]
    logger.append_keys(study_id=study_id)
    environment = ReconcileEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    rows = table.experiments(study_id)
    gaps = _wait_until_closed(table, rows, environment.patience_seconds)
    backfilled = 0
    if any(not gap.closed or gap.unknown for gap in gaps):
        backfilled = _backfill(table, study_id, environment.log_group_name)
    for row in rows:
        _settle(table, row)
    logger.info("reconciled", experiments=len(rows), backfilled=backfilled)
    return {"experiments": len(rows), "backfilled": backfilled}


def _wait_until_closed(
    table: ExperimentTable, rows: list[ExperimentRow], patience_seconds: float
) -> list[Gaps]:
    deadline = time.monotonic() + patience_seconds
    pause = 0.25
    while True:
        gaps = [_gaps(table, row) for row in rows]
        if all(gap.closed for gap in gaps) or time.monotonic() >= deadline:
            return gaps
        time.sleep(pause)
        pause = min(2 * pause, 10)


def _gaps(table: ExperimentTable, row: ExperimentRow) -> Gaps:
    records = table.records(row.experiment.study_id, row.experiment.name)
    return find_gaps(row.experiment, row.tasks, records)


def _backfill(table: ExperimentTable, study_id: str, log_group_name: str) -> int:
    """Write every record of the study that its log streams hold. Returns how many there were."""
    study = table.study(study_id)
    if study is None:
        return 0
    since_ms = int(datetime.fromisoformat(study.created_at).timestamp() * 1000)
    records = parse_lines(metric_lines(log_group_name, since_ms)).records
    return table.put_records(record for record in records if record.study == study_id)


def _settle(table: ExperimentTable, row: ExperimentRow) -> None:
    if row.status is Status.ABORTED:
        return
    error = NOT_JUDGED if row.status is Status.RUNNING else row.error
    records = table.records(row.experiment.study_id, row.experiment.name)
    verdict, warnings = settle(row.experiment, row.tasks, error, records)
    table.settle(row.experiment, verdict, tasks=row.tasks, error=error, warnings=warnings)
