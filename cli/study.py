"""Run one study on a deployment: start its execution, watch it, stop it.

Used by the verbs `run` and `demo`; prints nothing.
"""

import json
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from cli.deployment import AWS_ERRORS, Deployment
from contract.metrics import MetricRecord, ServerInterval, WorkerEpoch
from contract.plan import study_of_group
from contract.study import Study
from contract.table import TERMINAL, Status
from lambdas.causes import readable
from lambdas.rows import ExperimentRow
from lambdas.table import ExperimentTable

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions.type_defs import DescribeExecutionOutputTypeDef

STOP_SECONDS = 60
"""How long the tasks of a stopped study may take to end."""

PAUSES_SECONDS = (1.0, 2.0, 4.0)
"""Before looking again when looking has failed; each time, the AWS client has tried several times itself."""

T = TypeVar("T")


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
    output: str = ""
    """JSON, of one that succeeded."""


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
    """Yield the progress of all experiments every interval; the last thing yielded is an Ended.

    Raises one of AWS_ERRORS when looking has failed several times in a row.
    """
    client = deployment.session.client("stepfunctions")
    table = deployment.table()
    ended: dict[str, ExperimentProgress] = {}  # whose rows change no more: they are read once

    def look() -> tuple[list[ExperimentProgress], Ended | None]:
        described = client.describe_execution(executionArn=execution.arn)
        experiments = []
        for row in table.experiments(execution.study_id):
            name = row.experiment.name
            experiments.append(ended.get(name) or _progress(table, row))
            if row.status in TERMINAL:
                ended[name] = experiments[-1]
        if described["status"] == "RUNNING":
            return experiments, None
        return experiments, _ended(described)

    while True:
        seen, end = patiently(look)
        yield seen
        if end:
            yield end
            return
        time.sleep(interval_seconds)


def _ended(described: "DescribeExecutionOutputTypeDef") -> Ended:
    return Ended(
        described["status"],
        described.get("error", ""),
        readable(described.get("cause", "")),
        described.get("output", ""),
    )


def patiently(call: Callable[[], T], pauses_seconds: Sequence[float] = PAUSES_SECONDS) -> T:
    """What a call returns, which may fail with AWS_ERRORS as many times in a row as there are pauses."""
    for pause in pauses_seconds:
        try:
            return call()
        except AWS_ERRORS:
            time.sleep(pause)
    return call()


def left_running(deployment: Deployment, execution: Execution) -> str:
    """What to tell a user whose command ends before the study does."""
    if deployment.ends_with_command:
        return f"the {deployment.hint} ends, and with it the study that was running: {execution.arn}"
    command = ["aws", "stepfunctions", "stop-execution", "--execution-arn", execution.arn]
    if deployment.endpoint:
        command[1:1] = ["--endpoint-url", deployment.endpoint]
    elif region := deployment.session.region_name:
        command[1:1] = ["--region", region]
    if (profile := deployment.session.profile_name) != "default" and not deployment.endpoint:
        command[1:1] = ["--profile", profile]
    return f"the study goes on running: {execution.arn}\nstop it with: {shlex.join(command)}"


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


def _progress(table: ExperimentTable, row: ExperimentRow) -> ExperimentProgress:
    experiment = row.experiment
    records: list[MetricRecord] = []
    if row.status is not Status.PLANNED:
        for role in ("server", "worker"):
            # Behind the last epoch or interval come a summary and, of a task that failed, its reason.
            records += table.newest(experiment.study_id, experiment.name, emitter=(role, 0), limit=3)
    last = next((record for record in records if isinstance(record, WorkerEpoch)), None)
    interval = next((record for record in records if isinstance(record, ServerInterval)), None)
    return ExperimentProgress(
        name=experiment.name,
        status=row.status,
        workers=experiment.workers,
        epochs_done=last.epoch if last else 0,
        epochs=experiment.training.epochs,
        updates_per_second=interval.updates_per_second if interval else None,
        accuracy_percent=100 * last.test_correct / last.test_samples if last and last.test_samples else None,
        cause=row.cause,
    )
