"""PlanStudy: a study document in, rows and the items of the Map out; a refused one leaves no trace."""

import json
import re
from typing import Any

import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.plan import plan
from contract.study import parse_study
from contract.table import Status
from contract.task import TaskEnvironment
from lambdas.plan_study.handler import handler
from lambdas.plan_study.launch import LAUNCH_SECONDS, RESTARTS, launch_item
from lambdas.table import ExperimentTable
from lambdas.verdict import Verdict

DOCUMENT: dict[str, Any] = {
    "matrix": {"workers": [2, 1]},
    "server": {"cpu": 4096, "memory": 8192},
    "worker": {"cpu": 256, "memory": 512},
    "max_parallel_experiments": 3,
}


def call(study: object, context: LambdaContext, started_at: str = "2026-03-01T12:00:00Z") -> dict[str, Any]:
    event = {
        "study_id": "study-1",
        "execution_arn": "arn:aws:states:…",
        "execution_started_at": started_at,
        "study": study,
    }
    result: dict[str, Any] = handler(event, context)
    return result


def test_a_study_is_planned(table: ExperimentTable, context: LambdaContext) -> None:
    planned = call(DOCUMENT, context)
    experiments = plan(parse_study(DOCUMENT), "study-1")
    assert planned == {
        "refusal": "",
        "experiments": [launch_item(experiment) for experiment in experiments],
        "max_parallel_experiments": 3,
    }
    assert json.loads(json.dumps(planned)) == planned
    assert [row.experiment for row in table.experiments("study-1")] == experiments
    study = table.study("study-1")
    assert study is not None
    assert study.document == DOCUMENT


def test_a_retried_call_says_the_same_and_keeps_the_rows(
    table: ExperimentTable, context: LambdaContext
) -> None:
    first = call(DOCUMENT, context)
    row = table.experiments("study-1")[0]
    table.abort(row.experiment, "the execution was stopped")
    assert call(DOCUMENT, context) == first
    assert table.experiments("study-1")[0].status is Status.ABORTED


def test_another_execution_under_the_same_name_is_refused_and_the_rows_stay(
    table: ExperimentTable, context: LambdaContext
) -> None:
    """Step Functions gives a name free again after 90 days; what is known of its study stays for a year."""
    call(DOCUMENT, context)
    before = (table.study("study-1"), table.experiments("study-1"))
    # When the name comes again with a later start, whatever the document
    for document in (DOCUMENT, {"matrix": {"workers": [5]}}):
        refused = call(document, context, started_at="2026-06-01T12:00:00Z")
        # Then it says so and what to do, and nothing of the other study is touched
        assert refused == {
            "refusal": "study refused: 1 problem\n"
            "  - study id study-1: taken by an execution that started at 2026-03-01T12:00:00Z;"
            " start this one under another name",
            "experiments": [],
        }
        assert (table.study("study-1"), table.experiments("study-1")) == before
    assert call(DOCUMENT, context)["refusal"] == ""


def test_a_refused_study_names_every_problem_and_leaves_no_row(
    table: ExperimentTable, context: LambdaContext
) -> None:
    assert call({"sedes": [0], "matrix": {"workers": [64]}}, context) == {
        "refusal": "study refused: 2 problems\n"
        "  - matrix.workers[0]: must be less than or equal to 32, not 64\n"
        "  - sedes: unknown key; did you mean 'seeds'?",
        "experiments": [],
    }
    assert table.study("study-1") is None
    assert table.experiments("study-1") == []


def test_a_study_that_no_state_could_hand_on_is_refused(
    table: ExperimentTable, context: LambdaContext
) -> None:
    """Each experiment is small enough; what all of them are told of crashes and stragglers is too much."""
    crashes = [{"rank": rank % 16, "step": 10**6 + rank, "restart_after_seconds": 60} for rank in range(32)]
    document = {
        "matrix": {"workers": [16]},
        "faults": {"crashes": crashes},
        "on_worker_loss": "continue",
        "seeds": list(range(50)),
    }
    refused = call(document, context)
    assert refused["experiments"] == []
    assert re.fullmatch(
        r"study refused: 1 problem\n  - experiments: what their tasks are started with takes 3\d\d,\d\d\d bytes in all;"
        r" an execution hands on at most 250,000: split the study",
        refused["refusal"],
    )
    assert table.study("study-1") is None
    assert call({**document, "seeds": list(range(30))}, context)["refusal"] == ""


@pytest.mark.parametrize("document", [None, [], "{}", 3])
@pytest.mark.usefixtures("table")
def test_what_is_no_document_is_refused_too(document: object, context: LambdaContext) -> None:
    assert call(document, context)["refusal"].startswith(
        "study refused: 1 problem\n  - document: must be an obj"
    )


def test_an_item_holds_what_the_states_look_up() -> None:
    (experiment, *_) = plan(parse_study(DOCUMENT), "study-1")
    item = launch_item(experiment)
    environment = {pair["Name"]: pair["Value"] for pair in item["environment"]}
    assert item["task_group"] == "study-1/sync_2workers"
    assert (item["on_worker_loss"], item["server_restarts"], item["worker_restarts"]) == ("fail", [0], [0, 0])
    assert (item["server"]["cpu"], item["server"]["memory"]) == ("4096", "8192")
    assert (item["worker"]["cpu"], item["worker"]["memory"]) == ("256", "512")
    read = TaskEnvironment.from_environ(environment)
    assert (read.study_id, read.experiment_name, read.total_workers_expected) == (
        "study-1",
        "sync_2workers",
        2,
    )
    assert environment.keys() <= {name.upper() for name in TaskEnvironment.model_fields}


def test_tasks_are_started_again_where_something_can_come_of_it() -> None:
    crashes = [{"rank": 0, "step": 3, "restart_after_seconds": 1}, {"rank": 2, "step": 5}]
    document = {
        "experiments": [{"mode": "async", "workers": 4}],
        "on_worker_loss": "continue",
        "faults": {"crashes": crashes},
        "checkpoint": {"interval_seconds": 5},
    }
    item = launch_item(plan(parse_study(document), "study-1")[0])
    assert item["on_worker_loss"] == "continue"
    assert item["server_restarts"] == [RESTARTS]
    assert RESTARTS > 0
    assert item["worker_restarts"] == [RESTARTS, RESTARTS, 0, RESTARTS]


def test_what_has_completed_is_not_run_again(table: ExperimentTable, context: LambdaContext) -> None:
    """A redriven execution plans again."""
    first = call(DOCUMENT, context)
    done, failed, *_ = (row.experiment for row in table.experiments("study-1"))
    table.settle(done, Verdict(Status.COMPLETED))
    table.settle(failed, Verdict(Status.FAILED))
    assert call(DOCUMENT, context) == {**first, "experiments": first["experiments"][1:]}


@pytest.mark.parametrize(("spot", "capacity"), [(False, "FARGATE"), (True, "FARGATE_SPOT")])
def test_workers_run_on_spot_by_choice_and_servers_never(spot: bool, capacity: str) -> None:
    document = {"worker": {"cpu": 256, "memory": 512, "spot": spot}}
    item = launch_item(plan(parse_study(document), "study-1")[0])
    assert item["worker"]["capacity"] == capacity
    assert "capacity" not in item["server"]


@pytest.mark.parametrize("seconds", [30, 86_400])
def test_a_state_waits_longer_than_what_it_waits_for_may_take(seconds: int) -> None:
    document = {"experiment_timeout_seconds": seconds}
    timeouts = launch_item(plan(parse_study(document), "study-1")[0])["timeouts"]
    assert timeouts["rendezvous"] == LAUNCH_SECONDS
    assert timeouts["server"] == timeouts["worker"] > seconds + LAUNCH_SECONDS
