"""Run one study on a deployment: start its execution, watch it, stop it.

Used by the verbs `run` and `demo`; prints nothing.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cli.deployment import Deployment
from contract.metrics import MetricRecord, ServerInterval, WorkerEpoch
from contract.plan import study_of_group
from contract.study import Study
from contract.table import Status
from lambdas.table import ExperimentRow

STOP_SECONDS = 60
"""How long the tasks of a stopped study may take to end."""


@dataclass(frozen=True)
class Execution:
    """A started study."""

    arn: str
    study_id: str


@dataclass(frozen=True)
class ExperimentProgress:
    """How far one experiment has come."""

    name: str
    status: Status
    workers: int
    epochs_done: int
    epochs: int
    updates_per_second: float | None
    accuracy_percent: float | None
    """On the test share of the first worker, after its last epoch."""
    cause: str


@dataclass(frozen=True)
class Ended:
    """How an execution ended."""

    status: str
    error: str
    cause: str


def start(deployment: Deployment, document: dict[str, Any], study: Study) -> Execution:
    """Start an execution named after the study and the time."""
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"{study.name[:40]}-{moment}-{secrets.token_hex(2)}"
    started = deployment.session.client("stepfunctions").start_execution(
        stateMachineArn=deployment.state_machine_arn, name=name, input=json.dumps(document)
    )
    return Execution(started["executionArn"], name)


def watch(
    deployment: Deployment, execution: Execution, interval_seconds: float
) -> Iterator[list[ExperimentProgress] | Ended]:
    """Yield the progress of all experiments every interval; the last thing yielded is an Ended."""
    client = deployment.session.client("stepfunctions")
    while True:
        described = client.describe_execution(executionArn=execution.arn)
        yield [_progress(deployment, row) for row in deployment.table().experiments(execution.study_id)]
        if described["status"] != "RUNNING":
            yield Ended(described["status"], described.get("error", ""), described.get("cause", ""))
            return
        time.sleep(interval_seconds)


def stop(deployment: Deployment, execution: Execution, progress: Callable[[str], None]) -> int:
    """Stop an execution and wait for the end of its tasks. Returns how many were still running when it gave up."""
    deployment.session.client("stepfunctions").stop_execution(
        executionArn=execution.arn, error="Interrupted", cause="stopped by the user"
    )
    tasks = deployment.tasks()
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        left = [task for task in tasks.running() if study_of_group(task.group) == execution.study_id]
        if not left or time.monotonic() > deadline:
            return len(left)
        progress(f"{len(left)} tasks are being stopped")
        time.sleep(1)


def _progress(deployment: Deployment, row: ExperimentRow) -> ExperimentProgress:
    experiment = row.experiment
    records: list[MetricRecord] = []
    if row.status is not Status.PLANNED:
        table = deployment.table()
        for role in ("server", "worker"):
            records += table.records(experiment.study_id, experiment.name, emitter=(role, 0))
    epochs = [record for record in records if isinstance(record, WorkerEpoch)]
    intervals = [record for record in records if isinstance(record, ServerInterval)]
    last = max(epochs, key=lambda epoch: epoch.epoch, default=None)
    return ExperimentProgress(
        name=experiment.name,
        status=row.status,
        workers=experiment.workers,
        epochs_done=last.epoch if last else 0,
        epochs=experiment.training.epochs,
        updates_per_second=intervals[-1].updates_per_second if intervals else None,
        accuracy_percent=100 * last.test_correct / last.test_samples if last and last.test_samples else None,
        cause=row.cause,
    )
