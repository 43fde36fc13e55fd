"""What rows of the table hold, and the project's own types: one from the other, both ways.

Used by the table's adapter; knows nothing of how rows are written or found.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from pydantic import ValidationError

from contract import table as keys
from contract.forecast import Forecast
from contract.metrics import MetricRecord, from_mapping, to_mapping
from contract.plan import Experiment
from contract.table import PARTITION_KEY, SORT_KEY, Status
from lambdas.verdict import TaskOutcome

RETENTION = timedelta(days=365)
"""Rows leave the table after a year; the report in S3 stays."""

SMALLEST = Decimal("1e-100")
"""Magnitudes below are stored as zero: DynamoDB holds none below 1e-130."""


class Execution(NamedTuple):
    """Whose study it is. A name, and with it the ARN, is free again 90 days after an execution has ended."""

    arn: str
    started_at: str
    """As Step Functions tells it; sets executions of one name apart."""


@dataclass(frozen=True)
class StudyRow:
    """A study as stored."""

    study_id: str
    document: dict[str, Any]
    status: Status
    created_at: str
    execution: Execution
    """With empty fields in rows of before they were written down."""
    ended_at: str = ""
    cause: str = ""
    """Why it was aborted."""
    forecast: Forecast | None = None
    """What was expected of it; None where that was not written, or by another version."""


@dataclass(frozen=True)
class ExperimentRow:
    """An experiment as stored: its plan, how far it has come, and what judging it saw."""

    experiment: Experiment
    status: Status
    cause: str = ""
    started_at: str = ""
    ended_at: str = ""
    error: dict[str, str] | None = None
    """Error and Cause of the state machine, where its own states failed."""
    tasks: Sequence[TaskOutcome] = ()
    warnings: Sequence[str] = field(default=())


def now() -> str:
    """The present, as rows carry it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def expiry() -> int:
    """When what is written now leaves the table, in seconds since the epoch."""
    return int((datetime.now(UTC) + RETENTION).timestamp())


def study_key(study_id: str) -> dict[str, str]:
    """Of a study's own row."""
    return {PARTITION_KEY: keys.study_partition(study_id), SORT_KEY: keys.STUDY_SORT}


def open_key(study_id: str) -> dict[str, str]:
    """Of the row that says that a study is open."""
    return {PARTITION_KEY: keys.OPEN_PARTITION, SORT_KEY: keys.study_partition(study_id)}


def experiment_key(study_id: str, name: str) -> dict[str, str]:
    """Of an experiment's row."""
    return {PARTITION_KEY: keys.study_partition(study_id), SORT_KEY: keys.experiment_sort(name)}


def begun_study(
    study_id: str, document: Mapping[str, Any], execution: Execution, forecast: Forecast | None
) -> dict[str, Any]:
    """Row of a study that runs from now on."""
    return {
        **study_key(study_id),
        "document": json.dumps(document),
        "status": Status.RUNNING,
        "created_at": now(),
        "execution_arn": execution.arn,
        "execution_started_at": execution.started_at,
        keys.EXPIRY: expiry(),
        **({"forecast": forecast.model_dump_json()} if forecast else {}),
    }


def open_study(study_id: str) -> dict[str, Any]:
    """Row that is there until nothing of a study is left to clean up."""
    return {**open_key(study_id), keys.EXPIRY: expiry()}


def planned_experiment(study_id: str, experiment: Experiment, position: int) -> dict[str, Any]:
    """Row of an experiment that nothing has happened to; `position`: in its study's plan."""
    return {
        **experiment_key(study_id, experiment.name),
        "experiment": experiment.model_dump_json(),
        "position": position,
        "status": Status.PLANNED,
        keys.EXPIRY: expiry(),
    }


def study_of(study_id: str, row: Mapping[str, Any]) -> StudyRow:
    """A study as its row tells it."""
    return StudyRow(
        study_id=study_id,
        document=json.loads(row["document"]),
        status=Status(row["status"]),
        created_at=row["created_at"],
        execution=Execution(arn=row.get("execution_arn", ""), started_at=row.get("execution_started_at", "")),
        ended_at=row.get("ended_at", ""),
        cause=row.get("cause", ""),
        forecast=_forecast(row),
    )


def _forecast(row: Mapping[str, Any]) -> Forecast | None:
    """Rows live longer than versions: an estimate that is not to be read must not take the study along."""
    try:
        return Forecast.model_validate_json(row["forecast"])
    except (KeyError, ValidationError):
        return None


def experiment_of(row: Mapping[str, Any]) -> ExperimentRow:
    """An experiment as its row tells it."""
    return ExperimentRow(
        experiment=Experiment.model_validate_json(row["experiment"]),
        status=Status(row["status"]),
        cause=row.get("cause", ""),
        started_at=row.get("started_at", ""),
        ended_at=row.get("ended_at", ""),
        error=json.loads(row.get("error", "null")),
        tasks=[TaskOutcome.model_validate(task) for task in json.loads(row.get("tasks", "[]"))],
        warnings=row.get("warnings", ()),
    )


def stored_tasks(tasks: Iterable[TaskOutcome]) -> str:
    """In UTF-8 as it is: a row has 400 KB, and escapes would take up to six times the room."""
    return json.dumps([task.model_dump(mode="json") for task in tasks], ensure_ascii=False)


def stored_record(record: MetricRecord) -> dict[str, Any]:
    """Row of a metric record: the same record has the same key."""
    fields = json.loads(json.dumps(to_mapping(record)), parse_float=_storable)
    return {**keys.metric_key(record), keys.EXPIRY: expiry(), **fields}


def record_of(row: Mapping[str, Any]) -> MetricRecord:
    """The metric record that a row holds."""
    names = row.keys() - {PARTITION_KEY, SORT_KEY, keys.EXPIRY}
    return from_mapping({name: row[name] for name in names})


def _storable(number: str) -> Decimal:
    """A JSON number as DynamoDB takes it."""
    exact = Decimal(number)
    return exact if abs(exact) >= SMALLEST else Decimal(0)
