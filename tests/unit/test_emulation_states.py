"""What the embedded cloud adds to MiniStack's Step Functions: each documented behaviour, in its interpreter."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ministack.services import stepfunctions as interpreter

from local.emulation import redrive, states

Json = dict[str, Any]
Invoke = Callable[[str, Any], Any]

RUN_TASK = "arn:aws:states:::ecs:runTask.sync"
MACHINE = "arn:aws:states:us-east-1:000000000000:stateMachine:machine"


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Invoke], None]:
    """The interpreter with what is added; gives what stands for all services."""
    for name in [name for name in vars(interpreter) if callable(getattr(interpreter, name))]:
        monkeypatch.setattr(interpreter, name, getattr(interpreter, name))  # put back what is installed now
    states.install()
    redrive.install()

    def answer_with(invoke: Invoke) -> None:
        monkeypatch.setattr(interpreter, "_invoke_resource", invoke)

    return answer_with


def run(machine: Json, given: Any = None) -> Any:
    """Run a machine to its end, as a part of another; its output."""
    context = {"QueryLanguage": "JSONata", "Execution": {"Name": "study"}, "variables": {"outside": 1}}
    execution = {
        "executionArn": f"{MACHINE}:study",
        "stateMachineArn": MACHINE,
        "events": [],
        "status": "RUNNING",
    }
    return interpreter._run_sub_machine(machine["States"], machine["StartAt"], given, execution, context)


def one(name: str, **state: Any) -> Json:
    return {"StartAt": name, "States": {name: {"End": True, **state}}}


def task(name: str, **fields: Any) -> Json:
    return one(name, Type="Task", Resource=name, **fields)


def failure(error: str) -> Exception:
    raised: Exception = interpreter._ExecutionError(error, "…")
    return raised


def raises(error: str) -> Any:
    return pytest.raises(interpreter._ExecutionError, match=f"^{error}: ")


def test_a_timeout_may_be_an_expression(calls: Callable[[Invoke], None]) -> None:
    calls(lambda *_: time.sleep(0.3))
    machine = task("Slow", TimeoutSeconds="{% $states.input.seconds %}")
    with raises("States.Timeout"):
        run(machine, {"seconds": 0.02})
    assert run(machine, {"seconds": 5}) is None
    with raises("States.QueryEvaluationError"):
        run(machine, {"seconds": "soon"})


@pytest.mark.parametrize(
    ("containers", "stop_code", "error"),
    [
        ([{"exitCode": 137}], "EssentialContainerExited", "States.TaskFailed"),
        ([{"exitCode": 0}, {"exitCode": 1}], "EssentialContainerExited", "States.TaskFailed"),
        ([{}], "UserInitiated", "States.TaskFailed"),
        ([{}], "TaskFailedToStart", "ECS.TaskFailedToStartException"),
    ],
)
def test_a_task_that_ended_badly_fails_its_state(containers: list[Json], stop_code: str, error: str) -> None:
    described = {"taskArn": "arn:…", "stopCode": stop_code, "containers": containers}
    invoke = states.failing_by_exit_code(lambda *_: {"tasks": [described], "failures": []})
    with raises(error) as raised:
        invoke(RUN_TASK, {})
    cause = json.loads(raised.value.cause)
    assert (cause["TaskArn"], cause["StopCode"]) == ("arn:…", stop_code)
    assert [c.get("ExitCode") for c in cause["Containers"]] == [c.get("exitCode") for c in containers]
    assert ": " not in raised.value.cause


def test_a_task_that_ended_well_is_described() -> None:
    described = {"taskArn": "arn:…", "containers": [{"name": "server", "exitCode": 0}]}
    invoke = states.failing_by_exit_code(lambda *_: {"tasks": [described], "failures": []})
    assert invoke(RUN_TASK, {}) == {"TaskArn": "arn:…", "Containers": [{"Name": "server", "ExitCode": 0}]}


def test_a_task_that_was_not_placed_fails_with_why() -> None:
    lacking = {"tasks": [], "failures": [{"reason": "Capacity is unavailable at this time."}]}
    with raises("AmazonECS.Unknown") as raised:
        states.failing_by_exit_code(lambda *_: lacking)(RUN_TASK, {})
    assert json.loads(raised.value.cause) == [{"Reason": "Capacity is unavailable at this time."}]


def test_other_services_answer_as_they_do() -> None:
    answer = {"tasks": [{"containers": [{"exitCode": 1}]}]}
    assert states.failing_by_exit_code(lambda *_: answer)("arn:aws:states:::ecs:runTask", {}) is answer


def test_a_task_is_waited_for_as_long_as_it_runs() -> None:
    answers: list[Any] = [failure("States.Timeout"), failure("States.Timeout"), {"tasks": []}]

    def poll(*_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert states.as_long_as_it_takes(poll)("cluster", []) == {"tasks": []}
    answers.append(failure("ECS.ClusterNotFoundException"))
    with raises("ECS.ClusterNotFoundException"):
        states.as_long_as_it_takes(poll)("cluster", [])


def distributed(inner: Json, **fields: Any) -> Json:
    processor = {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, **inner}
    return one("Each", Type="Map", Label="Each", ItemProcessor=processor, **fields)


def test_a_distributed_map_evaluates_its_expressions() -> None:
    inner = one("Double", Type="Pass", Output="{% $states.input * 2 %}")
    machine = distributed(
        inner,
        Items="{% $states.input.some %}",
        MaxConcurrency="{% 1 + 1 %}",
        Output="{% $sum($states.result) %}",
    )
    assert run(machine, {"some": [1, 2, 3]}) == 12
    assert run(distributed(inner, Items=[1]), {}) == [2]
    with raises("States.QueryEvaluationError"):
        run(machine, {"some": "none"})


@pytest.mark.parametrize("reads", ["$outside", "$states.context.Execution.Name"])
def test_an_item_of_a_distributed_map_sees_nothing_of_what_is_around(reads: str) -> None:
    inner = one("Read", Type="Pass", Output=f"{{% {reads} %}}")
    assert run(inner, {})  # at the top it would
    machine = distributed(inner, Items=[1], ToleratedFailurePercentage=100)
    assert run(machine, {}) == [None]
    with raises("States.ExceedToleratedFailureThreshold"):
        run(distributed(inner, Items=[1]), {})


def test_a_branch_that_fails_ends_the_others(calls: Callable[[Invoke], None]) -> None:
    # Given two branches, of which one waits for something and would then do something else
    waiting, begun = threading.Event(), []

    def invoke(resource: str, _: Any) -> Any:
        begun.append(resource)
        if resource == "Fail":
            raise failure("Broken")
        if resource == "Wait":
            waiting.wait(10)

    calls(invoke)
    then = {
        "StartAt": "Wait",
        "States": {"Wait": {"Type": "Task", "Resource": "Wait", "Next": "Then"}, **task("Then")["States"]},
    }
    machine = one("Both", Type="Parallel", Branches=[then, task("Fail")])
    # When the other one fails
    started = time.monotonic()
    with raises("Broken"):
        run(machine, {})
    # Then both have failed at once, and the first one goes no further when its wait is over
    assert time.monotonic() - started < 5
    waiting.set()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert set(begun) <= {"Wait", "Fail"}
        time.sleep(0.02)


@contextmanager
def map_with_an_item_that_fails(calls: Callable[[Invoke], None], error: Exception) -> Iterator[Json]:
    """A state machine of it; the other item waits for something until it is left."""
    left = threading.Event()

    def invoke(_: str, item: Any) -> Any:
        if item == "bad":
            raise error
        left.wait(60)

    calls(invoke)
    inner = {"ProcessorConfig": {"Mode": "INLINE"}, **task("Work")}
    try:
        yield one("Each", Type="Map", Items=["good", "bad"], ItemProcessor=inner)
    finally:
        left.set()


def test_an_item_that_fails_ends_its_map_and_what_is_around_it(calls: Callable[[Invoke], None]) -> None:
    with map_with_an_item_that_fails(calls, failure("Broken")) as each:
        machine = one(
            "Both",
            Type="Parallel",
            Branches=[each, task("Work")],
            Catch=[
                {"ErrorEquals": ["Broken"], "Output": "{% $states.errorOutput.Error %}", "Next": "Caught"}
            ],
        )
        machine["States"]["Caught"] = {"Type": "Pass", "End": True}
        assert run(machine, {}) == "Broken"


def test_an_item_that_fails_by_a_mistake_of_the_emulators_ends_its_map_too(
    calls: Callable[[Invoke], None],
) -> None:
    started = time.monotonic()
    mistake = RuntimeError("dictionary changed size during iteration")
    with (
        map_with_an_item_that_fails(calls, mistake) as each,
        pytest.raises(Exception, match="dictionary changed size"),
    ):
        run(each, {})
    assert time.monotonic() - started < 30


def test_branches_that_end_well_hand_on_their_results(calls: Callable[[Invoke], None]) -> None:
    calls(lambda resource, _: resource)
    assert run(one("Both", Type="Parallel", Branches=[task("A"), task("B")]), {}) == ["A", "B"]


def api(action: str, **request: Any) -> tuple[int, Json]:
    """A call of the API: status and answer."""
    headers = {"x-amz-target": f"AWSStepFunctions.{action}"}
    status, _, body = asyncio.run(
        interpreter.handle_request("POST", "/", headers, json.dumps(request).encode(), {})
    )
    return status, json.loads(body)


def started(name: str) -> str:
    """Start an execution of a machine that works and then concludes; its ARN."""
    definition = {
        "QueryLanguage": "JSONata",
        "StartAt": "Work",
        "States": {
            "Work": {
                "Type": "Task",
                "Resource": "Work",
                "Output": {"runs": "{% $states.context.Execution.RedriveCount ? 'again' : 'once' %}"},
                "Next": "Conclude",
            },
            "Conclude": {
                "Type": "Task",
                "Resource": "Conclude",
                "Arguments": {"input": "{% $states.input %}", "context": "{% $states.context.Execution %}"},
                "Next": "Decide",
            },
            "Decide": {
                "Type": "Choice",
                "Choices": [{"Condition": "{% $states.input = 'again' %}", "Next": "Work"}],
                "Default": "Done",
            },
            "Done": {"Type": "Succeed"},
        },
    }
    _, made = api(
        "CreateStateMachine", name=name, definition=json.dumps(definition), roleArn="arn:aws:iam::0:role/r"
    )
    _, begun = api("StartExecution", stateMachineArn=made["stateMachineArn"], name="study", input='{"a": 1}')
    arn: str = begun["executionArn"]
    return arn


def ended(arn: str) -> Json:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        _, described = api("DescribeExecution", executionArn=arn)
        if described["status"] != "RUNNING":
            return described
        time.sleep(0.02)
    raise AssertionError("it does not end")


def test_a_redriven_execution_begins_where_it_failed(calls: Callable[[Invoke], None]) -> None:
    # Given an execution that failed in its second state
    begun: list[tuple[str, Any]] = []
    answers = {"Conclude": [failure("StudyFailed"), failure("StudyFailed"), "again", "well"]}

    def invoke(resource: str, arguments: Any) -> Any:
        begun.append((resource, arguments))
        answer = answers[resource].pop(0) if resource in answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    calls(invoke)
    arn = started("redriven")
    assert (ended(arn)["status"], ended(arn)["error"]) == ("FAILED", "StudyFailed")
    assert "RedriveCount" not in begun[1][1]["context"]

    # When it is redriven, and redriven again
    for count in (1, 2):
        begun.clear()
        status, answer = api("RedriveExecution", executionArn=arn)
        assert status == 200
        assert answer["redriveDate"] == pytest.approx(time.time(), abs=60)
        described = ended(arn)
        # Then it began with the task that failed, with the same input, and is told how many times that was
        (resource, arguments), *others = begun
        assert (resource, arguments["input"]) == ("Conclude", {"runs": "once"})
        assert arguments["context"]["RedriveCount"] == count
        assert arguments["context"]["Input"] == {"a": 1}
        assert [resource for resource, _ in others] == ([] if count == 1 else ["Work", "Conclude"])
        assert described["status"] == ("FAILED" if count == 1 else "SUCCEEDED")
    assert described["output"] == '"well"'
    _, history = api("GetExecutionHistory", executionArn=arn)
    kinds = [event["type"] for event in history["events"]]
    assert kinds.count("ExecutionRedriven") == 2
    assert kinds[-1] == "ExecutionSucceeded"


def test_what_did_not_fail_is_not_redriven(calls: Callable[[Invoke], None]) -> None:
    calls(lambda *_: "well")
    arn = started("completed")
    assert ended(arn)["status"] == "SUCCEEDED"
    status, answer = api("RedriveExecution", executionArn=arn)
    assert (status, answer["__type"]) == (400, "ExecutionNotRedrivable")
    status, answer = api("RedriveExecution", executionArn=f"{arn}-other")
    assert (status, answer["__type"]) == (400, "ExecutionDoesNotExist")
