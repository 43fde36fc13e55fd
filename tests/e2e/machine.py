"""What the end-to-end tests look at on this machine: the command, its processes, the clouds' files."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import psutil

from local.cloud import Cloud
from local.emulator import CREDENTIALS, REGION

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKSTEP = str(ROOT / "lockstep")

QUICK = {"dataset": "synthetic", "epochs": 2, "batch_size": 64, "learning_rate": 0.02}
"""Training of about a second, where a test needs some training but not what it learns."""

LONG = {"mode": "emulated", "distribution": "constant", "mean_ms": 200}
"""Compute that keeps an experiment running until something happens to it."""


def bare_environment() -> dict[str, str]:
    """What `env -i HOME=$HOME PATH=$PATH` leaves."""
    return {"HOME": os.environ["HOME"], "PATH": os.environ["PATH"]}


def lockstep(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
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


def until(condition: Callable[[], Any], patience_seconds: float, what: str) -> Any:
    """The condition's first truthy value."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {patience_seconds} s: {what}")


def processes_of(cloud_state: str) -> list[psutil.Process]:
    """Every process that has to do with the cloud whose files lie there: it, its parts, their descendants."""
    found = []
    for process in psutil.process_iter():
        try:
            mentioned = cloud_state in " ".join(process.cmdline()) or cloud_state in "".join(
                process.environ().values()
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if mentioned:
            found += [process, *process.children(recursive=True)]
    return found


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


def await_end(cloud: Cloud, execution_arn: str, patience_seconds: float = 120) -> dict[str, Any]:
    """The description of an execution that has ended."""
    states = client(cloud, "stepfunctions")

    def description() -> dict[str, Any] | None:
        described: dict[str, Any] = states.describe_execution(executionArn=execution_arn)
        return described if described["status"] != "RUNNING" else None

    ended: dict[str, Any] = until(description, patience_seconds, f"the end of {execution_arn}")
    return ended


class RunningTask(NamedTuple):
    """A task that runs in a cloud, and its process on this machine."""

    experiment: str
    role: str
    rank: int
    pid: int


def running_tasks(cloud: Cloud) -> list[RunningTask]:
    """The tasks that ECS means to be running and whose process was started."""
    ecs, cluster = client(cloud, "ecs"), cloud.outputs["ClusterArn"]
    arns = ecs.list_tasks(cluster=cluster)["taskArns"]
    log = Path(cloud.state, "engine.log").read_text()
    pids = dict(re.findall(r"started ministack-ecs-(\w{8})-\w+ at \S+ \(pid (\d+)\)", log))
    described = ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"] if arns else []
    tasks = []
    for task in described:
        container = task["overrides"]["containerOverrides"][0]
        environment = {pair["name"]: pair["value"] for pair in container["environment"]}
        pid = pids.get(task["taskArn"].rsplit("/", 1)[1][:8])
        if pid:
            rank = int(environment.get("WORKER_RANK", "0"))
            tasks.append(RunningTask(environment["EXPERIMENT_NAME"], container["name"], rank, int(pid)))
    return tasks
