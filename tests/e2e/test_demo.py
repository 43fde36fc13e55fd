"""The demo, as `make demo` runs it: six true experiments, every file, and the laws in its own output."""

import json
from pathlib import Path
from typing import Any

import pytest

from contract.draws import draw_seconds
from contract.study import parse_study
from tests.e2e.machine import ROOT, lockstep

EXPERIMENTS = [f"{mode}_{n}worker{'s' * (n > 1)}" for n in (1, 2, 4) for mode in ("sync", "async")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results")
    done = lockstep("demo", "--output", str(output))
    assert done.returncode == 0, done.stderr
    return output / "latest"


@pytest.fixture(scope="module")
def experiments(results: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((results / "experiments" / f"{name}.json").read_text()) for name in EXPERIMENTS}


def test_every_file_is_there(results: Path) -> None:
    files = {str(file.relative_to(results)) for file in results.rglob("*") if file.is_file()}
    plots = ["scaling_analysis", *(f"sync_vs_async_{n}workers" for n in (1, 2, 4))]
    assert files == {
        *("report.html", "summary.csv", "summary.txt", "study.json"),
        *(f"experiments/{name}.json" for name in EXPERIMENTS),
        *(f"plots/{plot}.{kind}" for plot in plots for kind in ("png", "svg")),
    }


def test_every_experiment_learns(experiments: dict[str, dict[str, Any]]) -> None:
    accuracies = {
        name: experiment["worker_metrics_aggregated"]["final_test_accuracy_percent"]
        for name, experiment in experiments.items()
    }
    assert all(accuracy >= 85 for accuracy in accuracies.values()), accuracies


@pytest.mark.parametrize("workers", [2, 4])
def test_staleness_while_all_train_is_one_less_than_the_workers(
    experiments: dict[str, dict[str, Any]], workers: int
) -> None:
    server = experiments[f"async_{workers}workers"]["server_metrics"]
    assert server["average_gradient_staleness_all_training"] == pytest.approx(workers - 1, rel=0.02)
    assert 0 < server["average_gradient_staleness"] <= server["average_gradient_staleness_all_training"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_sync_applies_one_update_for_all_gradients_of_a_step(
    experiments: dict[str, dict[str, Any]], workers: int
) -> None:
    server = experiments[f"sync_{workers}worker{'s' * (workers > 1)}"]["server_metrics"]
    assert server["gradients_processed"] == workers * server["global_steps_completed"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_sync_step_is_shorter_than_its_slowest_draw(
    experiments: dict[str, dict[str, Any]], workers: int
) -> None:
    # The draws are seeded: what the steps must last at least is known. How much longer is the machine's speed.
    server = experiments[f"sync_{workers}worker{'s' * (workers > 1)}"]["server_metrics"]
    steps = server["global_steps_completed"]
    compute = parse_study(json.loads((ROOT / "examples" / "demo.json").read_text())).compute
    slowest = [max(draw_seconds(0, rank, step, compute) for rank in range(workers)) for step in range(steps)]
    assert server["mean_step_seconds"] >= sum(slowest) / steps


def test_the_plan_was_within_a_tenth_of_what_ran(results: Path) -> None:
    """Task-seconds as well as their price: a minute that is billed at least hides what short tasks take."""
    cost = json.loads((results / "study.json").read_text())["cost"]
    tasks = cost["tasks"]
    assert tasks["tasks_counted"] == 6 + 2 * (1 + 2 + 4)
    assert {each["basis"] for each in cost["experiments"]} == {"draws"}
    assert tasks["actual_task_seconds"] == pytest.approx(tasks["estimated_task_seconds"], rel=0.1)
    assert tasks["actual_tasks_usd"] == pytest.approx(tasks["estimated_tasks_usd"], rel=0.1)
