"""PublishReport: everything that the table knows of a study in, its results tree in S3 out.

Runs whether experiments failed or not, and tells ConcludeStudy how the study ended; once more for sweep_tasks, where
the study was aborted.
"""

import mimetypes
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.history import fingerprint
from contract.results import REPORT, study_prefix
from contract.study import parse_study
from contract.table import TERMINAL, Status
from lambdas.causes import readable
from lambdas.environment import ReportEnvironment
from lambdas.history import History
from lambdas.publish_report.costs import measured_of
from lambdas.publish_report.page import render
from lambdas.publish_report.results import ExperimentOutcome, StudyOutcome
from lambdas.rows import StudyRow
from lambdas.table import ExperimentTable

logger = Logger(service="publish_report")

MAX_CAUSE_CHARACTERS = 1000
"""That a warning tells of an error."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda passes it
    """Publish one study's report. COMPLETED unless more experiments failed than the study tolerates.

    `unreconciled` is the error that ended ReconcileMetrics, if one did.
    """
    study_id = event["study_id"]
    logger.append_keys(study_id=study_id)
    environment = ReportEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    # sweep_tasks knows of none, and an execution that goes on as it began does not tell.
    outcome = _publish(table, environment.bucket_name, study_id, _unreconciled(event.get("unreconciled")))
    _remember(History.named(environment.table_name), outcome)
    failed = [e for e in outcome.experiments if e.status is not Status.COMPLETED]
    logger.info("published", status=outcome.status, failed=len(failed))
    return {
        "status": outcome.status,
        "report": f"s3://{environment.bucket_name}/{study_prefix(study_id)}{REPORT}",
        "failed": [e.experiment.name for e in failed],
        "cause": _cause(failed, len(outcome.experiments)),
    }


def _unreconciled(error: dict[str, str] | None) -> list[str]:
    if error is None:
        return []
    why = readable(error["Cause"])[:MAX_CAUSE_CHARACTERS]
    return [f"records may be missing: ReconcileMetrics failed: {error['Error']}: {why}"]


def _publish(
    table: ExperimentTable, bucket_name: str, study_id: str, warnings: Sequence[str]
) -> StudyOutcome:
    """Render and upload; again, where the study was aborted meanwhile: that is what the report must say then."""
    row = _study(table, study_id)
    while True:
        outcome = _collect(table, row, warnings)
        _upload(bucket_name, study_id, render(outcome))
        before, row = row, _study(table, study_id)
        if (row.status is Status.ABORTED) == (before.status is Status.ABORTED):
            return outcome


def _study(table: ExperimentTable, study_id: str) -> StudyRow:
    row = table.study(study_id)
    if row is None:
        raise KeyError(f"no study {study_id} in the table")
    return row


def _collect(table: ExperimentTable, row: StudyRow, warnings: Sequence[str]) -> StudyOutcome:
    study_id, study = row.study_id, parse_study(row.document)
    rows = table.experiments(study_id)
    failures = sum(experiment.status is not Status.COMPLETED for experiment in rows)
    # What has not ended may run still: that is not among what a study tolerates.
    tolerated = failures <= study.tolerated_failures and all(e.status in TERMINAL for e in rows)
    status = Status.COMPLETED if tolerated else Status.FAILED
    return StudyOutcome(
        study_id=study_id,
        name=study.name,
        document=row.document,
        status=Status.ABORTED if row.status is Status.ABORTED else status,
        cause=row.cause,
        started_at=datetime.fromisoformat(row.created_at),
        ended_at=datetime.fromisoformat(row.ended_at) if row.ended_at else datetime.now(UTC),
        warnings=[*warnings, *(warning for experiment in rows for warning in experiment.warnings)],
        experiments=[
            ExperimentOutcome(
                experiment=experiment.experiment,
                status=experiment.status,
                cause=experiment.cause,
                tasks=experiment.tasks,
                records=table.records(study_id, experiment.experiment.name),
            )
            for experiment in rows
        ],
        forecast=row.forecast,
    )


def _remember(history: History, outcome: StudyOutcome) -> None:
    """Keep what experiments with real compute took: the next ones like them are planned from it."""
    if outcome.forecast is None:
        return
    for each in outcome.experiments:
        if each.status is not Status.COMPLETED or each.experiment.compute.mode != "real":
            continue
        if (measured := measured_of(each, outcome.ended_at)) is not None:
            history.remember(fingerprint(each.experiment, outcome.forecast.architecture), measured)


def _upload(bucket_name: str, study_id: str, files: dict[str, bytes]) -> None:
    """The report goes last: where it is, everything that it links to is there too."""
    s3 = boto3.client("s3")
    for path in sorted(files, key=lambda path: path == REPORT):
        content_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        if content_type.startswith("text/"):
            content_type += "; charset=utf-8"
        s3.put_object(
            Bucket=bucket_name, Key=study_prefix(study_id) + path, Body=files[path], ContentType=content_type
        )


def _cause(failed: list[ExperimentOutcome], total: int) -> str:
    """What ConcludeStudy fails with, each cause once; Step Functions takes 32,768 characters."""
    by_cause: dict[str, list[str]] = {}
    for each in failed:
        by_cause.setdefault(each.cause or each.status, []).append(each.experiment.name)
    lines = [f"{', '.join(names)}: {cause}" for cause, names in by_cause.items()]
    return f"{len(failed)} of {total} experiments failed. {' | '.join(lines)}"[:30_000] if failed else ""
