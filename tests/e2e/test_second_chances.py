"""What is run again: a worker that was struck, by the state machine; what failed of a study, by a redrive."""

import json
import os
import signal
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from contract.metrics import WorkerSummary
from contract.table import Status
from lambdas.table import ExperimentTable
from local.cloud import Cloud
from local.emulator import client_environment
from tests.e2e.machine import LONG, QUICK, RunningTask, client, running_tasks, trained, until

TRAINING = {**QUICK, "epochs": 32, "batch_size": 128}


@pytest.fixture
def table(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> ExperimentTable:
    for name, value in client_environment(cloud.endpoint).items():
        monkeypatch.setenv(name, value)
    return ExperimentTable.named(cloud.outputs["TableName"])


def worker(cloud: Cloud, experiment: str, rank: int) -> RunningTask | None:
    """That worker's task, if one is running."""
    tasks = (
        t for t in running_tasks(cloud) if (t.experiment, t.role, t.rank) == (experiment, "worker", rank)
    )
    return next(tasks, None)


def result(cloud: Cloud, arn: str, experiment: str) -> dict[str, Any]:
    key = f"studies/{arn.rsplit(':', 1)[1]}/experiments/{experiment}.json"
    body = client(cloud, "s3").get_object(Bucket=cloud.outputs["BucketName"], Key=key)["Body"].read()
    loaded: dict[str, Any] = json.loads(body)
    return loaded


def test_a_spot_worker_that_was_struck_is_started_again_and_one_that_gave_up_is_not(
    cloud: Cloud, table: ExperimentTable, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given an experiment with workers on Spot, in the middle of training
    study = {
        "experiments": [{"name": "spot", "mode": "async", "workers": 3}],
        "training": TRAINING,
        "compute": LONG,
        "worker": {"cpu": 1024, "memory": 2048, "spot": True},
    }
    arn = start(study)
    until(lambda: trained(cloud, arn, "spot") == {0, 1, 2}, "three workers train")
    first, other = worker(cloud, "spot", 1), worker(cloud, "spot", 2)
    assert first is not None
    assert other is not None
    assert capacities(cloud, "spot") == ["FARGATE", *["FARGATE_SPOT"] * 3]

    # When one of them dies without a word, and another one ends by itself with exit code 1
    os.kill(first.pid, signal.SIGKILL)
    os.kill(other.pid, signal.SIGINT)

    # Then the first is started again under its rank
    def again() -> RunningTask | None:
        found = worker(cloud, "spot", 1)
        return found if found is not None and found.pid != first.pid else None

    until(again, "the worker is running again")
    # And the study completes, and says who came back and who did not
    described = ended(arn)
    assert described["status"] == "SUCCEEDED", described.get("cause")
    metrics = result(cloud, arn, "spot")["server_metrics"]
    assert (sorted(metrics["lost_workers"]), metrics["rejoined_workers"]) == ([1, 2], [1])
    (row,) = table.experiments(arn.rsplit(":", 1)[1])
    assert "went on without worker 2" in row.cause
    assert "worker 1 came back after a loss" in row.cause
    exits = sorted((task.rank, task.exit_code) for task in row.tasks if task.role == "worker")
    assert exits == [(0, 0), (1, 0), (1, 137), (2, 1)]
    assert running_tasks(cloud) == []


def capacities(cloud: Cloud, experiment: str) -> list[str]:
    """What the tasks with the experiment's tag run on."""
    ecs, cluster = client(cloud, "ecs"), cloud.outputs["ClusterArn"]
    arns = ecs.list_tasks(cluster=cluster)["taskArns"]
    described = ecs.describe_tasks(cluster=cluster, tasks=arns, include=["TAGS"])["tasks"]
    tag = {"key": "lockstep:experiment", "value": experiment}
    return sorted(task["capacityProviderName"] for task in described if tag in task["tags"])


def test_a_redriven_study_runs_what_failed_and_nothing_else(
    cloud: Cloud, table: ExperimentTable, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given a study that failed because one of its experiments did
    study = {
        "experiments": [
            {"name": "victim", "mode": "sync", "workers": 2},
            {"name": "sibling", "mode": "async", "workers": 2},
        ],
        "training": {**TRAINING, "epochs": 10},
        "compute": LONG,
    }
    arn = start(study)
    study_id = arn.rsplit(":", 1)[1]
    until(lambda: trained(cloud, arn, "victim") == {0, 1}, "the victim trains")
    victim = worker(cloud, "victim", 0)
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    described = ended(arn)
    assert (described["status"], described["error"]) == ("FAILED", "StudyFailed")
    failed, completed = table.experiments(study_id)
    assert (failed.status, completed.status) == (Status.FAILED, Status.COMPLETED)

    # When its execution is redriven, whether clean-up has heard of the failure or not
    client(cloud, "stepfunctions").redrive_execution(executionArn=arn)

    # Then it succeeds, what had completed was not run again, and of what had failed only the new run counts
    described = ended(arn)
    assert described["status"] == "SUCCEEDED", described.get("cause")
    row, same = table.experiments(study_id)
    assert same == completed
    assert row.status is Status.COMPLETED
    assert row.started_at > failed.ended_at
    assert {task.exit_code for task in row.tasks} == {0}
    began = datetime.fromisoformat(row.started_at)
    assert min(record.timestamp for record in table.records(study_id, "victim")) > began
    summaries = [record for record in table.records(study_id, "victim") if isinstance(record, WorkerSummary)]
    assert sorted(summary.rank for summary in summaries) == [0, 1]
    stored = table.study(study_id)
    assert stored is not None
    assert stored.status is Status.COMPLETED
    assert result(cloud, arn, "victim")["status"] == "COMPLETED"
    assert running_tasks(cloud) == []
