"""Adapter to the table: studies, experiments and metric rows, in the project's own types.

Used by functions and by the command line; the only place that speaks DynamoDB to them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import boto3
from boto3.dynamodb.conditions import Key
from botocore.exceptions import ClientError

from contract import table as keys
from contract.errors import StudyRefused
from contract.forecast import Forecast
from contract.metrics import MetricRecord
from contract.plan import Experiment
from contract.table import PARTITION_KEY, SORT_KEY, Status
from lambdas import rows
from lambdas.rows import Execution, ExperimentRow, StudyRow
from lambdas.verdict import TaskOutcome, Verdict

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table

_OF_ONE_RUN = ("started_at", "ended_at", "cause", "error", "tasks", "warnings")
"""Attributes of an experiment or a study that tell of one run of it."""


class ExperimentTable:
    """Reads and writes rows; every write may be repeated without harm."""

    def __init__(self, table: "Table") -> None:
        self._table = table

    @classmethod
    def named(cls, table_name: str, session: boto3.Session | None = None) -> Self:
        """The table of that name in the account of `session` (default: the one that all calls share)."""
        return cls((session or boto3).resource("dynamodb").Table(table_name))

    def put_plan(
        self,
        study_id: str,
        document: dict[str, Any],
        plan: Iterable[Experiment],
        execution: Execution,
        forecast: Forecast | None = None,
    ) -> None:
        """Write a study and its PLANNED experiments; rows that are there already stay as they are.

        Raises StudyRefused where another execution has planned a study of that name: nothing was written.
        """
        if not self._put_if_absent(rows.begun_study(study_id, document, execution, forecast)):
            self._check_planned_by(execution, study_id)
        self._put_if_absent(rows.open_study(study_id))
        for position, experiment in enumerate(plan):
            self._put_if_absent(rows.planned_experiment(study_id, experiment, position))

    def study(self, study_id: str) -> StudyRow | None:
        """The study's own row, or None where there is none."""
        row = self._table.get_item(Key=rows.study_key(study_id), ConsistentRead=True).get("Item")
        return None if row is None else rows.study_of(study_id, row)

    def open_studies(self) -> list[str]:
        """Ids of the studies that were planned and not closed, in no order that means anything."""
        found = self._query(keys.OPEN_PARTITION, keys.STUDY_PREFIX)
        return [str(row[SORT_KEY]).removeprefix(keys.STUDY_PREFIX) for row in found]

    def close(self, study_id: str) -> None:
        """Take a study from the open ones: there is nothing left of it to clean up."""
        self._table.delete_item(Key=rows.open_key(study_id))

    def experiments(self, study_id: str) -> list[ExperimentRow]:
        """A study's experiments in the order of its plan."""
        found = self._query(keys.study_partition(study_id), keys.EXPERIMENT_PREFIX)
        return [rows.experiment_of(row) for row in sorted(found, key=lambda row: int(row["position"]))]

    def experiment(self, study_id: str, name: str) -> ExperimentRow:
        """One experiment. Raises KeyError where there is none of that name."""
        row = self._table.get_item(Key=rows.experiment_key(study_id, name), ConsistentRead=True).get("Item")
        if row is None:
            raise KeyError(f"study {study_id} has no experiment {name}")
        return rows.experiment_of(row)

    def settle(
        self,
        experiment: Experiment,
        verdict: Verdict,
        *,
        tasks: Sequence[TaskOutcome] = (),
        error: dict[str, str] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Write an experiment's verdict and what it rests on. Clean-up's word is not overwritten."""
        self._update_unless(
            rows.experiment_key(experiment.study_id, experiment.name),
            forbidden={Status.STOPPING, Status.ABORTED},
            status=verdict.status,
            cause=verdict.cause,
            tasks=rows.stored_tasks(tasks),
            error=json.dumps(error),
            warnings=list(warnings),
            ended_at=rows.now(),
        )

    def explain(self, experiment: Experiment, cause: str) -> None:
        """Write why an experiment has no verdict, unless it has one: its status is left as it is."""
        self._update_unless(
            rows.experiment_key(experiment.study_id, experiment.name), forbidden=keys.TERMINAL, cause=cause
        )

    def begin_stop(self, experiment: Experiment) -> None:
        """Mark an experiment that has no verdict as STOPPING: it starts no task from now on, and gets no verdict."""
        self._update_unless(
            rows.experiment_key(experiment.study_id, experiment.name),
            forbidden=keys.TERMINAL,
            status=Status.STOPPING,
        )

    def abort(self, experiment: Experiment, cause: str, tasks: Sequence[TaskOutcome] = ()) -> bool:
        """Write that an experiment without a verdict was ABORTED, and how its tasks ended, of which none is left.

        Returns whether it was written.
        """
        return self._update_unless(
            rows.experiment_key(experiment.study_id, experiment.name),
            forbidden=keys.TERMINAL,
            status=Status.ABORTED,
            cause=cause,
            tasks=rows.stored_tasks(tasks),
            ended_at=rows.now(),
        )

    def end_study(self, study_id: str, status: Status, cause: str = "") -> bool:
        """Write how a study ended, unless it is written already; returns whether it was written."""
        return self._update_unless(
            rows.study_key(study_id),
            forbidden=keys.TERMINAL,
            status=status,
            cause=cause,
            ended_at=rows.now(),
        )

    def completed(self, study_id: str) -> set[str]:
        """Names of the study's experiments that have completed."""
        found = self.experiments(study_id)
        return {row.experiment.name for row in found if row.status is Status.COMPLETED}

    def clear_unfinished(self, study_id: str) -> list[Experiment]:
        """Make a study that has ended ready to be run again: its experiments that did not complete are PLANNED as new.

        What they have left goes: records, task tokens, what servers announced; so does that the data set was ready.
        The study is RUNNING. Returns them.
        """
        unfinished = [
            row.experiment for row in self.experiments(study_id) if row.status is not Status.COMPLETED
        ]
        for experiment in unfinished:
            self._remove(keys.metrics_partition(study_id, experiment.name), keys.METRIC_PREFIX)
            self._remove(keys.server_partition(study_id, experiment.name), keys.SERVER_PREFIX)
            self._remove(keys.study_partition(study_id), keys.rendezvous_prefix(experiment.name))
            self._begin_anew(rows.experiment_key(study_id, experiment.name), Status.PLANNED)
        self._remove(keys.dataset_partition(study_id), keys.DATASET_SORT)
        self._begin_anew(rows.study_key(study_id), Status.RUNNING)
        return unfinished

    def put_records(self, records: Iterable[MetricRecord]) -> int:
        """Write metric rows, 25 a call; the same record always lands on the same row. Returns how many."""
        unique = {tuple(keys.metric_key(record).values()): record for record in records}
        with self._table.batch_writer() as batch:
            for record in unique.values():
                batch.put_item(Item=rows.stored_record(record))
        return len(unique)

    def records(
        self, study_id: str, experiment: str, *, emitter: tuple[str, int] | None = None
    ) -> list[MetricRecord]:
        """Metric records of one experiment by emitter, in the order of emission; of one (role, rank) where given."""
        prefix = keys.emitter_prefix(*emitter) if emitter else keys.METRIC_PREFIX
        found = self._query(keys.metrics_partition(study_id, experiment), prefix)
        return [rows.record_of(row) for row in found]

    def newest(
        self, study_id: str, experiment: str, *, emitter: tuple[str, int], limit: int
    ) -> list[MetricRecord]:
        """The last records of one (role, rank), the newest first; at most `limit`, and no more is read."""
        partition = Key(PARTITION_KEY).eq(keys.metrics_partition(study_id, experiment))
        page = self._table.query(
            KeyConditionExpression=partition & Key(SORT_KEY).begins_with(keys.emitter_prefix(*emitter)),
            ConsistentRead=True,
            ScanIndexForward=False,
            Limit=limit,
        )
        return [rows.record_of(row) for row in page["Items"]]

    def _check_planned_by(self, execution: Execution, study_id: str) -> None:
        study = self.study(study_id)
        if study is not None and study.execution != execution:
            began = study.execution.started_at or study.created_at
            raise StudyRefused(
                [
                    f"study id {study_id}: taken by an execution that started at {began};"
                    " start this one under another name"
                ]
            )

    def _put_if_absent(self, row: dict[str, Any]) -> bool:
        """Write a row unless there is one of its key; returns whether it was written."""
        try:
            self._table.put_item(Item=row, ConditionExpression=f"attribute_not_exists({PARTITION_KEY})")
        except ClientError as error:
            if not _is_failed_condition(error):
                raise
            return False
        return True

    def _update_unless(
        self, key: dict[str, str], *, forbidden: Iterable[Status], **attributes: object
    ) -> bool:
        """Set attributes unless the row's status is one of `forbidden` or there is no such row; returns whether it did.

        What is written of its end first stays: a verdict may be reconsidered, the end was when it was.
        """
        names = {f"#{name}": name for name in ("status", *attributes)}
        sets = {name: f":{name}" for name in attributes}
        if "ended_at" in sets:
            sets["ended_at"] = "if_not_exists(#ended_at, :ended_at)"
        values: dict[str, Any] = {f":{name}": value for name, value in attributes.items()}
        banned = {f":banned{i}": status for i, status in enumerate(sorted(forbidden))}
        try:
            self._table.update_item(
                Key=key,
                UpdateExpression="SET " + ", ".join(f"#{name} = {value}" for name, value in sets.items()),
                ConditionExpression=f"attribute_exists(#status) AND NOT #status IN ({', '.join(banned)})",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues={**values, **banned},
            )
        except ClientError as error:
            if not _is_failed_condition(error):
                raise
            return False
        return True

    def _remove(self, partition: str, prefix: str) -> None:
        with self._table.batch_writer() as batch:
            for row in list(self._query(partition, prefix)):
                batch.delete_item(Key={PARTITION_KEY: row[PARTITION_KEY], SORT_KEY: row[SORT_KEY]})

    def _begin_anew(self, key: dict[str, str], status: Status) -> None:
        """Set a status and forget how the row ended before."""
        names = {f"#{name}": name for name in ("status", *_OF_ONE_RUN)}
        self._table.update_item(
            Key=key,
            UpdateExpression="SET #status = :status REMOVE " + ", ".join(f"#{name}" for name in _OF_ONE_RUN),
            ExpressionAttributeNames=names,
            ExpressionAttributeValues={":status": status},
        )

    def _query(self, partition: str, prefix: str) -> Iterator[dict[str, Any]]:
        condition = Key(PARTITION_KEY).eq(partition) & Key(SORT_KEY).begins_with(prefix)
        page = self._table.query(KeyConditionExpression=condition, ConsistentRead=True)
        yield from page["Items"]
        while "LastEvaluatedKey" in page:
            page = self._table.query(
                KeyConditionExpression=condition,
                ConsistentRead=True,
                ExclusiveStartKey=page["LastEvaluatedKey"],
            )
            yield from page["Items"]


def _is_failed_condition(error: ClientError) -> bool:
    return error.response["Error"]["Code"] == "ConditionalCheckFailedException"
