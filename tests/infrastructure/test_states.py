"""State by state: every state of the machine, run by the emulator's interpreter; success, each error, each retry.

A state without a case here fails. Expectations are written down, not read from the machine.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from ministack.services import stepfunctions as interpreter

import statemachine
from contract.plan import plan
from contract.study import parse_study
from lambdas.plan_study.launch import launch_item
from local.emulation import states as emulation
from local.emulation.redrive import run_state
from tests.infrastructure.asl import SUBSTITUTIONS, states

Json = dict[str, Any]

STATES = states(json.loads(statemachine.render(SUBSTITUTIONS)))

ITEM = launch_item(
    plan(parse_study({"experiments": [{"name": "one", "mode": "sync", "workers": 2}]}), "study-1")[0]
)

LAMBDA = (
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
)
"""Source: Step Functions Developer Guide, handle transient Lambda service exceptions."""

DYNAMODB = (
    "InternalServerErrorException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceededException",
    "ThrottlingException",
    "SdkClientException",
)
ECS = (
    "ECS.ThrottlingException",
    "ECS.ServerException",
    "ECS.AmazonECSException",
    "ECS.SdkClientException",
    "AmazonECS.Unknown",
)
"""The last one is RunTask's `failures`: no capacity, or the account's limit."""

LOOKUP_THROTTLED = "ECS.InvalidParameterException"
"""Said, too, where EC2 throttles the look-up of the security group, when many tasks are started at once."""

OUT_OF_TIME = "Sandbox.Timedout"
A_BUG = "KeyError"


class Case(NamedTuple):
    """What is expected of a Task state."""

    given: Any
    """Its input."""
    result: Any
    """What the service answers."""
    output: Any
    next: str | None
    """The state that follows success; None where its machine ends."""
    caught: str | None
    """The state that follows an error; None where nothing here catches it."""
    attempts: Mapping[str, int]
    """Error → how many times in all it is tried where it fails so each time."""
    once: Sequence[str]
    """Errors that a second try would not help."""


def function(attempts: Mapping[str, int] | None = None) -> Json:
    """What calls of functions have in common: errors of their code are bugs."""
    tried = {**dict.fromkeys(LAMBDA, 7), **(attempts or {})}
    return {"attempts": tried, "once": [A_BUG, "States.Timeout", "Lambda.ResourceNotFoundException"]}


def task(restarted: str) -> Json:
    """What runs of ECS tasks have in common."""
    once = [
        "States.TaskFailed",
        "States.Timeout",
        "ECS.AccessDeniedException",
    ]
    return {
        "attempts": {**dict.fromkeys(ECS, 9), LOOKUP_THROTTLED: 4},
        "once": [*once, "ECS.ClientException", "ECS.TaskFailedToStartException"],
        "caught": restarted,
    }


def table(prefix: str, generic: str) -> Json:
    """What calls of DynamoDB have in common."""
    transient = [f"{prefix}.{error}" for error in (*DYNAMODB, generic)]
    return {"attempts": dict.fromkeys(transient, 7), "once": [f"{prefix}.AccessDeniedException"]}


PUBLISHED = {"status": "COMPLETED", "cause": "", "report": "s3://…", "redrives": 0}
DESCRIPTION = {"Containers": [{"ExitCode": 0}]}

DATASET = {"name": "mnist", "location": "s3://bucket/datasets/mnist", "download": "true"}
PREPARING = {"dataset": DATASET, "experiments": [{"name": "one"}], "vain_starts": 2}
READY = {"status": "READY", "cause": ""}
DAMAGED = {"status": "DAMAGED", "cause": "mnist: a file is damaged"}

TASKS = {
    "PlanStudy": Case(
        given={},
        result={"Payload": {"refusal": "", "experiments": []}},
        output={"refusal": "", "experiments": []},
        next="AcceptStudy",
        caught="FailStudy",
        **function(),
    ),
    "PrepareDataset": Case(
        given=PREPARING,
        result=DESCRIPTION,
        output=PREPARING,
        next="FindDataset",
        **task("PreparationEndedBadly"),
    ),
    "FindDataset": Case(
        given=PREPARING,
        result={"Item": {"status": {"S": "READY"}, "cause": {"S": ""}}},
        output={**PREPARING, "found": READY},
        next="AcceptDataset",
        caught="GiveUpExperiments",
        **table("DynamoDB", "AmazonDynamoDBException"),
    ),
    "MarkRunning": Case(
        given=ITEM,
        result={},
        output=ITEM,
        next="TrainTogether",
        caught="LeaveToReconcile",
        attempts=table("DynamoDB", "AmazonDynamoDBException")["attempts"],
        once=["DynamoDB.ConditionalCheckFailedException", "DynamoDB.AccessDeniedException", "States.Timeout"],
    ),
    "RunServer": Case(
        given={"shard": 0, "restarts": 0, "vain_starts": 2},
        result=DESCRIPTION,
        output={"shard": 0},
        next="FindRendezvous",
        **task("ServerEndedBadly"),
    ),
    "FindRendezvous": Case(
        given={"shard": 0},
        result={"Item": {"task_token": {"S": "token"}}},
        output={"task_token": "token"},
        next="CloseRendezvous",
        caught="ServerEnded",
        **table("DynamoDB", "AmazonDynamoDBException"),
    ),
    "CloseRendezvous": Case(
        given={"task_token": "token"},
        result={},
        output={},
        next="ServerEnded",
        caught="ServerEnded",
        attempts={},
        once=["Sfn.TaskTimedOutException", "Sfn.TaskDoesNotExistException"],
    ),
    "AwaitServer": Case(
        given={"shard": 0},
        result={"address": "10.0.0.1:8000"},
        output={"address": "10.0.0.1:8000"},
        next=None,
        caught=None,
        attempts=table("DynamoDb", "DynamoDbException")["attempts"],
        once=["ServerEnded", "States.Timeout", "DynamoDb.AccessDeniedException"],
    ),
    "RunWorker": Case(
        given={"rank": 1, "restarts": 3, "vain_starts": 2, "attempt": 0, "address": "10.0.0.1:8000"},
        result=DESCRIPTION,
        output={"role": "worker"},
        next=None,
        **task("WorkerEndedBadly"),
    ),
    "JudgeExperiment": Case(
        given=[{}, []],
        result={"Payload": {"name": "one", "status": "COMPLETED"}},
        output={"name": "one", "status": "COMPLETED"},
        next=None,
        caught="LeaveToReconcile",
        **function({OUT_OF_TIME: 3, "WaiterError": 3, "ExceptionGroup": 3}),
    ),
    "ReconcileMetrics": Case(
        given={"unjudged": []},
        result={"Payload": {"experiments": 2, "backfilled": 0}},
        output={"experiments": 2, "backfilled": 0},
        next="PublishReport",
        caught="PublishReport",
        **function({OUT_OF_TIME: 3}),
    ),
    "PublishReport": Case(
        given={},
        result={"Payload": {"status": "COMPLETED", "cause": "", "report": "s3://…"}},
        output=PUBLISHED,
        next="ConcludeStudy",
        caught="ConcludeStudy",
        **function({OUT_OF_TIME: 3}),
    ),
    "ConcludeStudy": Case(
        given=PUBLISHED,
        result={"Payload": {"again": False}},
        output={**PUBLISHED, "again": False},
        next="DecideEnd",
        caught=None,
        attempts=function({OUT_OF_TIME: 3})["attempts"],
        once=["StudyFailed", A_BUG, "States.Timeout"],
    ),
}

LOST = {
    "restarts": 0,
    "vain_starts": 2,
    "attempt": 1,
    "error": "States.TaskFailed",
    "cause": '{"Containers":[{"ExitCode":137,"GpuIds":[]}],"StopCode":"EssentialContainerExited"}',
}
GAVE_UP = {**LOST, "cause": '{"Containers":[{"ExitCode":1,"GpuIds":[]}]}'}
NEVER_RAN = {**LOST, "cause": '{"Containers":[{"GpuIds":[]}],"StopCode":"TaskFailedToStart"}'}
OF_THAT_NAME = {**LOST, "cause": '{"Group":"TaskFailedToStart/one","StopCode":"EssentialContainerExited"}'}
"""Killed, in a study that is called so."""
UNPREPARED = {**PREPARING, "ended_badly": "…", "never_ran": True}

CHOICES: list[tuple[str, Json, Json, str]] = [
    # state, input, what is different in the item, next state
    ("AcceptStudy", {"refusal": ""}, {}, "RunExperiments"),
    ("AcceptStudy", {"refusal": "study refused: 1 problem"}, {}, "RefuseStudy"),
    ("AcceptStudy", {"refusal": "", "plan": {"total_usd": 1.5}}, {}, "ShowPlan"),
    ("AcceptStudy", {"refusal": "", "dataset": None}, {}, "RunExperiments"),
    ("AcceptStudy", {"refusal": "", "dataset": DATASET}, {}, "PrepareDataset"),
    ("AcceptDataset", {**PREPARING, "found": READY}, {}, "RunExperiments"),
    ("AcceptDataset", {**PREPARING, "found": DAMAGED}, {}, "GiveUpExperiments"),
    ("AcceptDataset", PREPARING, {}, "GiveUpExperiments"),
    ("PreparationEndedBadly", UNPREPARED, {}, "PrepareAgain"),
    ("PreparationEndedBadly", {**UNPREPARED, "vain_starts": 0}, {}, "FindDataset"),
    ("PreparationEndedBadly", {**UNPREPARED, "never_ran": False}, {}, "FindDataset"),
    ("ServerEndedBadly", NEVER_RAN, {}, "StartServerAgain"),
    ("ServerEndedBadly", {**NEVER_RAN, "restarts": -1}, {}, "StartServerAgain"),
    ("ServerEndedBadly", {**NEVER_RAN, "restarts": -1, "vain_starts": 0}, {}, "LoseServer"),
    ("ServerEndedBadly", {**OF_THAT_NAME, "restarts": -1}, {}, "LoseServer"),
    ("ServerEndedBadly", LOST, {}, "RunServer"),
    ("ServerEndedBadly", {**LOST, "restarts": -1}, {}, "LoseServer"),
    ("ServerEndedBadly", GAVE_UP, {}, "LoseServer"),
    ("ServerEndedBadly", {**LOST, "error": "States.Timeout"}, {}, "LoseServer"),
    ("WorkerEndedBadly", NEVER_RAN, {}, "StartWorkerAgain"),
    ("WorkerEndedBadly", {**NEVER_RAN, "restarts": -1}, {}, "StartWorkerAgain"),
    (
        "WorkerEndedBadly",
        {**NEVER_RAN, "error": "ECS.TaskFailedToStartException", "cause": ""},
        {},
        "StartWorkerAgain",
    ),
    ("WorkerEndedBadly", {**NEVER_RAN, "restarts": -1, "vain_starts": 0}, {}, "LoseWorker"),
    ("WorkerEndedBadly", {**OF_THAT_NAME, "restarts": -1}, {}, "LoseWorker"),
    ("WorkerEndedBadly", LOST, {"on_worker_loss": "continue"}, "PauseWorker"),
    ("WorkerEndedBadly", {**LOST, "restarts": -1}, {"on_worker_loss": "continue"}, "GoOnWithoutWorker"),
    ("WorkerEndedBadly", {**LOST, "restarts": -1}, {}, "LoseWorker"),
    ("WorkerEndedBadly", GAVE_UP, {}, "LoseWorker"),
    ("DecideEnd", {"again": False}, {}, "StudyCompleted"),
    ("DecideEnd", {"again": True}, {}, "PlanStudy"),
]

PASSES: dict[str, tuple[Json, Json, str | None]] = {
    # state → input, output, next state
    "ShowPlan": ({"plan": {"total_usd": 1.5}}, {"total_usd": 1.5}, None),
    "GiveUpExperiments": (
        {**PREPARING, "found": DAMAGED},
        {
            "unjudged": [
                {"name": "one", "error": {"Error": "DatasetNotReady", "Cause": "mnist: a file is damaged"}}
            ]
        },
        "ReconcileMetrics",
    ),
    "ServerEnded": ({}, {}, None),
    "GoOnWithoutWorker": ({"rank": 1}, {"role": "worker"}, None),
    "LeaveToReconcile": ({"name": "one", "error": {}}, {"name": "one", "error": {}}, None),
    "StudyCompleted": (PUBLISHED, PUBLISHED, None),
}

AGAIN = {**NEVER_RAN, "restarts": 1, "vain_starts": 1}
"""A start in vain is no loss, and has no number: nothing ran."""

WAITS: dict[str, tuple[Json, Json, range, Json, str]] = {
    # state → input, what is different in the item, seconds that it may wait, output, next state
    "PrepareAgain": (UNPREPARED, {}, range(1, 10), {**UNPREPARED, "vain_starts": 1}, "PrepareDataset"),
    "StartServerAgain": (NEVER_RAN, {}, range(1, 10), AGAIN, "RunServer"),
    "StartWorkerAgain": (NEVER_RAN, {}, range(1, 10), {**AGAIN, "attempt": 0}, "RunWorker"),
    "PauseWorker": (
        LOST,
        {"worker": {**ITEM["worker"], "capacity": "FARGATE_SPOT"}},
        range(5),
        LOST,
        "RunWorker",
    ),
}

FAILURES = {
    # state → input, error, cause
    "RefuseStudy": ({"refusal": "study refused: 1 problem"}, "StudyRefused", "study refused: 1 problem"),
    "FailStudy": ({"cause": "why"}, "StudyFailed", "why"),
    "LoseServer": ({"error": "E", "cause": "why"}, "ServerLost", "E: why"),
    "LoseWorker": ({"error": "E", "cause": "why"}, "WorkerLost", "E: why"),
}

AROUND_OTHERS = {"RunExperiments", "TrainTogether", "RunServers", "AwaitServers", "RunWorkers"}


class Service:
    """Everything that a task may call: answers as told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        """A result, or an error to raise; the last one stays."""
        self.calls: list[Any] = []

    def invoke(self, resource: str, arguments: Any) -> Any:
        """Stands for a call that is waited for."""
        self.calls.append(arguments)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(resource, arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call_back(self, resource: str, arguments: Any, token: str, state: Json) -> Any:  # noqa: ARG002 - MiniStack's signature
        """Stands for a call whose answer comes by a token."""
        return self.invoke(resource, arguments)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """The interpreter as the embedded cloud runs it, without waiting between attempts."""
    for name in [name for name in vars(interpreter) if callable(getattr(interpreter, name))]:
        monkeypatch.setattr(interpreter, name, getattr(interpreter, name))  # put back what is installed now
    emulation.install()
    told = Service()
    monkeypatch.setattr(interpreter, "_invoke_resource", told.invoke)
    monkeypatch.setattr(interpreter, "_invoke_with_callback", told.call_back)
    monkeypatch.setattr(interpreter, "_SFN_WAIT_SCALE", 0)
    return told


def run(name: str, given: Any, **different: Any) -> tuple[Any, str | None]:
    """Run a state with its item as the variable that MarkRunning assigns; output and the next state."""
    arn = "arn:aws:states:us-east-1:000000000000:execution:machine:study-1"
    execution = {
        "executionArn": arn,
        "stateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:machine",
        "events": [],
        "status": "RUNNING",
    }
    context = {
        "QueryLanguage": "JSONata",
        "Execution": {"Id": arn, "Name": "study-1", "StartTime": "2026-03-01T12:00:00Z", "Input": {}},
        "StateMachine": {"Name": "machine"},
        "variables": {"experiment": {**ITEM, **different}},
    }
    return run_state(STATES, name, given, execution, context)


def error(name: str, cause: str = "…") -> Exception:
    raised: Exception = interpreter._ExecutionError(name, cause)
    return raised


def test_every_state_has_a_case() -> None:
    cases = TASKS.keys() | {case[0] for case in CHOICES} | PASSES.keys() | WAITS.keys() | FAILURES.keys()
    assert cases | AROUND_OTHERS == STATES.keys()
    kinds = {kind: {n for n, s in STATES.items() if s["Type"] == kind} for kind in ("Task", "Choice")}
    assert kinds == {"Task": set(TASKS), "Choice": {case[0] for case in CHOICES}}


def test_every_way_out_of_a_choice_has_a_case() -> None:
    for name in {case[0] for case in CHOICES}:
        ways = {rule["Next"] for rule in STATES[name]["Choices"]} | {STATES[name]["Default"]}
        assert {case[3] for case in CHOICES if case[0] == name} == ways


@pytest.mark.parametrize("name", TASKS)
def test_every_error_that_is_retried_is_expected(name: str) -> None:
    named = {e for retrier in STATES[name].get("Retry", []) for e in retrier["ErrorEquals"]}
    assert named == TASKS[name].attempts.keys()
    assert not named & set(TASKS[name].once)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_succeeds_hands_on_its_result(service: Service, name: str) -> None:
    case = TASKS[name]
    service.answers = [case.result]
    assert run(name, case.given) == (case.output, case.next)
    assert len(service.calls) == 1


@pytest.mark.parametrize(("name", "failure"), [(n, e) for n, case in TASKS.items() for e in case.attempts])
def test_a_transient_error_is_forgotten(service: Service, name: str, failure: str) -> None:
    case = TASKS[name]
    service.answers = [error(failure), case.result]
    assert run(name, case.given) == (case.output, case.next)
    assert len(service.calls) == 2


@pytest.mark.parametrize(
    ("name", "failure", "attempts"),
    [(n, e, count) for n, case in TASKS.items() for e, count in case.attempts.items()]
    + [(n, e, 1) for n, case in TASKS.items() for e in case.once],
)
def test_an_error_that_stays_is_tried_so_many_times_and_then_caught(
    service: Service, name: str, failure: str, attempts: int
) -> None:
    case = TASKS[name]
    service.answers = [error(failure)]
    if case.caught is None:
        with pytest.raises(interpreter._ExecutionError) as raised:
            run(name, case.given)
        assert raised.value.error == failure
    else:
        output, following = run(name, case.given)
        assert following == case.caught
        assert output == {} or failure in json.dumps(output) or output == {"unjudged": []}
    assert len(service.calls) == attempts


def test_that_records_were_not_reconciled_is_told_to_the_report(service: Service) -> None:
    service.answers = [error(A_BUG, "why")]
    output, _ = run("ReconcileMetrics", {"unjudged": []})
    service.answers = [TASKS["PublishReport"].result]
    for given, told in ((output, {"Error": A_BUG, "Cause": "why"}), (TASKS["ReconcileMetrics"].output, None)):
        run("PublishReport", given)
        assert service.calls[-1]["Payload"]["unreconciled"] == told


@pytest.mark.parametrize(("name", "given", "different", "following"), CHOICES)
def test_a_choice_leads_where_it_should(name: str, given: Json, different: Json, following: str) -> None:
    assert run(name, given, **different) == (given, following)


@pytest.mark.parametrize("name", PASSES)
def test_a_state_that_does_nothing_hands_on_what_it_should(name: str) -> None:
    given, output, following = PASSES[name]
    assert run(name, given) == (output, following)


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_as_long_as_it_should_be_and_different_each_time(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given, different, allowed, output, following = WAITS[name]
    waited: list[int] = []
    monkeypatch.setattr(interpreter, "_scaled_sleep", waited.append)
    for _ in range(100):
        assert run(name, given, **different) == (output, following)
    assert len(waited) == 100
    assert set(waited) == set(allowed)


def test_a_worker_on_demand_comes_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing strikes many of those at a time."""
    waited: list[int] = []
    monkeypatch.setattr(interpreter, "_scaled_sleep", waited.append)
    for _ in range(20):
        assert run("PauseWorker", LOST) == (LOST, "RunWorker")
    assert set(waited) == {0}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_has_a_name_and_a_cause(name: str) -> None:
    given, failure, cause = FAILURES[name]
    with pytest.raises(interpreter._ExecutionError) as raised:
        run(name, given)
    assert (raised.value.error, raised.value.cause) == (failure, cause)


def whole_experiment(resource: str, _: Any) -> Any:
    """Answers of services for an experiment that goes well."""
    if resource.endswith("lambda:invoke"):
        return {"Payload": {"name": "one", "status": "COMPLETED"}}
    if resource.endswith("getItem"):
        return {"Item": {"task_token": {"S": "token"}}}
    if resource.endswith("waitForTaskToken"):
        return {"address": "10.0.0.1:8000"}
    return DESCRIPTION


def test_experiments_run_each_on_its_own(service: Service) -> None:
    service.answers = [whole_experiment]
    items = [ITEM, {**ITEM, "name": "two"}]
    given = {"experiments": items, "max_parallel_experiments": 2}
    assert run("RunExperiments", given) == ({"unjudged": []}, "ReconcileMetrics")
    marked = [call for call in service.calls if "UpdateExpression" in call]
    assert sorted(call["Key"]["sk"]["S"] for call in marked) == ["EXPERIMENT#one", "EXPERIMENT#two"]
    started = [call for call in service.calls if "TaskDefinition" in call]
    assert len(started) == 2 * (1 + 2)


def test_an_experiment_that_clean_up_has_marked_starts_nothing(service: Service) -> None:
    service.answers = [error("DynamoDB.ConditionalCheckFailedException", "The conditional request failed")]
    given = {"experiments": [ITEM], "max_parallel_experiments": 1}
    output, following = run("RunExperiments", given)
    assert (output["unjudged"][0]["name"], following) == ("one", "ReconcileMetrics")
    assert len(service.calls) == 1


def test_a_study_of_which_nothing_is_left_to_run_goes_on(service: Service) -> None:
    """Redriven after all its experiments completed and only the report could not be published."""
    given = {"experiments": [], "max_parallel_experiments": 1}
    assert run("RunExperiments", given) == ({"unjudged": []}, "ReconcileMetrics")
    assert service.calls == []


def test_what_keeps_all_experiments_from_running_is_caught(service: Service) -> None:
    given = {"experiments": "not a list", "max_parallel_experiments": 1}
    assert run("RunExperiments", given) == ({"unjudged": []}, "ReconcileMetrics")
    assert service.calls == []


def test_server_and_workers_train_together(service: Service) -> None:
    service.answers = [whole_experiment]
    _, following = run("TrainTogether", ITEM)
    assert following == "JudgeExperiment"
    started = [call["TaskDefinition"] for call in service.calls if "TaskDefinition" in call]
    assert sorted(started) == ["<ServerTaskDefinition>", *["<WorkerTaskDefinition>"] * 2]


@pytest.mark.parametrize(
    ("role", "failure"), [("Server", "ServerLost"), ("Worker", "WorkerLost")], ids=["server", "worker"]
)
def test_a_lost_task_ends_the_lifetime_of_all(service: Service, role: str, failure: str) -> None:
    def losing_one(resource: str, arguments: Any) -> Any:
        if arguments.get("TaskDefinition") == f"<{role}TaskDefinition>":
            return error("States.TaskFailed", '{"Containers":[{"ExitCode":137,"GpuIds":[]}]}')
        return whole_experiment(resource, arguments)

    service.answers = [losing_one]
    output, following = run("TrainTogether", ITEM)
    assert (output["Error"], following) == (failure, "JudgeExperiment")
    assert "137" in output["Cause"]


def test_each_shard_and_each_rank_is_run(service: Service) -> None:
    service.answers = [whole_experiment]
    shards = {"server_restarts": [0, 0, 0], "worker_restarts": [0, 0]}
    assert run("RunServers", {}, **shards)[1] is None
    assert run("AwaitServers", {}, **shards) == (
        {"address": "10.0.0.1:8000,10.0.0.1:8000,10.0.0.1:8000"},
        "RunWorkers",
    )
    assert run("RunWorkers", {"address": "10.0.0.1:8000"}, **shards)[1] is None
    told = [
        {pair["Name"]: pair["Value"] for pair in call["Overrides"]["ContainerOverrides"][0]["Environment"]}
        for call in service.calls
        if "TaskDefinition" in call
    ]
    assert sorted(each["SHARD_INDEX"] for each in told if "SHARD_INDEX" in each) == ["0", "1", "2"]
    assert sorted(each["WORKER_RANK"] for each in told if "WORKER_RANK" in each) == ["0", "1"]
