"""Studies that end badly: each names its cause and leaves nothing running."""

import json
import os
import signal
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from contract.table import Status
from local.cloud import Cloud
from tests.e2e.lifetimes import CLEAN_UP_SECONDS
from tests.e2e.machine import (
    LONG,
    QUICK,
    assert_nothing_left,
    await_death,
    cause_of,
    client,
    lockstep,
    published,
    running_tasks,
    study_of,
    table_of,
    trained,
    until,
)

ENDLESS = {**QUICK, "epochs": 100}


def statuses(cloud: Cloud, arn: str) -> set[Status]:
    return {row.status for row in table_of(cloud).experiments(study_of(arn))}


def test_five_mistakes_are_five_named_problems_and_start_nothing(
    study_file: Callable[[dict[str, Any]], Path],
) -> None:
    file = study_file(
        {
            "matrix": {"workers": [64], "mode": ["sycn"]},
            "training": {"epoch": 3, "learning_rate": -1},
            "server": {"cpu": 1024, "memory": 100},
        }
    )
    done = lockstep("run", str(file))
    assert done.returncode == 2
    problems = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    assert [problem.split(":")[0].removeprefix("  - ") for problem in problems] == [
        "matrix.mode[0]",
        "matrix.workers[0]",
        "training.learning_rate",
        "training.epoch",
        "server",
    ]
    assert "5 problems" in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_worker_fails_its_experiment_and_no_other(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given a sync experiment in the middle of training, and an async sibling
    study = {
        "experiments": [
            {"name": "victim", "mode": "sync", "workers": 2},
            {"name": "sibling", "mode": "async", "workers": 3},
        ],
        "training": {**QUICK, "epochs": 16, "batch_size": 128},
        "compute": LONG,
    }
    arn = start(study)
    until(lambda: trained(cloud, arn, "victim") == {0, 1}, "the victim trains")
    tasks = running_tasks(cloud, arn)

    # When one of its workers is killed
    victim = next(task for task in tasks if task.experiment == "victim" and task.role == "worker")
    os.kill(victim.pid, signal.SIGKILL)

    # Then the study has ended FAILED with that worker as the root cause, in the report too
    described = ended(arn)
    assert (described["status"], described["error"]) == ("FAILED", "StudyFailed")
    assert f"victim: worker {victim.rank} was killed (exit code 137" in cause_of(described)
    assert "1 of 2 experiments failed" in cause_of(described)
    page = published(cloud, arn, "report.html") or ""
    assert f"worker {victim.rank} was killed (exit code 137" in page
    # With how its tasks ended and what they wrote last
    assert f"First to fail: worker {victim.rank}" in page
    assert "Last log lines of server" in page
    result = json.loads(published(cloud, arn, "experiments/victim.json") or "")
    assert result["first_failure"] == f"worker {victim.rank}"
    ends = {(end["role"], end["rank"]): end for end in result["task_ends"]}
    assert ends.keys() == {("server", 0), ("worker", 0), ("worker", 1)}
    assert ends["worker", victim.rank]["exit_code"] == 137
    assert f"worker {victim.rank} vanished" in ends["server", 0]["last_lines"][-1]
    # And the sibling has completed
    assert json.loads(published(cloud, arn, "experiments/sibling.json") or "")["status"] == "COMPLETED"
    assert json.loads(published(cloud, arn, "experiments/victim.json") or "")["status"] == "FAILED"
    # And nothing of it is left
    assert_nothing_left(cloud, arn)
    await_death(cloud, [task.pid for task in tasks])


def test_dead_server_does_not_keep_anybody_waiting(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    arn = start({"experiments": [{"mode": "async", "workers": 2}], "training": ENDLESS, "compute": LONG})
    until(lambda: len(running_tasks(cloud, arn)) == 3, "a server and two workers running")
    server = next(task for task in running_tasks(cloud, arn) if task.role == "server")
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
    # gRPC listens on IPv6 sockets, which show IPv4 addresses as mapped ones
    addresses = [(ip_address(address.ip.removeprefix("::ffff:")), address.port) for address in listening]
    assert sorted((address.is_loopback, port) for address, port in addresses) == [(True, 8000), (True, 8001)]
    os.kill(server.pid, signal.SIGKILL)
    described = ended(arn)
    assert described["status"] == "FAILED"
    assert "server was killed (exit code 137" in cause_of(described)
    assert running_tasks(cloud, arn) == []


def test_training_goes_on_without_a_crashed_worker_until_it_is_back(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given a worker that dies and starts anew: where it is the only one, the server waits for it
    study = {
        "experiments": [
            {"name": "alone", "mode": "async", "workers": 1},
            {"name": "two", "mode": "sync", "workers": 2},
        ],
        "training": QUICK,
        "faults": {"crashes": [{"rank": 0, "step": 2, "restart_after_seconds": 0.2}]},
        "on_worker_loss": "continue",
        "checkpoint": {"interval_seconds": 1},
    }

    # When it is run
    arn = start(study)
    described = ended(arn)

    # Then both experiments completed, and their results say who was lost and who came back
    assert described["status"] == "SUCCEEDED", cause_of(described)
    assert statuses(cloud, arn) == {Status.COMPLETED}
    alone, two = (
        json.loads(published(cloud, arn, f"experiments/{name}.json") or "") for name in ("alone", "two")
    )
    assert [result["server_metrics"]["lost_workers"] for result in (alone, two)] == [[0], [0]]
    assert (alone["server_metrics"]["rejoined_workers"], alone["server_metrics"]["lost_steps"]) == ([0], 0)
    assert {task["rank"] for task in two["workers"]} >= {1}
    # And the report has it, with the label of what was injected
    page = published(cloud, arn, "report.html") or ""
    assert "injected crashes: worker 0 at step 2, back after 0.2" in page
    assert '<h2 id="losses">Losses</h2>' in page
    # And checkpoints went where the deployment keeps them
    assert alone["server_metrics"]["checkpoints_written"] >= 1
    kept = client(cloud, "s3").list_objects_v2(
        Bucket=cloud.outputs["BucketName"], Prefix=f"checkpoints/{arn.rsplit(':', 1)[1]}/"
    )
    assert {item["Key"].split("/")[2] for item in kept["Contents"]} == {"alone", "two"}


def test_no_further_experiment_of_a_stopped_execution_starts(cloud: Cloud, start: Callable[..., str]) -> None:
    # Given a study with running tasks and experiments that still wait
    study = {
        "matrix": {"workers": [1, 2]},
        "max_parallel_experiments": 1,
        "training": ENDLESS,
        "compute": LONG,
    }
    arn = start(study)
    until(lambda: len(running_tasks(cloud, arn)) >= 2, "a server and a worker running")

    # When the execution is stopped
    client(cloud, "stepfunctions").stop_execution(executionArn=arn)

    # Then its tasks are gone, and no further experiment starts any
    until(lambda: statuses(cloud, arn) == {Status.ABORTED}, "every experiment is aborted", CLEAN_UP_SECONDS)
    assert_nothing_left(cloud, arn)
    time.sleep(2)
    assert running_tasks(cloud, arn) == []


def test_missing_data_is_one_clear_error(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    training = {"dataset": "cifar10", "data": "/nowhere"}
    arn = start({"experiments": [{"mode": "sync", "workers": 1}], "training": training})
    described = ended(arn)
    assert described["status"] == "FAILED"
    said = "cifar10: 7 of 7 files are not in DATA_DIRECTORY /nowhere"
    assert said in cause_of(described)
    page = published(cloud, arn, "report.html") or ""
    assert "First to fail: worker 0" in page
    assert f"lockstep-worker {study_of(arn)}/sync_1worker_seed0: {said}" in page
