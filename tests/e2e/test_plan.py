"""A plan on the embedded cloud: by the command and by the state machine, and that neither starts anything."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.forecast import Forecast
from contract.results import study_prefix
from lambdas.table import ExperimentTable
from local.cloud import Cloud
from local.emulator import client_environment
from tests.e2e.machine import (
    PATIENCE_SECONDS,
    QUICK,
    ROOT,
    bare_environment,
    client,
    running_tasks,
    starts_of,
)

DRY = {"preset": "recommended", "training": QUICK, "dry_run": True}


@pytest.fixture
def table(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> ExperimentTable:
    for name, value in client_environment(cloud.endpoint).items():
        monkeypatch.setenv(name, value)
    return ExperimentTable.named(cloud.outputs["TableName"])


def test_a_dry_run_succeeds_with_its_plan_and_leaves_no_task_and_no_row(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    table: ExperimentTable,
) -> None:
    before = starts_of(cloud)
    arn = start(DRY)
    described = ended(arn)
    assert described["status"] == "SUCCEEDED", described
    planned = Forecast.model_validate_json(described["output"])
    assert len(planned.experiments) == 6
    assert planned.hypothetical
    assert [(quota.vcpus, quota.source) for quota in planned.quotas] == [(128, "the deployment's setting")]
    study_id = arn.rsplit(":", 1)[1]
    assert table.study(study_id) is None
    assert table.experiments(study_id) == []
    assert starts_of(cloud) == before
    assert running_tasks(cloud) == []


def test_a_study_above_its_bound_is_refused_with_the_breakdown_and_starts_nothing(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]], table: ExperimentTable
) -> None:
    before = starts_of(cloud)
    arn = start({"training": QUICK, "max_cost_usd": 0.0001})
    described = ended(arn)
    assert (described["status"], described["error"]) == ("FAILED", "StudyRefused")
    assert "max_cost_usd: the study would cost $" in described["cause"]
    assert "public IPv4 $" in described["cause"]
    assert table.study(arn.rsplit(":", 1)[1]) is None
    assert starts_of(cloud) == before


def test_real_compute_is_planned_from_the_study_before_it(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given a study with real compute that has completed, whose report sets the plan's guess beside what it took
    study = {
        "experiments": [{"name": "one", "mode": "sync", "workers": 2}],
        # Some seconds: the emulator tells of starts and ends in whole ones.
        "training": {**QUICK, "epochs": 100, "batch_size": 16},
    }
    arn = start(study)
    assert ended(arn)["status"] == "SUCCEEDED"
    cost = cost_of(cloud, arn)
    assert (cost["experiments"][0]["basis"], cost["tasks"]["tasks_counted"]) == ("guess", 3)
    assert cost["hypothetical"]
    actual = cost["tasks"]["actual_task_seconds"]
    assert actual > 0

    # When one with the same settings is planned, under another name and seed
    again = {
        **study,
        "experiments": [{"name": "two", "mode": "sync", "workers": 2, "seed": 4}],
        "dry_run": True,
    }
    planned = Forecast.model_validate_json(ended(start(again, "-again"))["output"])

    # Then it is told from what the first one took
    (experiment,) = planned.experiments
    assert experiment.basis.value == "history"
    assert "one of study" in experiment.note
    assert experiment.task_seconds == pytest.approx(actual, rel=0.001)


def cost_of(cloud: Cloud, execution_arn: str) -> dict[str, Any]:
    prefix = study_prefix(execution_arn.rsplit(":", 1)[1])
    body = client(cloud, "s3").get_object(Bucket=cloud.outputs["BucketName"], Key=f"{prefix}study.json")[
        "Body"
    ]
    cost: dict[str, Any] = json.loads(body.read())["cost"]
    return cost


APART = """
import sys
from pathlib import Path
from cli import __main__ as command
command.UP = Path(sys.argv.pop(1))
command.main()
"""
"""The command with another place for what is up: runs of other tests, meanwhile, would take that cloud for theirs."""

Lockstep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lockstep(tmp_path: Path) -> Lockstep:
    """Run the command to its end, where no cloud is up but its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", APART, str(tmp_path / "up"), *arguments],
            cwd=ROOT,
            env=bare_environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def up(lockstep: Lockstep) -> Iterator[None]:
    """The cloud that `lockstep up` starts."""
    started = lockstep("up")
    assert started.returncode == 0, started.stderr
    yield
    lockstep("down")


@pytest.mark.usefixtures("up")
def test_the_command_plans_with_the_cloud_that_is_up_and_runs_a_dry_run_there(
    lockstep: Lockstep, study_file: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    file = study_file({key: value for key, value in DRY.items() if key != "dry_run"})
    done = lockstep("plan", str(file), "--local")
    assert done.returncode == 0, done.stderr
    assert "async_8workers" in done.stdout
    assert "quota     128 on-demand vCPUs (the deployment's setting)" in done.stdout
    assert "nothing is paid on the embedded cloud" in done.stdout

    dry = lockstep("run", str(study_file(DRY)), "--local", "--output", str(tmp_path / "results"))
    assert dry.returncode == 0, dry.stderr
    assert "async_8workers" in dry.stdout
    assert "report:" not in dry.stdout
    assert list((tmp_path / "results").iterdir()) == []


def test_without_a_cloud_the_command_plans_from_the_document_alone(
    lockstep: Lockstep,
    study_file: Callable[[dict[str, Any]], Path],
) -> None:
    done = lockstep("plan", str(study_file({"training": QUICK})), "--local", "--json")
    assert done.returncode == 0, done.stderr
    planned = Forecast.model_validate_json(done.stdout)
    assert planned.quotas == []
    assert any("no embedded cloud is up" in note for note in planned.notes)
