"""StopStudies: before the stack is deleted nothing runs; CloudFormation is answered in any case."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from lambdas.stop_studies.handler import handler
from tests.unit.conftest import FunctionContext
from tests.unit.fake_ecs import FakeEcs, FakeTask, ended

GROUP = "study-1/sync_2workers"


class CloudFormation:
    """Where answers are put."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.types: list[str | None] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                told.types.append(self.headers["Content-Type"])
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert len(body) <= 4096
                told.answers.append(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/answer?signature=1"

    def request(self, kind: str, **more: str) -> dict[str, Any]:
        """As CloudFormation sends it."""
        return {
            "RequestType": kind,
            "RequestId": "request-1",
            "StackId": "arn:aws:cloudformation:…:stack/Lockstep/1",
            "ResponseURL": self.url,
            "ResourceType": "Custom::StopStudies",
            "LogicalResourceId": "DeletionStudies",
            "ResourceProperties": {},
            **more,
        }


@pytest.fixture
def cloudformation() -> Iterator[CloudFormation]:
    made = CloudFormation()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def machine(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a deployment whose clock stands still while nothing is to be seen."""
    monkeypatch.setenv("QUIET_SECONDS", "10")
    monkeypatch.setattr("lambdas.tasks.time.sleep", lambda _: None)
    definition = {"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 60, "End": True}}}
    arn: str = aws.client("stepfunctions").create_state_machine(
        name="lockstep", definition=json.dumps(definition), roleArn="arn:aws:iam::123456789012:role/lockstep"
    )["stateMachineArn"]
    monkeypatch.setenv("STATE_MACHINE_ARN", arn)
    return arn


@pytest.fixture
def reasons(aws: boto3.Session) -> Iterator[list[str]]:
    """What StopExecution is given; moto forgets it."""
    given: list[str] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        given.append(f"{params['error']}: {params['cause']}")

    aws.events.register("provide-client-params.sfn.StopExecution", note, unique_id="reasons")
    yield given
    aws.events.unregister("provide-client-params.sfn.StopExecution", unique_id="reasons")


def test_deletion_stops_every_study_and_every_task_and_waits_for_them(
    machine: str,
    ecs: FakeEcs,
    cloudformation: CloudFormation,
    context: LambdaContext,
    *,
    reasons: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = boto3.client("stepfunctions")
    arns = [
        states.start_execution(stateMachineArn=machine, name=name)["executionArn"] for name in ("one", "two")
    ]
    slow = FakeTask(GROUP, "server", lingers=4)
    ecs.add(slow, *(FakeTask(GROUP, "worker", rank) for rank in range(5)), ended(GROUP, "worker", 9))
    monkeypatch.setattr("botocore.waiter.time.sleep", lambda _: None)
    handler(cloudformation.request("Delete", PhysicalResourceId="stop-studies"), context)
    (answer,) = cloudformation.answers
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("SUCCESS", "stop-studies")
    assert (answer["RequestId"], answer["LogicalResourceId"]) == ("request-1", "DeletionStudies")
    assert cloudformation.types == [""]
    assert {states.describe_execution(executionArn=arn)["status"] for arn in arns} == {"ABORTED"}
    assert reasons == ["StackDeleted: the stack is being deleted"] * 2
    assert ecs.running() == []
    assert slow.status == "STOPPED"


@pytest.mark.usefixtures("machine")
def test_a_task_that_an_experiment_was_about_to_start_is_found_by_a_second_look(
    ecs: FakeEcs, cloudformation: CloudFormation, context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment of a stopped study was between two states."""
    late = FakeTask(GROUP, "server")
    pauses: list[float] = []

    def begin(seconds: float) -> None:
        pauses.append(seconds)
        if late not in ecs.tasks:
            ecs.add(late)

    monkeypatch.setattr("lambdas.tasks.time.sleep", begin)
    handler(cloudformation.request("Delete"), context)
    (answer,) = cloudformation.answers
    assert answer["Status"] == "SUCCESS"
    assert (late.status, pauses) == ("STOPPED", [10, 10])


@pytest.mark.usefixtures("machine", "ecs")
def test_what_there_was_no_time_to_look_for_again_fails_the_deletion(cloudformation: CloudFormation) -> None:
    class Hurry(FunctionContext):
        @staticmethod
        def get_remaining_time_in_millis() -> int:
            return 35_000

    handler(cloudformation.request("Delete"), Hurry())
    (answer,) = cloudformation.answers
    assert answer["Status"] == "FAILED"
    assert "no time was left" in answer["Reason"]


@pytest.mark.parametrize("kind", ["Create", "Update"])
def test_creation_and_update_touch_nothing(
    machine: str, ecs: FakeEcs, cloudformation: CloudFormation, context: LambdaContext, kind: str
) -> None:
    states = boto3.client("stepfunctions")
    arn = states.start_execution(stateMachineArn=machine, name="one")["executionArn"]
    ecs.add(FakeTask(GROUP, "server"))
    handler(cloudformation.request(kind), context)
    (answer,) = cloudformation.answers
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("SUCCESS", "stop-studies")
    assert states.describe_execution(executionArn=arn)["status"] == "RUNNING"
    assert len(ecs.running()) == 1


@pytest.mark.usefixtures("machine")
def test_a_task_that_does_not_end_fails_the_deletion_in_time(
    ecs: FakeEcs, cloudformation: CloudFormation, context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("botocore.waiter.time.sleep", pauses.append)
    ecs.add(FakeTask(GROUP, "server", lingers=10_000))
    handler(cloudformation.request("Delete"), context)
    (answer,) = cloudformation.answers
    assert answer["Status"] == "FAILED"
    assert "delete the stack again" in answer["Reason"]
    assert 180 <= sum(pauses) <= 210


@pytest.mark.usefixtures("machine")
def test_what_cannot_be_stopped_fails_the_deletion_with_a_reason(
    ecs: FakeEcs, cloudformation: CloudFormation, context: LambdaContext
) -> None:
    ecs.add(FakeTask(GROUP, "server"))
    ecs.refusals[f"{GROUP}/server/0"] = "AccessDeniedException"
    handler(cloudformation.request("Delete"), context)
    (answer,) = cloudformation.answers
    assert answer["Status"] == "FAILED"
    assert "1 tasks could not be stopped" in answer["Reason"]


@pytest.mark.usefixtures("ecs")
def test_a_misconfigured_function_answers_too(
    cloudformation: CloudFormation, context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows no state machine."""
    monkeypatch.delenv("STATE_MACHINE_ARN", raising=False)
    handler(cloudformation.request("Delete"), context)
    (answer,) = cloudformation.answers
    assert (answer["Status"], "state_machine_arn" in answer["Reason"].lower()) == ("FAILED", True)


def test_studies_that_are_started_over_and_over_do_not_hold_it_up_for_ever(
    machine: str, ecs: FakeEcs, cloudformation: CloudFormation, aws: boto3.Session
) -> None:
    class Hurry(FunctionContext):
        @staticmethod
        def get_remaining_time_in_millis() -> int:
            return 30_500

    states, names = boto3.client("stepfunctions"), iter(range(10_000))

    def start_another(**_: Any) -> None:
        states.start_execution(stateMachineArn=machine, name=f"more-{next(names)}")

    aws.events.register("before-call.sfn.ListExecutions", start_another, unique_id="more")
    try:
        handler(cloudformation.request("Delete"), Hurry())
    finally:
        aws.events.unregister("before-call.sfn.ListExecutions", unique_id="more")
    (answer,) = cloudformation.answers
    assert answer["Status"] == "FAILED"
    assert "studies are still being started: more-" in answer["Reason"]
    assert ecs.stopped == []
