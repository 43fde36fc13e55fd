"""What the end-to-end tests look at on this machine: the command, its processes, the clouds' files."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import psutil

from contract.metrics import WorkerEpoch, from_line, is_metric_line
from contract.plan import study_of_group
from contract.results import study_prefix
from lambdas.causes import readable
from lambdas.table import ExperimentTable
from local.cloud import Cloud
from local.emulator import CREDENTIALS, REGION

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKSTEP = str(ROOT / "lockstep")

QUICK = {"dataset": "synthetic", "epochs": 2, "batch_size": 64, "learning_rate": 0.02}
"""Training of about a second, where a test needs some training but not what it learns."""

LONG = {"mode": "emulated", "distribution": "constant", "mean_ms": 200}
"""Compute that keeps an experiment running until something happens to it."""


PATIENCE_SECONDS = 300.0
"""For what is sure to come, however slow the machine: a bound for what hangs, and nothing else."""


def bare_environment() -> dict[str, str]:
    """What `env -i HOME=$HOME PATH=$PATH` leaves."""
    return {"HOME": os.environ["HOME"], "PATH": os.environ["PATH"]}


def lockstep(*arguments: str, timeout: float = 2 * PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [LOCKSTEP, *arguments],
        cwd=ROOT,
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def started(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, running in a session of its own as in a terminal; killed when the test is done."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [LOCKSTEP, *arguments],
            cwd=ROOT,
            env=bare_environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], Any], what: str, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """The condition's first truthy value."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {patience_seconds} s: {what}")


def processes_of(cloud_state: str) -> list[psutil.Process]:
    """Every process that has to do with the cloud whose files lie there: it, its parts, their descendants."""
    found, place = [], re.compile(rf"{re.escape(cloud_state)}\b")  # run-12 is not run-123
    for process in psutil.process_iter():
        # It may end at any moment, while its children are looked for too.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if place.search(" ".join([*process.cmdline(), *process.environ().values()])):
                found += [process, *process.children(recursive=True)]
    return found


def listeners_of(cloud: Cloud) -> list[str]:
    """The addresses on which processes of a cloud listen."""
    found = []
    for process in processes_of(cloud.state):
        with suppress(psutil.NoSuchProcess):
            found += [c.laddr.ip for c in process.net_connections(kind="inet") if c.status == "LISTEN"]
    return found


def lives(cloud: Cloud, pid: int) -> bool:
    """Whether the process of a task lives. Its number alone does not tell: it may be another's by now."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        command = psutil.Process(pid).cmdline()  # the engine's, which it was forked from; of a zombie, none
        return "local.engine" in command and any(part.startswith(cloud.state) for part in command)
    return False


def client(cloud: Cloud, service: Any) -> Any:
    """An AWS client of that cloud."""
    return boto3.client(
        service,
        endpoint_url=cloud.endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def start_study(cloud: Cloud, name: str, document: dict[str, Any]) -> str:
    """Start a study by the state machine alone; the execution's ARN."""
    started: dict[str, str] = client(cloud, "stepfunctions").start_execution(
        stateMachineArn=cloud.outputs["StateMachineArn"], name=name, input=json.dumps(document)
    )
    return started["executionArn"]


def await_end(cloud: Cloud, execution_arn: str, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """The description of an execution that has ended."""
    states = client(cloud, "stepfunctions")

    def description() -> dict[str, Any] | None:
        described: dict[str, Any] = states.describe_execution(executionArn=execution_arn)
        return described if described["status"] != "RUNNING" else None

    ended: dict[str, Any] = until(description, f"the end of {execution_arn}", patience_seconds)
    return ended


def study_of(arn: str) -> str:
    """The study that an execution runs."""
    return arn.rsplit(":", 1)[1]


def cause_of(described: dict[str, Any]) -> str:
    """What a failed execution says; where a function of ours failed it, the message alone."""
    return readable(described.get("cause", ""))


def errors_of(cloud: Cloud, arn: str) -> list[str]:
    """The errors that states of an execution, and those of its experiments, have met; tried again or not."""
    states = client(cloud, "stepfunctions")
    runs = states.list_map_runs(executionArn=arn)["mapRuns"]
    children = [
        child["executionArn"]
        for run in runs
        for child in states.list_executions(mapRunArn=run["mapRunArn"])["executions"]
    ]
    return [
        event["taskFailedEventDetails"]["error"]
        for one in (arn, *children)
        for page in states.get_paginator("get_execution_history").paginate(executionArn=one)
        for event in page["events"]
        if event["type"] == "TaskFailed"
    ]


def table_of(cloud: Cloud) -> ExperimentTable:
    """The deployed table."""
    dynamodb = boto3.resource(
        "dynamodb",
        endpoint_url=cloud.endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    return ExperimentTable(dynamodb.Table(cloud.outputs["TableName"]))


def published(cloud: Cloud, arn: str, path: str) -> str | None:
    """A file of a study's results tree; None where it is not there (yet)."""
    s3, key = client(cloud, "s3"), study_prefix(study_of(arn)) + path
    try:
        body: bytes = s3.get_object(Bucket=cloud.outputs["BucketName"], Key=key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        return None
    return body.decode()


class RunningTask(NamedTuple):
    """A task that runs in a cloud, and its process on this machine."""

    experiment: str
    role: str
    rank: int
    pid: int


def running_tasks(cloud: Cloud, arn: str | None = None) -> list[RunningTask]:
    """The tasks that ECS means to be running and whose process was started; of one study where its `arn` is given."""
    pids = _pids(cloud)
    tasks = []
    for task in _described(cloud, "RUNNING"):
        container = task["overrides"]["containerOverrides"][0]
        environment = {pair["name"]: pair["value"] for pair in container["environment"]}
        pid = pids.get(_short_id(task))
        if pid and (arn is None or study_of_group(task["group"]) == study_of(arn)):
            rank = int(environment.get("WORKER_RANK", "0"))
            tasks.append(RunningTask(environment.get("EXPERIMENT_NAME", ""), container["name"], rank, pid))
    return tasks


def trained(cloud: Cloud, arn: str, experiment: str) -> set[int]:
    """The ranks that have come through an epoch of an experiment: the server knows them, and has their gradients.

    From the log: the table has it later, on a busy machine when training is over.
    """
    records = [from_line(line) for line in logged(cloud, "worker_epoch") if is_metric_line(line)]
    epochs = [record for record in records if isinstance(record, WorkerEpoch)]
    whose = (study_of(arn), experiment)
    return {record.rank for record in epochs if (record.study, record.experiment) == whose}


def logged(cloud: Cloud, pattern: str = "") -> list[str]:
    """What the tasks of a cloud have written, as far as it is in the log group; lines with `pattern` alone."""
    events = client(cloud, "logs").get_paginator("filter_log_events")
    pages = events.paginate(logGroupName=cloud.outputs["LogGroupName"], filterPattern=pattern)
    found = [event for page in pages for event in page["events"]]
    return [event["message"] for event in sorted(found, key=lambda event: int(event["timestamp"]))]


def ended_tasks(cloud: Cloud, arn: str) -> int:
    """How many tasks of a study have ended."""
    return sum(study_of_group(task["group"]) == study_of(arn) for task in _described(cloud, "STOPPED"))


def definitions_of(cloud: Cloud, arn: str) -> set[str]:
    """The task definitions of all tasks that a study has had."""
    tasks = [*_described(cloud, "RUNNING"), *_described(cloud, "STOPPED")]
    return {task["taskDefinitionArn"] for task in tasks if study_of_group(task["group"]) == study_of(arn)}


def assert_nothing_left(cloud: Cloud, arn: str) -> None:
    """No task of a study has not ended, and soon there is no process of any that it ever had."""
    tasks = [*_described(cloud, "RUNNING"), *_described(cloud, "STOPPED")]
    own = [task for task in tasks if study_of_group(task["group"]) == study_of(arn)]
    assert [task for task in own if task["lastStatus"] != "STOPPED"] == []
    pids = _pids(cloud)
    await_death(cloud, [pids[_short_id(task)] for task in own if _short_id(task) in pids])


def await_death(cloud: Cloud, pids: Collection[int]) -> None:
    """MiniStack calls a task STOPPED, and then ends its process, within the stop timeout of 5 s."""
    until(lambda: not [pid for pid in pids if lives(cloud, pid)], "no process of an ended task", 60)


def starts_of(cloud: Cloud) -> list[str]:
    """The roles of the tasks that were ever started, in the order of their starts."""
    log = Path(cloud.state, "engine.log").read_text()
    return re.findall(r"started ministack-ecs-\w+-(\w+) at ", log)


def _described(cloud: Cloud, desired_status: str) -> list[dict[str, Any]]:
    ecs, cluster = client(cloud, "ecs"), cloud.outputs["ClusterArn"]
    pages = ecs.get_paginator("list_tasks").paginate(cluster=cluster, desiredStatus=desired_status)
    arns = [arn for page in pages for arn in page["taskArns"]]
    described: list[dict[str, Any]] = []
    for start in range(0, len(arns), 100):
        described += ecs.describe_tasks(cluster=cluster, tasks=arns[start : start + 100])["tasks"]
    return described


def _pids(cloud: Cloud) -> dict[str, int]:
    """Beginning of a task's id → its process, of every task that was started."""
    log = Path(cloud.state, "engine.log").read_text()
    found = re.findall(r"started ministack-ecs-(\w{8})-\w+ at \S+ \(pid (\d+)\)", log)
    return {task: int(pid) for task, pid in found}


def _short_id(task: dict[str, Any]) -> str:
    return str(task["taskArn"]).rsplit("/", 1)[1][:8]
