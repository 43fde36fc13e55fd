"""PlanStudy: a study document in, rows and the items of the Map out; a refused one leaves no trace."""

import json
import re
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.forecast import Forecast
from contract.history import Measured, fingerprint
from contract.limits import LAUNCH_SECONDS
from contract.plan import plan
from contract.study import parse_study
from contract.table import STUDY_SORT, Status, study_partition
from contract.task import TaskEnvironment
from lambdas.history import History
from lambdas.plan_study.handler import handler
from lambdas.plan_study.launch import RESTARTS, VAIN_STARTS, launch_item, launch_items
from lambdas.table import ExperimentTable
from lambdas.verdict import Verdict
from tests.unit.conftest import TABLE

DOCUMENT: dict[str, Any] = {
    "matrix": {"workers": [2, 1]},
    "server": {"cpu": 4096, "memory": 8192},
    "worker": {"cpu": 256, "memory": 512},
    "max_parallel_experiments": 3,
}


def call(
    study: object,
    context: LambdaContext,
    started_at: str = "2026-03-01T12:00:00Z",
    redrives: int = 0,
    study_id: str = "study-1",
) -> dict[str, Any]:
    event = {
        "study_id": study_id,
        "execution_arn": "arn:aws:states:…",
        "execution_started_at": started_at,
        "redrives": redrives,
        "study": study,
    }
    result: dict[str, Any] = handler(event, context)
    return result


def test_a_study_is_planned(table: ExperimentTable, context: LambdaContext) -> None:
    planned = call(DOCUMENT, context)
    experiments = plan(parse_study(DOCUMENT), "study-1")
    assert planned == {
        "refusal": "",
        "dataset": None,
        "experiments": launch_items(experiments),
        "vain_starts": VAIN_STARTS,
        "max_parallel_experiments": 3,
    }
    assert json.loads(json.dumps(planned)) == planned
    assert [row.experiment for row in table.experiments("study-1")] == experiments
    study = table.study("study-1")
    assert study is not None
    assert study.document == DOCUMENT


@pytest.mark.parametrize(
    ("training", "wanted"),
    [
        ({"dataset": "synthetic"}, None),
        ({"dataset": "mnist", "data": "/data"}, None),
        (
            {"dataset": "mnist"},
            {"name": "mnist", "location": "s3://lockstep-results/datasets/mnist", "download": "true"},
        ),
        (
            {"dataset": "cifar10", "data": "s3://mine/images"},
            {"name": "cifar10", "location": "s3://mine/images", "download": "false"},
        ),
    ],
)
@pytest.mark.usefixtures("table")
def test_a_data_set_that_workers_read_from_s3_is_to_be_prepared(
    training: dict[str, str], wanted: dict[str, str] | None, context: LambdaContext
) -> None:
    planned = call({"training": training}, context)
    assert planned["dataset"] == wanted
    told = [{p["Name"]: p["Value"] for p in item["environment"]} for item in planned["experiments"]]
    location = wanted["location"] if wanted else training.get("data")
    assert {each.get("DATA_DIRECTORY") for each in told} == {location}


def test_a_retried_call_says_the_same_and_keeps_the_rows(
    table: ExperimentTable, context: LambdaContext
) -> None:
    first = call(DOCUMENT, context)
    row = table.experiments("study-1")[0]
    table.abort(row.experiment, "the execution was stopped")
    assert call(DOCUMENT, context) == first
    assert table.experiments("study-1")[0].status is Status.ABORTED


@pytest.mark.usefixtures("table")
def test_a_retried_call_keeps_to_what_was_planned_though_the_quota_has_shrunk(
    context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(DOCUMENT, context)
    monkeypatch.setenv("VCPU_QUOTA", "1")
    assert call(DOCUMENT, context) == first
    assert call(DOCUMENT, context, started_at="2026-06-01T12:00:00Z")["refusal"] != ""


def test_the_plan_is_kept_with_the_study(table: ExperimentTable, context: LambdaContext) -> None:
    call(DOCUMENT, context)
    study = table.study("study-1")
    assert study is not None
    assert study.forecast is not None
    assert [each.name for each in study.forecast.experiments] == [
        row.experiment.name for row in table.experiments("study-1")
    ]
    assert study.forecast.total_usd > 0
    assert study.forecast.quotas[0].vcpus == 64


def test_a_plan_that_another_version_wrote_does_not_take_the_study_along(
    table: ExperimentTable, context: LambdaContext, aws: boto3.Session
) -> None:
    call(DOCUMENT, context)
    aws.resource("dynamodb").Table(TABLE).update_item(
        Key={"pk": study_partition("study-1"), "sk": STUDY_SORT},
        UpdateExpression="SET forecast = :other",
        ExpressionAttributeValues={":other": '{"schema": "of tomorrow"}'},
    )
    study = table.study("study-1")
    assert study is not None
    assert study.forecast is None
    assert study.document == DOCUMENT


def test_a_dry_run_says_the_plan_and_leaves_no_row(table: ExperimentTable, context: LambdaContext) -> None:
    answer = call({**DOCUMENT, "dry_run": True}, context)
    assert (answer["refusal"], answer["experiments"]) == ("", [])
    planned = Forecast.model_validate(json.loads(json.dumps(answer["plan"])))
    assert [each.name for each in planned.experiments] == [
        cell.name for cell in parse_study(DOCUMENT).cells()
    ]
    assert planned.max_parallel_experiments == 3
    assert table.study("study-1") is None
    assert table.experiments("study-1") == []


def test_a_study_above_its_bound_is_refused_and_a_dry_run_of_it_says_why(
    table: ExperimentTable, context: LambdaContext
) -> None:
    document = {**DOCUMENT, "max_cost_usd": 0.001}
    refused = call(document, context)
    assert refused["experiments"] == []
    assert re.match(
        r"study refused: 1 problem\n  - max_cost_usd: the study would cost \$0\.\d+, and at most \$0\.0010 is allowed:"
        r" vCPU \$0\.\d+, memory ",
        refused["refusal"],
    )
    assert table.study("study-1") is None
    assert table.experiments("study-1") == []
    dry = call({**document, "dry_run": True}, context)
    assert (dry["refusal"], len(dry["plan"]["problems"])) == ("", 1)


@pytest.mark.usefixtures("table")
def test_fewer_run_at_a_time_where_the_quota_is_small(
    context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of server and workers: 4.5, 4.5, 4.25 and 4.25 vCPUs."""
    monkeypatch.setenv("VCPU_QUOTA", "9")
    assert call(DOCUMENT, context)["max_parallel_experiments"] == 2


def test_what_the_quota_does_not_bear_is_refused(
    table: ExperimentTable, context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCPU_QUOTA", "4")
    refused = call(DOCUMENT, context)["refusal"]
    assert "sync_2workers needs 4.5 on-demand vCPUs at once; the quota is 4" in refused
    assert table.study("study-1") is None


@pytest.mark.usefixtures("table")
def test_where_quotas_cannot_be_asked_for_the_study_is_planned_with_a_warning(
    context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that needs more than a new account's quota: nobody knows that this one has no more."""
    monkeypatch.setenv("VCPU_QUOTA", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", "http://127.0.0.1:9")
    planned = call({"preset": "full", "dry_run": True}, context)["plan"]
    assert (planned["problems"], planned["max_parallel_experiments"]) == ([], 1)
    assert any("Service Quotas does not tell" in note for note in planned["notes"])


@pytest.mark.usefixtures("table")
def test_real_compute_is_planned_from_what_the_last_like_it_took(
    context: LambdaContext,
) -> None:
    (_, asynchronous, *_) = plan(parse_study(DOCUMENT), "another")
    measured = Measured(
        study_id="another",
        experiment=asynchronous.name,
        ended_at="2026-03-01T12:00:00+00:00",
        training_seconds=10,
        server_seconds=30,
        worker_seconds=20,
    )
    history = History.named(TABLE)
    history.remember(fingerprint(asynchronous, "x86_64"), measured.model_copy(update={"worker_seconds": 99}))
    history.remember(fingerprint(asynchronous, "x86_64"), measured)
    planned = Forecast.model_validate(call({**DOCUMENT, "dry_run": True}, context)["plan"])
    assert {each.name: each.basis.value for each in planned.experiments} == {
        "sync_2workers": "guess",
        "async_2workers": "history",
        "sync_1worker": "guess",
        "async_1worker": "guess",
    }
    assert planned.experiments[1].worker_seconds == 20


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


@pytest.mark.parametrize(
    "study_id", ["one(1)", "it's", "-one", "über", "one two", "a/b", "", "s" * 81, "one\n"]
)
def test_a_name_that_ecs_does_not_take_as_a_tag_is_refused(
    table: ExperimentTable, context: LambdaContext, study_id: str
) -> None:
    """Step Functions takes some of them; each RunTask would be refused."""
    assert call(DOCUMENT, context, study_id=study_id) == {
        "refusal": "study refused: 1 problem\n"
        f"  - execution name: {study_id!r} cannot be a study's; start it under one of 1 to 80 characters"
        " A-Z a-z 0-9 . _ -, the first a letter or a digit",
        "experiments": [],
    }
    assert table.study(study_id) is None


@pytest.mark.parametrize("study_id", ["s" * 80, "0", "a.b_C-1"])
@pytest.mark.usefixtures("table")
def test_any_other_name_is_a_studys(context: LambdaContext, study_id: str) -> None:
    assert call(DOCUMENT, context, study_id=study_id)["refusal"] == ""


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
    again = call(DOCUMENT, context)
    assert again == {**first, "experiments": first["experiments"][1:]}
    assert [item["zone"] for item in again["experiments"]] == [0, 1, 1]


@pytest.mark.parametrize(("quota", "at_a_time"), [("9", 2), ("1", 1), ("64", 3)])
def test_a_redriven_study_runs_as_many_at_a_time_as_fit_by_now(
    table: ExperimentTable,
    context: LambdaContext,
    *,
    monkeypatch: pytest.MonkeyPatch,
    quota: str,
    at_a_time: int,
) -> None:
    """It is never refused: it could not be redriven once more then. What was planned stays beside what happens."""
    first = call(DOCUMENT, context)
    before = table.study("study-1")
    monkeypatch.setenv("VCPU_QUOTA", quota)
    assert call(DOCUMENT, context, redrives=1) == {**first, "max_parallel_experiments": at_a_time}
    assert table.study("study-1") == before


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
