"""JudgeExperiment: what still runs is stopped, then the row says how the experiment ended."""

import time
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.judge_experiment.handler import handler
from lambdas.table import ExperimentTable
from tests.unit.conftest import EXECUTION, LOG_GROUP, TABLE
from tests.unit.fake_ecs import FakeEcs, FakeTask, ended
from tests.unit.report_fixtures import records_of, task_failed

DOCUMENT = {"matrix": {"mode": ["sync"], "workers": [2, 1]}}


@pytest.fixture
def experiment(table: ExperimentTable) -> Experiment:
    """The first experiment of a planned study."""
    planned = plan(parse_study(DOCUMENT), "study-1")
    table.put_plan("study-1", DOCUMENT, planned, EXECUTION)
    return planned[0]


def call(context: LambdaContext, error: Any = None) -> dict[str, str]:
    event = {"study_id": "study-1", "experiment": "sync_2workers", "error": error}
    result: dict[str, str] = handler(event, context)
    return result


def test_tasks_that_ended_well_make_it_completed(
    table: ExperimentTable, ecs: FakeEcs, experiment: Experiment, context: LambdaContext
) -> None:
    """Their records may still be on the way."""
    group = experiment.task_group
    ecs.add(ended(group, "server"), ended(group, "worker", 0), ended(group, "worker", 1))
    assert call(context) == {"name": "sync_2workers", "status": "COMPLETED"}
    row = table.experiment("study-1", "sync_2workers")
    assert (row.status, row.cause, row.error) == (Status.COMPLETED, "", None)
    assert {(task.role, task.rank, task.exit_code) for task in row.tasks} == {
        ("server", 0, 0),
        ("worker", 0, 0),
        ("worker", 1, 0),
    }
    assert table.experiment("study-1", "sync_1worker").status is Status.PLANNED


def test_when_one_was_killed_the_others_are_stopped_and_the_row_names_it(
    table: ExperimentTable, ecs: FakeEcs, experiment: Experiment, context: LambdaContext
) -> None:
    group = experiment.task_group
    ecs.add(
        FakeTask(group, "server", exit_code_when_stopped=1),
        ended(group, "worker", 0, exit_code=1),
        ended(group, "worker", 1, exit_code=137),
        FakeTask("study-1/sync_1worker", "server"),
    )
    table.put_records([task_failed(experiment, "worker", 0, 4, "server")])
    error = {"Error": "States.TaskFailed", "Cause": "{…}"}
    assert call(context, error) == {"name": "sync_2workers", "status": "FAILED"}
    row = table.experiment("study-1", "sync_2workers")
    assert row.cause.startswith("worker 1 was killed (exit code 137: SIGKILL")
    assert "worker 0 failed: server was lost" in row.cause
    assert row.error == error
    assert ecs.running() == ["study-1/sync_1worker/server/0"]


@pytest.mark.parametrize("error", [{"Error": "ServerLost", "Cause": "{…}"}, None])
def test_a_worker_that_was_starting_when_the_server_was_lost_does_not_outlive_the_verdict(
    table: ExperimentTable,
    ecs: FakeEcs,
    experiment: Experiment,
    context: LambdaContext,
    *,
    monkeypatch: pytest.MonkeyPatch,
    error: dict[str, str] | None,
) -> None:
    """Its RunTask was under way, and ECS shows it late. What ended by itself is not waited for."""
    group, pauses = experiment.task_group, list[float]()
    ecs.add(ended(group, "server", exit_code=137), ended(group, "worker", 0))
    late = FakeTask(group, "worker", 1)

    def begin(seconds: float) -> None:
        pauses.append(seconds)
        if late not in ecs.tasks:
            ecs.add(late)
        assert table.experiment("study-1", experiment.name).status is Status.PLANNED

    monkeypatch.setattr("lambdas.tasks.time.sleep", begin)
    monkeypatch.setenv("QUIET_SECONDS", "10")
    assert call(context, error)["status"] == "FAILED"
    assert pauses == ([10, 10] if error else [])
    assert ecs.running() == []
    assert len(table.experiment("study-1", experiment.name).tasks) == (3 if error else 2)


def test_what_was_never_started_is_told_by_the_state_machines_error(
    table: ExperimentTable, ecs: FakeEcs, experiment: Experiment, context: LambdaContext
) -> None:
    assert ecs.tasks == []
    error = {"Error": "ECS.InvalidParameterException", "Cause": "no such subnet"}
    assert call(context, error)["status"] == "FAILED"
    assert (
        table.experiment("study-1", experiment.name).cause == "ECS.InvalidParameterException: no such subnet"
    )


@pytest.mark.usefixtures("experiment")
def test_without_tasks_and_without_an_error_nothing_was_started(
    table: ExperimentTable, ecs: FakeEcs, context: LambdaContext
) -> None:
    assert call(context)["status"] == "FAILED"
    assert table.experiment("study-1", "sync_2workers").cause == "0 of 3 tasks were started (none)"
    assert ecs.stopped == []


def test_a_retried_call_comes_to_the_same_verdict(
    table: ExperimentTable, ecs: FakeEcs, experiment: Experiment, context: LambdaContext
) -> None:
    """The first call stopped the tasks and died before it could write."""
    group = experiment.task_group
    ecs.add(FakeTask(group, "server"), FakeTask(group, "worker", 0), ended(group, "worker", 1, exit_code=137))
    assert call(context) == call(context)
    assert table.experiment("study-1", "sync_2workers").cause.startswith("worker 1 was killed")
    assert len(ecs.stopped) == 2


def test_the_last_lines_of_what_failed_are_in_the_row(
    table: ExperimentTable,
    ecs: FakeEcs,
    experiment: Experiment,
    context: LambdaContext,
    aws: boto3.Session,
) -> None:
    group = experiment.task_group
    failed = ended(group, "worker", 1, exit_code=1)
    ecs.add(ended(group, "server"), ended(group, "worker", 0), failed)
    logs, stream = aws.client("logs"), f"lockstep/worker/{failed.arn.rsplit('/')[-1]}"
    logs.create_log_group(logGroupName=LOG_GROUP)
    logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
    line = {"timestamp": int(time.time() * 1000), "message": "no data in /data"}
    logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=[line])
    call(context)
    told = {task.label: task.last_lines for task in table.experiment("study-1", experiment.name).tasks}
    assert told == {"server": (), "worker 0": (), "worker 1": ("no data in /data",)}


@pytest.mark.parametrize("stopping", [True, False])
def test_an_experiment_that_was_aborted_stays_so(
    table: ExperimentTable, ecs: FakeEcs, experiment: Experiment, context: LambdaContext, *, stopping: bool
) -> None:
    if stopping:
        table.begin_stop(experiment)
    else:
        table.abort(experiment, "the execution was stopped")
    ecs.add(FakeTask(experiment.task_group, "server"))
    table.put_records(records_of(experiment))
    call(context)
    row = table.experiment("study-1", "sync_2workers")
    expected = (Status.STOPPING, "") if stopping else (Status.ABORTED, "the execution was stopped")
    assert (row.status, row.cause) == expected
    assert ecs.running() == []


def test_tasks_of_an_earlier_run_do_not_count(
    table: ExperimentTable, ecs: FakeEcs, experiment: Experiment, context: LambdaContext, aws: boto3.Session
) -> None:
    """ECS remembers those for an hour; a redriven execution runs the experiment again under the same name."""
    group = experiment.task_group
    ecs.add(
        ended(group, "server", exit_code=137, stopped_at=0),
        ended(group, "worker", 0, exit_code=1, stopped_at=10),
        *(
            ended(group, role, rank, stopped_at=100)
            for role, rank in (("server", 0), ("worker", 0), ("worker", 1))
        ),
    )
    aws.resource("dynamodb").Table(TABLE).update_item(
        Key={"pk": "STUDY#study-1", "sk": f"EXPERIMENT#{experiment.name}"},
        UpdateExpression="SET started_at = :at",
        ExpressionAttributeValues={":at": datetime.fromtimestamp(1_790_000_020, UTC).isoformat()},
    )
    assert call(context)["status"] == "COMPLETED"
    assert len(table.experiment("study-1", experiment.name).tasks) == 3
