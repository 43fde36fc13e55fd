"""SweepTasks: what an ended execution left running is stopped, then its rows say so; what runs is left alone."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError
from moto.stepfunctions.models import stepfunctions_backends

from contract.plan import Experiment, plan, preparation_group
from contract.study import parse_study
from contract.table import Status, experiment_sort, study_partition
from lambdas.rows import Execution
from lambdas.sweep_tasks.executions import EndedExecution
from lambdas.sweep_tasks.executions import Executions as LookedAt
from lambdas.sweep_tasks.handler import handler
from lambdas.table import ExperimentTable
from lambdas.verdict import Verdict
from tests.unit.conftest import LOG_GROUP, STACK, TABLE, FunctionContext
from tests.unit.fake_ecs import FakeEcs, FakeTask, ended

DOCUMENT = {"matrix": {"workers": [2]}}
SCHEDULED: dict[str, Any] = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
ENDED = "the execution of the study has ended"


class Executions:
    """A state machine and what was started on it."""

    def __init__(self, session: boto3.Session, table: ExperimentTable) -> None:
        self._states = session.client("stepfunctions")
        self._table = table
        definition = {"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 60, "End": True}}}
        self.machine = self._states.create_state_machine(
            name="lockstep",
            definition=json.dumps(definition),
            roleArn="arn:aws:iam::123456789012:role/lockstep",
        )["stateMachineArn"]

    def arn(self, study_id: str) -> str:
        return f"{self.machine.replace(':stateMachine:', ':execution:')}:{study_id}"

    def start(self, study_id: str) -> list[Experiment]:
        """Start a study, which writes its plan."""
        self._states.start_execution(stateMachineArn=self.machine, name=study_id)
        return self.plan(study_id)

    def plan(self, study_id: str, started_at: str = "") -> list[Experiment]:
        experiments = plan(parse_study(DOCUMENT), study_id)
        if not started_at:
            described = self._states.describe_execution(executionArn=self.arn(study_id))
            started_at = described["startDate"].isoformat()
        self._table.put_plan(study_id, DOCUMENT, experiments, Execution(self.arn(study_id), started_at))
        return experiments

    def redrive(self, study_id: str) -> None:
        """As RedriveExecution does, which moto lacks: it runs again under its name, since its first start."""
        execution = stepfunctions_backends["123456789012"]["us-east-1"].describe_execution(self.arn(study_id))
        execution.status = "RUNNING"

    def grow_old(self, study_id: str) -> None:
        """As if the execution had ended a while ago."""
        execution = stepfunctions_backends["123456789012"]["us-east-1"].describe_execution(self.arn(study_id))
        assert execution.stop_date is not None
        execution.stop_date -= timedelta(minutes=5)

    def abort(self, study_id: str, **why: str) -> dict[str, Any]:
        """Stop an execution. Returns the event that EventBridge sends."""
        self._states.stop_execution(executionArn=self.arn(study_id), **why)
        # moto forgets why.
        execution = stepfunctions_backends["123456789012"]["us-east-1"].describe_execution(self.arn(study_id))
        execution.error, execution.cause = why.get("error"), why.get("cause")
        return {
            "source": "aws.states",
            "detail-type": "Step Functions Execution Status Change",
            "detail": {
                "executionArn": self.arn(study_id),
                "stateMachineArn": self.machine,
                "name": study_id,
                "status": "ABORTED",
            },
        }


@pytest.fixture
def published(aws: boto3.Session) -> Iterator[list[str]]:
    """The studies that a report was ordered of; nobody draws it here."""
    studies: list[str] = []

    def take(params: dict[str, Any], **_: Any) -> Any:
        assert params["headers"]["X-Amz-Invocation-Type"] == "Event"
        assert "publish_report" in params["url_path"]
        studies.append(json.loads(params["body"])["study_id"])
        return SimpleNamespace(status_code=202), {"StatusCode": 202}

    aws.events.register("before-call.lambda.Invoke", take, unique_id="published")
    yield studies
    aws.events.unregister("before-call.lambda.Invoke", unique_id="published")


@pytest.fixture
def executions(
    aws: boto3.Session, table: ExperimentTable, published: list[str], monkeypatch: pytest.MonkeyPatch
) -> Executions:
    assert published == []
    made = Executions(aws, table)
    monkeypatch.setenv("STATE_MACHINE_ARN", made.machine)
    monkeypatch.setenv(
        "PUBLISH_REPORT_FUNCTION", "arn:aws:lambda:us-east-1:123456789012:function:publish_report"
    )
    return made


def tasks_of(experiment: Experiment) -> list[FakeTask]:
    group = experiment.task_group
    return [FakeTask(group, "server"), FakeTask(group, "worker", 0), FakeTask(group, "worker", 1)]


def call(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    result: dict[str, int] = handler(event, context)
    return result


def statuses(table: ExperimentTable, study_id: str) -> list[Status]:
    study = table.study(study_id)
    assert study is not None
    return [study.status, *(row.status for row in table.experiments(study_id))]


def grow_old(study_id: str) -> None:
    """As if the study had been planned a while ago."""
    boto3.resource("dynamodb").Table(TABLE).update_item(
        Key={"pk": f"STUDY#{study_id}", "sk": "STUDY"},
        UpdateExpression="SET created_at = :then",
        ExpressionAttributeValues={":then": "2026-03-01T12:00:00.000+00:00"},
    )


def test_a_stopped_executions_tasks_are_stopped_its_rows_say_why_and_it_is_reported(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    sync, async_ = executions.start("stopped-1")
    table.settle(sync, Verdict(Status.COMPLETED))
    ecs.add(*tasks_of(async_))
    event = executions.abort("stopped-1", error="Impatience", cause="it took too long")
    assert call(event, context) == {"stopped": 3, "left": 0}
    assert ecs.running() == []
    assert {reason.partition(": ")[2] for reason in ecs.stopped} == {f"Lockstep: {ENDED}: ABORTED"}
    assert statuses(table, "stopped-1") == [Status.ABORTED, Status.COMPLETED, Status.ABORTED]
    told = f"{ENDED}: ABORTED (Impatience: it took too long)"
    study, row = table.study("stopped-1"), table.experiments("stopped-1")[1]
    assert study is not None
    assert (study.cause, row.cause) == (told, told)
    assert {(task.label, task.exit_code, task.stop_code) for task in row.tasks} == {
        (label, 143, "UserInitiated") for label in ("server", "worker 0", "worker 1")
    }
    assert published == ["stopped-1"]
    assert table.open_studies() == []


def test_the_status_is_written_once_no_task_is_left(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then the gate is shut, and nothing claims that it has ended."""
    (sync, _) = executions.start("stopped-1")
    ecs.add(FakeTask(sync.task_group, "server", lingers=6), FakeTask(sync.task_group, "worker", 0, lingers=2))
    seen: list[list[Status]] = []

    def look(_: float) -> None:
        seen.append(statuses(table, "stopped-1"))
        assert published == []

    monkeypatch.setattr("botocore.waiter.time.sleep", look)
    assert call(executions.abort("stopped-1"), context) == {"stopped": 2, "left": 0}
    assert seen
    assert all(one == [Status.RUNNING, Status.STOPPING, Status.STOPPING] for one in seen)
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3


def test_a_task_that_is_started_meanwhile_is_stopped_too(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RunTask was on its way when the execution was stopped."""
    (sync, _) = executions.start("stopped-1")
    ecs.add(FakeTask(sync.task_group, "server", lingers=4))
    late = FakeTask(sync.task_group, "worker", 0)

    def begin(_: float) -> None:
        if late not in ecs.tasks:
            ecs.add(late)

    monkeypatch.setattr("botocore.waiter.time.sleep", begin)
    assert call(executions.abort("stopped-1"), context)["left"] == 0
    assert late in ecs.tasks
    assert ecs.running() == []
    assert {task.label for task in table.experiments("stopped-1")[0].tasks} == {"server", "worker 0"}


@pytest.mark.parametrize("long_over", [False, True])
def test_an_execution_that_has_just_ended_is_looked_at_twice(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    *,
    monkeypatch: pytest.MonkeyPatch,
    long_over: bool,
) -> None:
    """ECS shows a task late whose RunTask was on its way; minutes later it shows them all."""
    (sync, _) = executions.start("stopped-1")
    late, pauses = FakeTask(sync.task_group, "server"), list[float]()

    def begin(seconds: float) -> None:
        pauses.append(seconds)
        if late not in ecs.tasks:
            ecs.add(late)
        assert statuses(table, "stopped-1")[1] is Status.STOPPING

    monkeypatch.setenv("QUIET_SECONDS", "10")
    monkeypatch.setattr("lambdas.tasks.time.sleep", begin)
    event = executions.abort("stopped-1")
    if long_over:
        executions.grow_old("stopped-1")
    assert call(event, context)["left"] == 0
    assert pauses == ([] if long_over else [10, 10])
    assert ecs.running() == []
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3


def test_what_there_is_no_time_for_is_left_to_the_next_call(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    class Hurry(FunctionContext):
        @staticmethod
        def get_remaining_time_in_millis() -> int:
            return 1000

    (sync, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(sync))
    assert call(executions.abort("stopped-1"), Hurry()) == {"stopped": 3, "left": 1}
    assert ecs.running() == []
    assert statuses(table, "stopped-1") == [Status.RUNNING, Status.STOPPING, Status.STOPPING]
    assert published == []
    assert call(SCHEDULED, context) == {"stopped": 0, "left": 0}
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3
    assert {task.label for task in table.experiments("stopped-1")[0].tasks} == {
        "server",
        "worker 0",
        "worker 1",
    }
    assert published == ["stopped-1"]


def test_tasks_that_do_not_end_in_time_are_left_to_the_next_call(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("botocore.waiter.time.sleep", pauses.append)
    (sync, _) = executions.start("stopped-1")
    ecs.add(FakeTask(sync.task_group, "server", lingers=10_000))
    assert call(executions.abort("stopped-1"), context) == {"stopped": 1, "left": 1}
    # For as long as the function lives, less what it keeps for writing
    assert 180 <= sum(pauses) <= 210
    assert statuses(table, "stopped-1")[0] is Status.RUNNING


def test_a_running_execution_is_left_alone(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    (running, _) = executions.start("running-1")
    (stopped, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(running), *tasks_of(stopped))
    event = executions.abort("stopped-1")
    for one in (event, SCHEDULED):
        call(one, context)
        assert ecs.running() == [
            f"{running.task_group}/{rest}" for rest in ("server/0", "worker/0", "worker/1")
        ]
    assert statuses(table, "running-1") == [Status.RUNNING, Status.PLANNED, Status.PLANNED]
    assert statuses(table, "stopped-1") == [Status.ABORTED, Status.ABORTED, Status.ABORTED]
    assert (table.open_studies(), published) == (["running-1"], ["stopped-1"])


@pytest.mark.parametrize("verdict", [Status.COMPLETED, Status.FAILED])
def test_tasks_that_outlive_their_experiments_verdict_are_stopped(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext, verdict: Status
) -> None:
    """Their study goes on with its other experiments."""
    (judged, running) = executions.start("running-1")
    ecs.add(*tasks_of(judged), *tasks_of(running))
    table.settle(judged, Verdict(verdict, "as it went"))
    before = table.experiments("running-1")
    assert call(SCHEDULED, context) == {"stopped": 3, "left": 0}
    assert {label.rsplit("/", 2)[0] for label in ecs.running()} == {running.task_group}
    assert {reason.partition(": ")[2] for reason in ecs.stopped} == {"Lockstep: the experiment has ended"}
    assert table.experiments("running-1") == before


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("first", "second", "over"),
    [
        (Status.PLANNED, Status.PLANNED, False),
        (Status.COMPLETED, Status.PLANNED, False),  # of a redriven study
        (Status.RUNNING, Status.PLANNED, True),
        (Status.FAILED, Status.FAILED, True),
    ],
)
def test_a_task_that_prepares_a_data_set_is_stopped_once_nobody_waits_for_it(
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    *,
    first: Status,
    second: Status,
    over: bool,
) -> None:
    """Its state was given up, and stopping the task is by best effort."""
    for experiment, status in zip(executions.start("running-1"), (first, second), strict=True):
        boto3.resource("dynamodb").Table(TABLE).update_item(
            Key={"pk": study_partition("running-1"), "sk": experiment_sort(experiment.name)},
            UpdateExpression="SET #status = :status",
            ExpressionAttributeNames={"#status": "status"},
            ExpressionAttributeValues={":status": status},
        )
    ecs.add(FakeTask(preparation_group("running-1"), "prepare"))
    assert call(SCHEDULED, context) == {"stopped": int(over), "left": 0}
    assert len(ecs.running()) == int(not over)


def test_the_schedule_finds_what_no_event_told(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    """The event was lost, or the execution is not even known any more."""
    (one, _) = executions.start("stopped-1")
    (other, _) = executions.plan("forgotten-1", "2026-03-01T12:00:00+00:00")
    grow_old("forgotten-1")
    ecs.add(*tasks_of(one), *tasks_of(other))
    executions.abort("stopped-1")
    assert call(SCHEDULED, context) == {"stopped": 6, "left": 0}
    assert ecs.running() == []
    assert statuses(table, "stopped-1")[0] is Status.ABORTED
    assert table.experiments("forgotten-1")[0].cause == f"{ENDED}: MISSING"


def test_an_execution_that_is_too_young_to_be_found_is_left_alone(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    (sync, _) = executions.plan("young-1", "2026-03-01T12:00:00+00:00")
    ecs.add(*tasks_of(sync))
    assert call(SCHEDULED, context) == {"stopped": 0, "left": 0}
    assert len(ecs.running()) == 3
    assert statuses(table, "young-1") == [Status.RUNNING, Status.PLANNED, Status.PLANNED]


def test_the_end_of_another_execution_of_the_name_is_not_told_as_the_studys(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    """Refused, for the name is taken; the first one was forgotten before anybody wrote how it ended."""
    executions.plan("twice-1", "2026-03-01T12:00:00+00:00")
    with pytest.raises(Exception, match="taken by an execution"):
        executions.start("twice-1")
    call(executions.abort("twice-1", error="Stopped", cause="the second one"), context)
    study = table.study("twice-1")
    assert study is not None
    assert (study.status, study.cause) == (Status.ABORTED, f"{ENDED}: MISSING")
    assert ecs.stopped == []


def test_a_study_that_was_planned_after_its_execution_was_swept_is_found(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    """PlanStudy was at work when the execution was stopped, and does not know."""
    boto3.client("stepfunctions").start_execution(stateMachineArn=executions.machine, name="planning-1")
    assert call(executions.abort("planning-1"), context) == {"stopped": 0, "left": 0}
    executions.plan("planning-1")
    assert statuses(table, "planning-1") == [Status.RUNNING, Status.PLANNED, Status.PLANNED]
    assert call(SCHEDULED, context) == {"stopped": 0, "left": 0}
    assert statuses(table, "planning-1") == [Status.ABORTED] * 3
    assert (ecs.stopped, published, table.open_studies()) == ([], ["planning-1"], [])


def test_a_study_that_ended_by_itself_is_closed_and_not_reported_again(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    for experiment in executions.start("failed-1"):
        table.settle(experiment, Verdict(Status.FAILED, "worker 1 was killed"))
    table.end_study("failed-1", Status.FAILED)
    event = executions.abort("failed-1")
    assert call(event, context) == {"stopped": 0, "left": 0}
    assert statuses(table, "failed-1") == [Status.FAILED] * 3
    assert (ecs.stopped, published, table.open_studies()) == ([], [], [])


def test_a_report_that_was_not_ordered_is_ordered_by_the_next_call(
    table: ExperimentTable,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
    ecs: FakeEcs,
) -> None:
    """The call that aborted the study died right after it."""
    for experiment in executions.start("stopped-1"):
        table.abort(experiment, "stopped")
    table.end_study("stopped-1", Status.ABORTED, "stopped")
    executions.abort("stopped-1")
    call(SCHEDULED, context)
    call(SCHEDULED, context)
    assert (published, ecs.stopped) == (["stopped-1"], [])


@pytest.mark.parametrize("began_again", ["while_tasks_end", "before"])
def test_an_execution_that_was_redriven_meanwhile_is_left_alone(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
    *,
    monkeypatch: pytest.MonkeyPatch,
    began_again: str,
) -> None:
    """It had ended when the sweep began, and runs when the study's turn comes to be concluded."""
    (other, _) = executions.start("stopped-1")
    (redriven, _) = executions.start("stopped-2")
    slow = FakeTask(other.task_group, "server", lingers=3)
    ecs.add(slow)
    executions.abort("stopped-1")
    executions.abort("stopped-2")
    late = FakeTask(redriven.task_group, "server")

    def redrive(_: float) -> None:
        if late not in ecs.tasks:
            executions.redrive("stopped-2")
            ecs.add(late)

    monkeypatch.setattr("botocore.waiter.time.sleep", redrive)
    if began_again == "while_tasks_end":
        assert call(SCHEDULED, context) == {"stopped": 1, "left": 1}
    else:
        redrive(0)
        assert call(SCHEDULED, context) == {"stopped": 1, "left": 0}
    assert ecs.running() == [f"{redriven.task_group}/server/0"]
    assert statuses(table, "stopped-2")[0] is Status.RUNNING
    assert (published, table.open_studies()) == (["stopped-1"], ["stopped-2"])


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_failed_study_that_is_redriven_while_it_is_swept_runs_again(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
    *,
    monkeypatch: pytest.MonkeyPatch,
    look: int,
) -> None:
    """Whichever look at the execution was the last that saw it ended."""
    (done, failed) = executions.start("failed-1")
    table.settle(done, Verdict(Status.COMPLETED))
    table.settle(failed, Verdict(Status.FAILED, "it was killed"))
    table.end_study("failed-1", Status.FAILED)
    event = executions.abort("failed-1")
    looks = []

    def ended_and_redriven(this: LookedAt, study_id: str) -> EndedExecution | None:
        found = as_it_is(this, study_id)
        looks.append(found)
        if len(looks) == look:
            executions.redrive("failed-1")
            table.clear_unfinished("failed-1")
        return found

    as_it_is = LookedAt.ended
    monkeypatch.setattr(LookedAt, "ended", ended_and_redriven)
    call(event, context)
    assert len(looks) >= look
    assert statuses(table, "failed-1") == [Status.RUNNING, Status.COMPLETED, Status.PLANNED]
    assert (published, ecs.stopped) == ([], [])


def test_a_study_that_failed_with_unfinished_experiments_is_reported_again(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    """ReconcileMetrics and all its retries failed: the report that is out shows rows as they were."""
    (done, lost) = executions.start("failed-1")
    table.settle(done, Verdict(Status.COMPLETED))
    table.end_study("failed-1", Status.FAILED)
    ecs.add(ended(lost.task_group, "server"))
    event = executions.abort("failed-1")
    assert call(event, context) == {"stopped": 0, "left": 0}
    assert statuses(table, "failed-1") == [Status.FAILED, Status.COMPLETED, Status.ABORTED]
    assert call(SCHEDULED, context) == {"stopped": 0, "left": 0}
    assert published == ["failed-1"]


def test_an_experiment_that_reconciling_could_not_end_is_ended_once_its_study_has_failed(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    """ConcludeStudy failed for it, and left the study RUNNING: until clean-up has gone through, nothing has ended."""
    (lost, done) = executions.start("failed-1")
    table.settle(done, Verdict(Status.COMPLETED))
    table.explain(lost, "its tasks could not be ended: ExceptionGroup")
    ecs.add(*tasks_of(lost))
    stuck = f"{lost.task_group}/server/0"
    ecs.refusals[stuck] = "AccessDeniedException"
    said = "1 of 2 experiments have not ended: sync_2workers"
    cause = json.dumps({"errorMessage": said, "errorType": "StudyFailed", "stackTrace": ["…"]})
    event = executions.abort("failed-1", error="StudyFailed", cause=cause)
    with pytest.raises(ExceptionGroup, match="not everything could be swept: 1 failed"):
        call(event, context)
    assert statuses(table, "failed-1") == [Status.RUNNING, Status.STOPPING, Status.COMPLETED]
    assert (ecs.running(), published) == ([stuck], [])
    ecs.refusals.clear()
    assert call(SCHEDULED, context) == {"stopped": 1, "left": 0}
    assert statuses(table, "failed-1") == [Status.ABORTED, Status.ABORTED, Status.COMPLETED]
    assert table.experiments("failed-1")[0].cause == f"{ENDED}: ABORTED (StudyFailed: {said})"
    assert (ecs.running(), published, table.open_studies()) == ([], ["failed-1"], [])


def test_the_last_lines_of_what_failed_before_the_end_are_in_the_row(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    (sync, _) = executions.start("stopped-1")
    worker = ended(sync.task_group, "worker", 0, exit_code=1)
    ecs.add(FakeTask(sync.task_group, "server"), worker)
    logs, stream = boto3.client("logs"), f"lockstep/worker/{worker.arn.rsplit('/')[-1]}"
    logs.create_log_group(logGroupName=LOG_GROUP)
    logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
    lines = [{"timestamp": int(time.time() * 1000), "message": "out of patience"}]
    logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=lines)
    call(executions.abort("stopped-1"), context)
    tasks = {task.label: task for task in table.experiments("stopped-1")[0].tasks}
    assert tasks["worker 0"].last_lines == ("out of patience",)
    assert tasks["server"].last_lines == ()


@pytest.fixture
def unreadable(aws: boto3.Session) -> Iterator[set[str]]:
    """Names of executions that DescribeExecution answers with an error."""
    names: set[str] = set()

    def refuse(params: dict[str, Any], **_: Any) -> None:
        if params["executionArn"].rpartition(":")[2] in names:
            raise ClientError(
                {"Error": {"Code": "AccessDeniedException", "Message": ""}}, "DescribeExecution"
            )

    event = "provide-client-params.stepfunctions.DescribeExecution"
    aws.events.register(event, refuse, unique_id="unreadable")
    yield names
    aws.events.unregister(event, unique_id="unreadable")


@pytest.mark.parametrize("broken", ["stopped-1", "stopped-2", "stopped-3"])
def test_a_study_that_cannot_be_swept_does_not_keep_the_others(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    *,
    unreadable: set[str],
    broken: str,
) -> None:
    for study_id in ("stopped-1", "stopped-2", "stopped-3"):
        (experiment, _) = executions.start(study_id)
        ecs.add(*tasks_of(experiment))
        executions.abort(study_id)
    unreadable.add(broken)
    # The call fails, so that it is seen and made again
    with pytest.raises(ExceptionGroup, match="not everything could be swept: 1 failed"):
        call(SCHEDULED, context)
    assert {label.partition("/")[0] for label in ecs.running()} == {broken}
    assert statuses(table, broken)[0] is Status.RUNNING
    unreadable.clear()
    assert call(SCHEDULED, context) == {"stopped": 3, "left": 0}
    assert ecs.running() == []


def test_a_task_that_cannot_be_stopped_keeps_its_study_open_and_no_other_task(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    (experiment, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(experiment))
    stuck = f"{experiment.task_group}/worker/0"
    ecs.refusals[stuck] = "AccessDeniedException"
    with pytest.raises(ExceptionGroup, match="not everything could be swept: 1 failed"):
        call(executions.abort("stopped-1"), context)
    assert ecs.running() == [stuck]
    # Nothing says that it has ended while a task of it runs
    assert statuses(table, "stopped-1") == [Status.RUNNING, Status.STOPPING, Status.STOPPING]
    ecs.refusals.clear()
    assert call(SCHEDULED, context) == {"stopped": 1, "left": 0}
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3
    assert published == ["stopped-1"]


def test_rows_that_cannot_be_written_do_not_keep_the_tasks(
    ecs: FakeEcs, executions: Executions, context: LambdaContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    (experiment, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(experiment))
    event = executions.abort("stopped-1")
    monkeypatch.setenv("TABLE_NAME", "absent")
    with pytest.raises(ExceptionGroup, match="not everything could be swept: 2 failed"):
        call(event, context)
    assert ecs.running() == []


def test_sweeping_twice_is_sweeping_once(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
) -> None:
    (one, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(one))
    event = executions.abort("stopped-1")
    call(event, context)
    rows = table.experiments("stopped-1")
    assert [call(event, context), call(SCHEDULED, context)] == [{"stopped": 0, "left": 0}] * 2
    assert table.experiments("stopped-1") == rows
    assert len(ecs.stopped) == 3
    assert published == ["stopped-1"]


def test_two_sweeps_at_once_order_one_report(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    published: list[str],
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one comes and goes while the first one waits for the tasks."""
    (sync, _) = executions.start("stopped-1")
    ecs.add(FakeTask(sync.task_group, "server", lingers=3))
    event = executions.abort("stopped-1")
    results: list[dict[str, int]] = []

    def meanwhile(_: float) -> None:
        if not results:
            results.append({})
            results.append(call(SCHEDULED, context))

    monkeypatch.setattr("botocore.waiter.time.sleep", meanwhile)
    results.append(call(event, context))
    assert results == [{}, {"stopped": 0, "left": 0}, {"stopped": 1, "left": 0}]
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3
    assert published == ["stopped-1"]


@pytest.mark.usefixtures("table")
def test_an_event_for_a_study_that_was_refused_has_nothing_to_sweep(
    ecs: FakeEcs, executions: Executions, context: LambdaContext, published: list[str]
) -> None:
    boto3.client("stepfunctions").start_execution(stateMachineArn=executions.machine, name="refused-1")
    assert call(executions.abort("refused-1"), context) == {"stopped": 0, "left": 0}
    assert (ecs.stopped, published) == ([], [])


@pytest.mark.usefixtures("table", "executions")
def test_tasks_of_others_are_left_alone(ecs: FakeEcs, context: LambdaContext) -> None:
    ecs.add(FakeTask("family:somebody", "server"), FakeTask("", "server"))
    assert call(SCHEDULED, context) == {"stopped": 0, "left": 0}
    assert len(ecs.running()) == 2


@pytest.mark.usefixtures("table")
def test_stopped_tasks_are_counted_where_they_ran_on_for_minutes(
    ecs: FakeEcs, executions: Executions, context: LambdaContext, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that is not sent costs nothing."""
    (one, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(one))
    executions.abort("stopped-1")
    executions.grow_old("stopped-1")
    call(SCHEDULED, context)
    assert counted(capsys) == [(STACK, [3.0])]
    call(SCHEDULED, context)
    assert counted(capsys) == []


@pytest.mark.usefixtures("table")
def test_tasks_of_an_execution_that_somebody_has_just_stopped_are_no_orphans(
    ecs: FakeEcs, executions: Executions, context: LambdaContext, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step Functions is about to stop them itself."""
    (one, _) = executions.start("stopped-1")
    ecs.add(*tasks_of(one))
    assert call(executions.abort("stopped-1"), context) == {"stopped": 3, "left": 0}
    assert counted(capsys) == []


def test_tasks_that_outlive_their_experiments_verdict_are_counted(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (judged, _) = executions.start("running-1")
    ecs.add(*tasks_of(judged))
    table.settle(judged, Verdict(Status.COMPLETED))
    call(SCHEDULED, context)
    assert counted(capsys) == [(STACK, [3.0])]


def counted(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, list[float]]]:
    """Stack and number of each metric that was sent."""
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return [(line["stack"], line["TasksSwept"]) for line in lines if "_aws" in line]
