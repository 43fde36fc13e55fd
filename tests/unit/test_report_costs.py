"""The plan beside what the tasks took: seconds and money by experiment and in all, and where nothing is known."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.cost import Cost, task_cost
from contract.forecast import Terms, forecast
from contract.plan import Experiment, plan
from contract.prices import US_EAST_1
from contract.study import parse_study
from contract.table import Status
from lambdas.publish_report.costs import cost_document, costs, measured_of, seconds_of, spent
from lambdas.publish_report.page import render
from lambdas.publish_report.results import ExperimentOutcome, StudyOutcome
from lambdas.verdict import TaskOutcome
from tests.unit.report_fixtures import BEGIN, records_of

DOCUMENT: dict[str, Any] = {
    "matrix": {"workers": [2]},
    "compute": {"mode": "emulated", "distribution": "constant", "mean_ms": 50},
    "server": {"cpu": 2048, "memory": 4096},
    "worker": {"cpu": 512, "memory": 1024, "spot": True},
}


def task(role: str, rank: int, seconds: float | None) -> TaskOutcome:
    began = BEGIN + timedelta(seconds=rank)
    times = {}
    if seconds is not None:
        times = {
            "started_at": began.isoformat(),
            "stopped_at": (began + timedelta(seconds=seconds)).isoformat(),
        }
    return TaskOutcome(role=role, rank=rank, exit_code=0, **times)


def outcome_of(experiment: Experiment, *tasks: TaskOutcome) -> ExperimentOutcome:
    return ExperimentOutcome(
        experiment=experiment, status=Status.COMPLETED, records=records_of(experiment), tasks=tasks
    )


def study_of(terms: Terms | None = None, **more: Any) -> StudyOutcome:
    """Two experiments: of one, all tasks are known; of the other, ECS has forgotten them."""
    study = parse_study({**DOCUMENT, **more})
    experiments = plan(study, "study-1")
    known, forgotten = experiments
    return StudyOutcome(
        study_id="study-1",
        name="study",
        document=DOCUMENT,
        status=Status.COMPLETED,
        started_at=BEGIN,
        ended_at=BEGIN + timedelta(minutes=9),
        experiments=[
            outcome_of(known, task("server", 0, 200), task("worker", 0, 100.5), task("worker", 1, 10)),
            outcome_of(forgotten),
        ],
        forecast=forecast(study, experiments, terms or Terms.on_aws()),
    )


def test_a_task_that_never_ran_took_nothing() -> None:
    assert seconds_of(task("worker", 0, 12.5)) == 12.5
    assert seconds_of(task("worker", 0, None)) is None


def test_tasks_are_priced_by_their_sizes_with_a_minute_at_least() -> None:
    outcome = study_of()
    assert outcome.forecast is not None
    found = spent(outcome.experiments[0], outcome.forecast)
    one = outcome.experiments[0].experiment
    expected = (
        task_cost(US_EAST_1, "x86_64", one.server, 200, spot=False)
        + task_cost(US_EAST_1, "x86_64", one.worker, 101, spot=True)
        + task_cost(US_EAST_1, "x86_64", one.worker, 60, spot=True)
    )
    assert (found.task_seconds, found.tasks) == (310.5, 3)
    assert found.cost.total == pytest.approx(expected.total)


def test_a_worker_that_was_started_again_is_paid_twice() -> None:
    outcome = study_of()
    assert outcome.forecast is not None
    one = outcome.experiments[0]
    again = replace(one, tasks=[*one.tasks, task("worker", 1, 90)])
    assert spent(again, outcome.forecast).tasks == 4
    assert spent(again, outcome.forecast).task_seconds == 400.5


def test_the_table_sets_both_side_by_side_and_names_the_prices() -> None:
    outcome = study_of()
    table = costs(outcome)
    first, second, total = table.rows
    assert outcome.forecast is not None
    estimated = outcome.forecast.experiments[0].task_seconds
    assert first[0] == "sync_2workers"
    assert first[1:4] == [
        f"{estimated:,.0f}",
        "310",
        f"{100 * (310.5 / estimated - 1):+.1f} %".replace("-", "−"),
    ]
    assert first[6] == "draws"
    assert second[2:4] == ["–", "–"]
    assert second[5] == "–"
    assert total[0] == "All"
    assert f"{US_EAST_1.region}, {US_EAST_1.date}" in table.caption
    assert "Nothing was paid" not in table.caption


def test_on_the_embedded_cloud_the_caption_says_that_nothing_was_paid() -> None:
    assert costs(study_of(Terms.embedded())).caption.startswith("Nothing was paid: ")


def test_the_document_says_the_same_for_programs() -> None:
    outcome = study_of()
    document = cost_document(outcome)
    assert document is not None
    assert document == json.loads(json.dumps(document))
    assert document["tasks"]["actual_task_seconds"] == 310.5
    assert [each["tasks_counted"] for each in document["experiments"]] == [3, 0]
    assert outcome.forecast is not None
    assert document["estimated_usd"] == outcome.forecast.total_usd
    assert sum(document["estimated_usd_by_kind"].values()) == pytest.approx(outcome.forecast.total_usd)
    assert set(document["estimated_usd_by_kind"]) == set(Cost.model_fields)


def test_it_stands_in_the_page_and_in_study_json() -> None:
    files = render(study_of())
    assert "Cost, planned and actual" in files["report.html"].decode()
    assert json.loads(files["study.json"])["cost"]["prices"]["region"] == "us-east-1"


def test_a_study_without_an_estimate_has_no_such_section() -> None:
    files = render(replace(study_of(), forecast=None))
    assert "Cost, planned and actual" not in files["report.html"].decode()
    assert json.loads(files["study.json"])["cost"] is None


def test_what_an_experiment_took_is_remembered_as_means_over_its_tasks() -> None:
    one = study_of().experiments[0]
    ended = datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
    found = measured_of(one, ended)
    assert found is not None
    assert (found.server_seconds, found.worker_seconds) == (200, pytest.approx(55.25))
    assert (found.study_id, found.experiment) == ("study-1", "sync_2workers")
    assert found.ended_at == "2026-03-01T13:00:00+00:00"
    assert found.training_seconds > 0


def test_what_is_not_wholly_known_is_not_remembered() -> None:
    one = study_of().experiments[0]
    ended = datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
    assert measured_of(replace(one, tasks=()), ended) is None
    assert measured_of(replace(one, records=()), ended) is None


def test_a_start_that_came_to_nothing_is_no_measure_of_the_next_ones() -> None:
    one = study_of().experiments[0]
    ended = datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
    vain = task("server", 0, 90).model_copy(update={"exit_code": None, "stop_code": "TaskFailedToStart"})
    assert measured_of(replace(one, tasks=(vain, *one.tasks)), ended) == measured_of(one, ended)
