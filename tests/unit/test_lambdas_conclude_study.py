"""ConcludeStudy: the last word on a study, and the way clear for what failed when it is run again."""

from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.checkpoint import checkpoint_folder
from contract.errors import StudyFailed
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import (
    DATASET_READY,
    DATASET_SORT,
    DATASET_STATUS,
    Status,
    dataset_partition,
    rendezvous_sort,
    server_partition,
    server_sort,
)
from lambdas.conclude_study.handler import CAUSE_CHARACTERS, handler
from lambdas.table import ExperimentTable
from lambdas.verdict import TaskOutcome, Verdict
from tests.unit.conftest import BUCKET, EXECUTION, TABLE
from tests.unit.report_fixtures import records_of

DOCUMENT = {"matrix": {"workers": [2]}, "checkpoint": {}}


@pytest.fixture(autouse=True)
def bucket_of_checkpoints(monkeypatch: pytest.MonkeyPatch, aws: boto3.Session) -> None:
    aws.resource("s3").Bucket(BUCKET).create()
    monkeypatch.setenv("CHECKPOINT_LOCATION", f"s3://{BUCKET}/checkpoints")


@pytest.fixture
def experiments(table: ExperimentTable) -> list[Experiment]:
    """Of a study with one experiment that completed and one that failed."""
    planned = plan(parse_study(DOCUMENT), "study-1")
    table.put_plan("study-1", DOCUMENT, planned, EXECUTION)
    done, failed = planned
    for experiment in planned:
        table.put_records(records_of(experiment))
    table.settle(done, Verdict(Status.COMPLETED), tasks=[TaskOutcome(role="server", exit_code=0)])
    table.settle(failed, Verdict(Status.FAILED, "worker 1 was killed"), error={"Error": "E", "Cause": "why"})
    return planned


def call(
    context: LambdaContext, status: str = "FAILED", cause: str = "", again: bool = False
) -> dict[str, bool]:
    event = {"study_id": "study-1", "status": status, "cause": cause, "again": again}
    result: dict[str, bool] = handler(event, context)
    return result


def status(table: ExperimentTable) -> Status:
    study = table.study("study-1")
    assert study is not None
    return study.status


@pytest.mark.usefixtures("experiments")
def test_a_completed_study_is_completed(table: ExperimentTable, context: LambdaContext) -> None:
    for _ in range(2):  # the first answer may have been lost
        assert call(context, "COMPLETED") == {"again": False}
        assert status(table) is Status.COMPLETED


@pytest.mark.usefixtures("experiments")
def test_a_failed_study_fails_the_function_with_its_cause(
    table: ExperimentTable, context: LambdaContext
) -> None:
    for _ in range(2):
        with pytest.raises(StudyFailed, match=r"^1 of 2 experiments failed$"):
            call(context, cause="1 of 2 experiments failed")
        assert status(table) is Status.FAILED
    with pytest.raises(StudyFailed) as failed:
        call(context, cause="x" * 30_000)
    assert len(str(failed.value)) == CAUSE_CHARACTERS


@pytest.mark.parametrize("published", ["COMPLETED", "FAILED"])
def test_a_study_with_an_experiment_that_has_not_ended_fails_and_is_left_to_clean_up(
    table: ExperimentTable, context: LambdaContext, published: str
) -> None:
    """A terminal status would say that nothing of it runs."""
    planned = plan(parse_study(DOCUMENT), "study-1")
    table.put_plan("study-1", DOCUMENT, planned, EXECUTION)
    table.settle(planned[0], Verdict(Status.COMPLETED))
    for _ in range(2):
        with pytest.raises(StudyFailed, match=r"^1 of 2 experiments have not ended: async_2workers"):
            call(context, published, "1 of 2 experiments failed" if published == "FAILED" else "")
        assert status(table) is Status.RUNNING


def test_run_again_what_failed_is_planned_as_new_and_the_rest_stays(
    table: ExperimentTable, experiments: list[Experiment], context: LambdaContext
) -> None:
    done, failed = experiments
    with pytest.raises(StudyFailed):
        call(context)
    kept = (table.experiment("study-1", done.name), table.records("study-1", done.name))
    for _ in range(2):
        # When it is prepared to be run again
        assert call(context, again=True) == {"again": True}
        # Then what failed is as it was when it was planned
        row = table.experiment("study-1", failed.name)
        assert (row.status, row.cause, row.ended_at, row.error) == (Status.PLANNED, "", "", None)
        assert (list(row.tasks), list(row.warnings)) == ([], [])
        assert table.records("study-1", failed.name) == []
        # And what completed is untouched
        assert (table.experiment("study-1", done.name), table.records("study-1", done.name)) == kept
        assert status(table) is Status.RUNNING
    # And the study can end once more
    table.settle(failed, Verdict(Status.COMPLETED))
    assert call(context, "COMPLETED") == {"again": False}
    assert status(table) is Status.COMPLETED


@pytest.mark.parametrize("left", [Status.RUNNING, Status.STOPPING])
def test_nothing_is_run_again_before_the_tasks_of_the_earlier_run_have_ended(
    table: ExperimentTable, context: LambdaContext, aws: boto3.Session, left: Status
) -> None:
    (done, lasting) = plan(parse_study(DOCUMENT), "study-1")
    table.put_plan("study-1", DOCUMENT, [done, lasting], EXECUTION)
    table.put_records(records_of(lasting))
    table.settle(done, Verdict(Status.FAILED, "worker 1 was killed"))
    key = {"pk": "STUDY#study-1", "sk": f"EXPERIMENT#{lasting.name}"}
    aws.resource("dynamodb").Table(TABLE).update_item(
        Key=key,
        UpdateExpression="SET #s = :s",
        ExpressionAttributeNames={"#s": "status"},
        ExpressionAttributeValues={":s": left},
    )
    before = (table.experiments("study-1"), table.records("study-1", lasting.name))
    with pytest.raises(StudyFailed) as refused:
        call(context, again=True)
    assert str(refused.value) == (
        f"1 of 2 experiments have not ended: {lasting.name}; sweep_tasks ends them: redrive the execution again in"
        " some minutes"
    )
    assert (table.experiments("study-1"), table.records("study-1", lasting.name)) == before


def test_tokens_and_announcements_of_the_earlier_run_are_gone(
    table: ExperimentTable, experiments: list[Experiment], context: LambdaContext, aws: boto3.Session
) -> None:
    rows = aws.resource("dynamodb").Table(TABLE)
    keys: dict[str, list[dict[str, str]]] = {}
    for experiment in experiments:
        keys[experiment.name] = [
            {"pk": "STUDY#study-1", "sk": rendezvous_sort(experiment.name, 0)},
            {"pk": server_partition("study-1", experiment.name), "sk": server_sort(0)},
        ]
        for key in keys[experiment.name]:
            rows.put_item(Item=key)
    call(context, again=True)
    done, failed = experiments
    assert not [key for key in keys[failed.name] if "Item" in rows.get_item(Key=key)]
    assert all("Item" in rows.get_item(Key=key) for key in keys[done.name])
    assert table.study("study-1") is not None


@pytest.mark.usefixtures("experiments")
def test_that_the_data_set_was_ready_for_the_earlier_run_is_forgotten(
    context: LambdaContext, aws: boto3.Session
) -> None:
    """Otherwise a task that prepares it and ends without a word would be taken for one that succeeded."""
    rows, key = (
        aws.resource("dynamodb").Table(TABLE),
        {"pk": dataset_partition("study-1"), "sk": DATASET_SORT},
    )
    rows.put_item(Item={**key, DATASET_STATUS: DATASET_READY})
    call(context, again=True)
    assert "Item" not in rows.get_item(Key=key)


def test_servers_do_not_go_on_from_checkpoints_of_the_earlier_run(
    experiments: list[Experiment], context: LambdaContext, aws: boto3.Session
) -> None:
    bucket: Any = aws.resource("s3").Bucket(BUCKET)
    for experiment in experiments:
        folder = checkpoint_folder(experiment.study_id, experiment.name)
        bucket.put_object(Key=f"checkpoints/{folder}/00000001.safetensors", Body=b"parameters")
    call(context, again=True)
    done, _ = experiments
    assert [thing.key for thing in bucket.objects.all()] == [
        f"checkpoints/study-1/{done.name}/00000001.safetensors"
    ]
