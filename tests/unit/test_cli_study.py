"""Watching a study: little is read, and a passing failure is no end."""

from collections import Counter
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from cli.deployment import Deployment
from cli.study import Ended, Execution, left_running, patiently, start, watch
from contract.metrics import ServerInterval
from contract.plan import plan
from contract.study import parse_study
from contract.table import Status
from lambdas import table as lambdas_table
from lambdas.table import ExperimentTable
from lambdas.verdict import Verdict
from tests.unit.conftest import BUCKET, TABLE
from tests.unit.report_fixtures import records_of

ARN = "arn:aws:states:us-east-1:123456789012:execution:machine:study-1"
DOCUMENT = {"matrix": {"workers": [2]}, "training": {"dataset": "digits"}}


def deployment_of(session: boto3.Session, machine: str = "", **more: Any) -> Deployment:
    return Deployment(session, machine, TABLE, BUCKET, "cluster", "hint", **more)


@pytest.fixture
def machine(aws: boto3.Session) -> str:
    arn: str = aws.client("stepfunctions").create_state_machine(
        name="machine", definition="{}", roleArn="arn:aws:iam::123456789012:role/any"
    )["stateMachineArn"]
    return arn


def test_ended_experiments_are_read_once_and_running_ones_in_part(
    table: ExperimentTable, machine: str
) -> None:
    # Given a study with one experiment that has ended and one that is still planned
    session = boto3.Session("test", "test", region_name="us-east-1")
    read: Counter[str] = Counter()
    session.events.register(
        "provide-client-params.dynamodb.Query", lambda params, **_: read.update([str(params.get("Limit"))])
    )
    deployment = deployment_of(session, machine)
    study = parse_study(DOCUMENT)
    execution = start(deployment, DOCUMENT, study)
    first, second = plan(study, execution.study_id)
    by = lambdas_table.Execution(execution.arn, "2026-03-01T12:00:00Z")
    table.put_plan(execution.study_id, DOCUMENT, [first, second], by)
    records = records_of(first)
    table.put_records(records)
    table.settle(first, Verdict(Status.COMPLETED))

    # When it is watched twice
    watched = watch(deployment, execution, interval_seconds=0)
    seen = [next(watched), next(watched)]

    # Then the last records were found, by reading three of each emitter, and only once
    assert read == {"None": 2, "3": 2}
    last = [record for record in records if isinstance(record, ServerInterval)][-1]
    for progress in seen:
        assert not isinstance(progress, Ended)
        assert [p.status for p in progress] == [Status.COMPLETED, Status.PLANNED]
        assert progress[0].epochs_done == first.training.epochs
        assert progress[0].updates_per_second == pytest.approx(last.updates_per_second)
        assert progress[0].accuracy_percent is not None
        assert progress[1].epochs_done == 0

    # And when the other has ended, and the execution
    table.settle(second, Verdict(Status.FAILED, "worker 1 was killed"))
    session.client("stepfunctions").stop_execution(executionArn=execution.arn, error="Error", cause="why")
    third, end = watched
    assert not isinstance(third, Ended)
    assert [p.status for p in third] == [Status.COMPLETED, Status.FAILED]
    assert third[1].cause == "worker 1 was killed"
    assert isinstance(end, Ended)
    assert end.status == "ABORTED"


def test_newest_records_are_those_of_one_emitter(table: ExperimentTable) -> None:
    (experiment, _) = plan(parse_study(DOCUMENT), "study-1")
    table.put_records(records_of(experiment))
    everything = table.records("study-1", experiment.name, emitter=("worker", 1))
    assert len(everything) > 4
    newest = table.newest("study-1", experiment.name, emitter=("worker", 1), limit=4)
    assert newest == everything[:-5:-1]


def failing(times: int, error: Exception) -> Any:
    def call() -> str:
        nonlocal times
        times -= 1
        if times >= 0:
            raise error
        return "seen"

    return call


PASSING = [
    EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    ClientError({"Error": {"Code": "ThrottlingException"}}, "DescribeExecution"),
]


@pytest.mark.parametrize("error", PASSING, ids=["unreachable", "throttled"])
def test_a_few_failures_in_a_row_are_no_end(error: Exception) -> None:
    assert patiently(failing(3, error), [0, 0, 0]) == "seen"
    with pytest.raises(type(error)):
        patiently(failing(4, error), [0, 0, 0])


def test_an_error_of_ours_is_told_at_once() -> None:
    call = failing(1, KeyError("status"))
    with pytest.raises(KeyError):
        patiently(call, [0])
    assert call() == "seen"


@pytest.mark.parametrize(
    ("more", "command"),
    [
        ({}, f"aws --region us-east-1 stepfunctions stop-execution --execution-arn {ARN}"),
        (
            {"endpoint": "http://127.0.0.1:1"},
            f"aws --endpoint-url http://127.0.0.1:1 stepfunctions stop-execution --execution-arn {ARN}",
        ),
    ],
    ids=["aws", "cloud that is up"],
)
def test_a_study_that_outlives_the_command_can_be_stopped(
    aws: boto3.Session, more: dict[str, str], command: str
) -> None:
    told = left_running(deployment_of(aws, **more), Execution(ARN, "study-1"))
    assert f"goes on running: {ARN}" in told
    assert told.endswith(f"stop it with: {command}")


def test_a_study_that_ends_with_its_cloud_is_not_said_to_go_on(aws: boto3.Session) -> None:
    deployment = deployment_of(aws, endpoint="http://127.0.0.1:1", ends_with_command=True)
    told = left_running(deployment, Execution(ARN, "study-1"))
    assert ARN in told
    assert "goes on" not in told
