"""SweepTasks: the tasks of an execution that has ended are stopped, those of one that runs are left alone."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.sweep_tasks.handler import handler
from lambdas.table import ExperimentTable
from lambdas.verdict import Verdict
from tests.unit.conftest import EXECUTION, STACK
from tests.unit.fake_ecs import FakeEcs, FakeTask

DOCUMENT = {"matrix": {"workers": [2]}}
SCHEDULED: dict[str, Any] = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}


class Executions:
    """A state machine and what was started on it."""

    def __init__(self, session: boto3.Session) -> None:
        self._states = session.client("stepfunctions")
        definition = {"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 60, "End": True}}}
        self.machine = self._states.create_state_machine(
            name="lockstep",
            definition=json.dumps(definition),
            roleArn="arn:aws:iam::123456789012:role/lockstep",
        )["stateMachineArn"]

    def start(self, study_id: str) -> str:
        return self._states.start_execution(stateMachineArn=self.machine, name=study_id)["executionArn"]

    def abort(self, study_id: str) -> dict[str, Any]:
        """Stop an execution. Returns the event that EventBridge sends."""
        arn = f"{self.machine.replace(':stateMachine:', ':execution:')}:{study_id}"
        self._states.stop_execution(executionArn=arn)
        return {
            "source": "aws.states",
            "detail-type": "Step Functions Execution Status Change",
            "detail": {
                "executionArn": arn,
                "stateMachineArn": self.machine,
                "name": study_id,
                "status": "ABORTED",
            },
        }


@pytest.fixture
def executions(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Executions:
    made = Executions(aws)
    monkeypatch.setenv("STATE_MACHINE_ARN", made.machine)
    return made


def planned(table: ExperimentTable, study_id: str) -> list[Experiment]:
    experiments = plan(parse_study(DOCUMENT), study_id)
    table.put_plan(study_id, DOCUMENT, experiments, EXECUTION)
    return experiments


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


def test_the_tasks_of_a_stopped_execution_are_stopped_and_its_rows_say_so(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    sync, async_ = planned(table, "stopped-1")
    table.settle(sync, Verdict(Status.COMPLETED))
    ecs.add(*tasks_of(async_))
    executions.start("stopped-1")
    assert call(executions.abort("stopped-1"), context) == {"swept": 3}
    assert ecs.running() == []
    assert {reason.partition(": ")[2] for reason in ecs.stopped} == {
        "Lockstep: the execution of the study has ended: ABORTED"
    }
    assert statuses(table, "stopped-1") == [Status.ABORTED, Status.COMPLETED, Status.ABORTED]
    assert table.experiments("stopped-1")[1].cause == "the execution of the study has ended: ABORTED"


def test_a_running_execution_is_left_alone(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    (running, _) = planned(table, "running-1")
    (stopped, _) = planned(table, "stopped-1")
    executions.start("running-1")
    executions.start("stopped-1")
    ecs.add(*tasks_of(running), *tasks_of(stopped))
    event = executions.abort("stopped-1")
    for one in (event, SCHEDULED):
        call(one, context)
        assert ecs.running() == [
            f"{running.task_group}/{rest}" for rest in ("server/0", "worker/0", "worker/1")
        ]
    assert statuses(table, "running-1") == [Status.RUNNING, Status.PLANNED, Status.PLANNED]
    assert statuses(table, "stopped-1") == [Status.ABORTED, Status.ABORTED, Status.ABORTED]


def test_the_schedule_finds_what_no_event_told(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    """The event was lost, or the execution is not even known any more."""
    (one, _) = planned(table, "stopped-1")
    (other, _) = planned(table, "forgotten-1")
    ecs.add(*tasks_of(one), *tasks_of(other))
    executions.start("stopped-1")
    executions.abort("stopped-1")
    assert call(SCHEDULED, context) == {"swept": 6}
    assert ecs.running() == []
    assert statuses(table, "stopped-1")[0] is Status.ABORTED
    assert table.experiments("forgotten-1")[0].cause == "the execution of the study has ended: MISSING"


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
        (experiment, _) = planned(table, study_id)
        ecs.add(*tasks_of(experiment))
        executions.start(study_id)
        executions.abort(study_id)
    unreadable.add(broken)
    # The call fails, so that it is seen and made again
    with pytest.raises(ExceptionGroup, match="1 study could not be swept"):
        call(SCHEDULED, context)
    assert {label.partition("/")[0] for label in ecs.running()} == {broken}
    assert statuses(table, broken)[0] is Status.RUNNING
    unreadable.clear()
    assert call(SCHEDULED, context) == {"swept": 3}
    assert ecs.running() == []


def test_a_task_that_cannot_be_stopped_does_not_keep_the_others_of_its_study(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    (experiment, _) = planned(table, "stopped-1")
    ecs.add(*tasks_of(experiment))
    stuck = f"{experiment.task_group}/worker/0"
    ecs.refusals[stuck] = "AccessDeniedException"
    executions.start("stopped-1")
    with pytest.raises(ExceptionGroup, match="1 study could not be swept"):
        call(executions.abort("stopped-1"), context)
    assert ecs.running() == [stuck]
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3


def test_rows_that_cannot_be_written_do_not_keep_the_tasks(
    table: ExperimentTable,
    ecs: FakeEcs,
    executions: Executions,
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (experiment, _) = planned(table, "stopped-1")
    ecs.add(*tasks_of(experiment))
    executions.start("stopped-1")
    event = executions.abort("stopped-1")
    monkeypatch.setenv("TABLE_NAME", "absent")
    with pytest.raises(ExceptionGroup, match="1 study could not be swept"):
        call(event, context)
    assert ecs.running() == []


def test_sweeping_twice_is_sweeping_once(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    (one, _) = planned(table, "stopped-1")
    ecs.add(*tasks_of(one))
    executions.start("stopped-1")
    event = executions.abort("stopped-1")
    call(event, context)
    rows = table.experiments("stopped-1")
    assert [call(event, context), call(SCHEDULED, context)] == [{"swept": 0}, {"swept": 0}]
    assert table.experiments("stopped-1") == rows
    assert len(ecs.stopped) == 3


def test_an_execution_that_ended_between_two_experiments_has_rows_and_no_tasks(
    table: ExperimentTable, ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    planned(table, "stopped-1")
    executions.start("stopped-1")
    assert call(executions.abort("stopped-1"), context) == {"swept": 0}
    assert statuses(table, "stopped-1") == [Status.ABORTED] * 3
    assert ecs.stopped == []


@pytest.mark.usefixtures("table")
def test_an_event_for_a_study_that_was_refused_has_nothing_to_sweep(
    ecs: FakeEcs, executions: Executions, context: LambdaContext
) -> None:
    executions.start("refused-1")
    assert call(executions.abort("refused-1"), context) == {"swept": 0}
    assert ecs.stopped == []


@pytest.mark.usefixtures("table", "executions")
def test_tasks_of_others_are_left_alone(ecs: FakeEcs, context: LambdaContext) -> None:
    ecs.add(FakeTask("family:somebody", "server"), FakeTask("", "server"))
    assert call(SCHEDULED, context) == {"swept": 0}
    assert len(ecs.running()) == 2


@pytest.mark.usefixtures("executions")
def test_swept_tasks_are_counted_where_there_were_any(
    table: ExperimentTable,
    ecs: FakeEcs,
    context: LambdaContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A number that is not sent costs nothing."""
    (one, _) = planned(table, "stopped-1")
    ecs.add(*tasks_of(one))
    call(SCHEDULED, context)
    (counted,) = (line for line in map(json.loads, capsys.readouterr().out.splitlines()) if "_aws" in line)
    assert (counted["stack"], counted["TasksSwept"]) == (STACK, [3.0])
    call(SCHEDULED, context)
    assert "_aws" not in capsys.readouterr().out
