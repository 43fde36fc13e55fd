"""Every way a study can end: it is named, in the table and in the report, and neither task nor process is left.

One cloud for all; studies are small, and each of them is held where it is to end. Killed servers and workers, and
tasks that give up, are in test_failures.py.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdk import EMBEDDED_CLOUD
from contract.table import TERMINAL, Status
from lambdas.rows import ExperimentRow
from local.cloud import Cloud
from local.deploy import ASSET_BUCKET, STACK
from tests.e2e.machine import (
    LONG,
    PATIENCE_SECONDS,
    QUICK,
    RunningTask,
    assert_nothing_left,
    await_death,
    cause_of,
    client,
    definitions_of,
    ended_tasks,
    errors_of,
    published,
    running_tasks,
    start_study,
    study_of,
    table_of,
    until,
)
from tests.e2e.provocations import (
    TIMED_OUT,
    Gate,
    container_redefined,
    frozen,
    function_name,
    gated,
    idle_servers,
    out_of_time,
    task_token,
)

ONE: dict[str, Any] = {"experiments": [{"name": "one", "mode": "sync", "workers": 1}]}
SHORT = {**ONE, "training": {**QUICK, "epochs": 1}}
ENDLESS = {**ONE, "training": {**QUICK, "epochs": 100}, "compute": LONG}
STATES = ("plan_study", "judge_experiment", "reconcile_metrics", "publish_report", "conclude_study")
"""Functions that the state machine calls."""
TIMEOUT_SECONDS = 30
"""The shortest that a study may ask for."""


@pytest.fixture(scope="module")
def gates(cloud: Cloud) -> Iterator[dict[str, Gate]]:
    """Function → what it reaches the table through, in all tests of this file."""
    folders = [*STATES, "sweep_tasks"]
    with ExitStack() as all_of_them:
        yield {folder: all_of_them.enter_context(gated(cloud, folder)) for folder in folders}


@pytest.fixture(scope="module", autouse=True)
def timing_out(cloud: Cloud, gates: dict[str, Gate]) -> Iterator[str]:  # noqa: ARG001 - before it starts
    """A study that runs into its timeout, while the other tests go on."""
    states = client(cloud, "stepfunctions")
    document = {**ENDLESS, "experiment_timeout_seconds": TIMEOUT_SECONDS}
    arn: str = states.start_execution(
        stateMachineArn=cloud.outputs["StateMachineArn"], name="timing-out", input=json.dumps(document)
    )["executionArn"]
    # Before a test has servers started that do nothing.
    until(lambda: running_tasks(cloud, arn), "its server is started")
    yield arn
    if states.describe_execution(executionArn=arn)["status"] == "RUNNING":
        states.stop_execution(executionArn=arn)
        until(lambda: status_of(cloud, arn) in TERMINAL, "the end of the study that is to time out")


def status_of(cloud: Cloud, arn: str) -> Status | None:
    row = table_of(cloud).study(study_of(arn))
    return row.status if row else None


def rows_of(cloud: Cloud, arn: str) -> list[ExperimentRow]:
    return table_of(cloud).experiments(study_of(arn))


def trains(cloud: Cloud, arn: str) -> list[RunningTask] | None:
    """The tasks of the one experiment with one worker, once both of them run."""
    tasks = running_tasks(cloud, arn)
    return tasks if len(tasks) == 2 else None


def stop(cloud: Cloud, arn: str, why: str) -> None:
    client(cloud, "stepfunctions").stop_execution(executionArn=arn, error="Impatience", cause=why)


def swept(cloud: Cloud) -> bool:
    """Call clean-up, as the schedule does."""
    answer = client(cloud, "lambda").invoke(FunctionName=function_name(cloud, "sweep_tasks"), Payload=b"{}")
    assert "FunctionError" not in answer, answer["Payload"].read()
    return True


def assert_aborted(cloud: Cloud, arn: str, why: str, experiment: Status = Status.ABORTED) -> None:
    """The table says so and why, the report does, and nothing is left."""
    table, study = table_of(cloud), study_of(arn)
    until(lambda: status_of(cloud, arn) in TERMINAL, f"the end of {study} in the table")
    # The status is written after clean-up
    assert_nothing_left(cloud, arn)
    row = table.study(study)
    assert row is not None
    told = f"the execution of the study has ended: ABORTED (Impatience: {why})"
    assert (row.status, row.cause) == (Status.ABORTED, told)
    assert {(e.status, e.cause) for e in rows_of(cloud, arn)} == {
        (experiment, told if experiment is Status.ABORTED else "")
    }
    until(lambda: told in (published(cloud, arn, "report.html") or ""), "a report that says why")

    def ended() -> bool:
        document = json.loads(published(cloud, arn, "study.json") or "")
        return (document["status"], document["cause"]) == ("ABORTED", told)

    # Two may publish at once, of which one does so again where it began before the end
    until(ended, "results that say why")
    until(lambda: study not in table.open_studies(), "the study is closed")


def assert_failed(cloud: Cloud, described: dict[str, Any], cause: str) -> str:
    """The execution, the table and the report say so and why, and nothing is left; returns the report."""
    arn = described["executionArn"]
    assert described["status"] == "FAILED"
    (row,) = rows_of(cloud, arn)
    assert (row.status, status_of(cloud, arn)) == (Status.FAILED, Status.FAILED)
    assert row.cause.startswith(cause)
    assert f"one: {cause}" in cause_of(described)
    assert_nothing_left(cloud, arn)
    page = published(cloud, arn, "report.html")
    assert page is not None
    assert "1 of 1 experiment did not complete" in page
    return page


def test_stopped_in_planning(
    cloud: Cloud, study: str, start: Callable[..., str], gates: dict[str, Gate]
) -> None:
    """The plan is written after the execution has ended: nobody but the schedule finds it."""
    gate = gates["plan_study"]
    with gate.shut(study):
        arn = start(ENDLESS)
        assert gate.reached.wait(PATIENCE_SECONDS)
        stop(cloud, arn, "while planning")
        assert swept(cloud)
        gate.opened.set()
        until(lambda: len(rows_of(cloud, arn)) == 1, "its plan is written")
    assert swept(cloud)
    assert_aborted(cloud, arn, "while planning")
    assert ended_tasks(cloud, arn) == 0


def test_stopped_before_its_first_task(cloud: Cloud, start: Callable[..., str]) -> None:
    arn = start(ENDLESS)
    until(lambda: rows_of(cloud, arn), "it is planned")
    stop(cloud, arn, "before its first task")
    assert_aborted(cloud, arn, "before its first task")


def test_stopped_while_its_data_set_is_prepared(cloud: Cloud, start: Callable[..., str]) -> None:
    log_before = Path(cloud.state, "engine.log").read_text()
    arn = start({**ONE, "training": {"dataset": "mnist", "model": "mlp", "epochs": 1}})
    with frozen(cloud, "prepare", log_before):
        stop(cloud, arn, "in PrepareDataset")
    assert_aborted(cloud, arn, "in PrepareDataset")
    assert ended_tasks(cloud, arn) == 1  # that one


def test_stopped_in_rendezvous(cloud: Cloud, start: Callable[..., str]) -> None:
    with idle_servers(cloud):
        arn = start(ENDLESS)
        until(lambda: running_tasks(cloud, arn), "its server is started")
        until(lambda: task_token(cloud, arn, "one"), "the state machine waits for the server")
        stop(cloud, arn, "in rendezvous")
        assert_aborted(cloud, arn, "in rendezvous")
    (row,) = rows_of(cloud, arn)
    assert {task.role for task in row.tasks} == {"server"}


def test_stopped_in_training_beside_a_study_that_goes_on_as_if_alone(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given what a study comes to that runs alone
    study = {
        "experiments": [{"name": "one", "mode": "sync", "workers": 2, "seed": 7}],
        "training": QUICK,
        "compute": {**LONG, "mean_ms": 100},
    }
    alone = start(study, "-alone")
    assert ended(alone)["status"] == "SUCCEEDED"

    # When it runs beside another one, which is stopped in the middle
    victim = start(ENDLESS, "-victim")
    tasks = until(lambda: trains(cloud, victim), "the victim trains")
    beside = start(study, "-beside")
    until(lambda: running_tasks(cloud, beside), "the other one is under way")
    stop(cloud, victim, "in training")

    # Then the one is gone, and says so
    assert_aborted(cloud, victim, "in training")
    await_death(cloud, [task.pid for task in tasks])
    page = published(cloud, victim, "report.html") or ""
    assert "How its tasks ended" in page
    assert "Last log lines of worker 0" in page
    # And the other one's results are those of a run alone
    described = ended(beside)
    assert described["status"] == "SUCCEEDED", cause_of(described)
    results = [json.loads(published(cloud, arn, "experiments/one.json") or "") for arn in (alone, beside)]
    same = [
        {
            "status": result["status"],
            "accuracies": result["worker_metrics_aggregated"]["accuracy_by_epoch"],
            "records": [(r["role"], r["rank"], r["missing"]) for r in result["records"]],
            **{
                name: result["server_metrics"][name]
                for name in ("parameters_sha256", "global_steps_completed")
            },
        }
        for result in results
    ]
    assert same[0] == same[1]
    assert (same[0]["status"], same[0]["records"]) == (
        "COMPLETED",
        [("server", 0, 0), ("worker", 0, 0), ("worker", 1, 0)],
    )
    for arn in (alone, beside):
        assert json.loads(published(cloud, arn, "study.json") or "")["warnings"] == []
        assert_nothing_left(cloud, arn)


@pytest.mark.parametrize("function", STATES[1:])
def test_stopped_in_its_last_states(
    cloud: Cloud, study: str, start: Callable[..., str], gates: dict[str, Gate], function: str
) -> None:
    gate = gates[function]
    state = "".join(word.capitalize() for word in function.split("_"))
    with gate.shut(study):
        arn = start(SHORT)
        assert gate.reached.wait(PATIENCE_SECONDS)
        stop(cloud, arn, f"in {state}")
        judged = Status.COMPLETED  # what was judged before stays so
        if function == "judge_experiment":
            judged = Status.ABORTED  # and so does what clean-up has written before it was judged
            until(lambda: {row.status for row in rows_of(cloud, arn)} == {judged}, "clean-up")
        if function == "conclude_study":
            until(lambda: status_of(cloud, arn) is Status.ABORTED, "clean-up comes first")
        gate.opened.set()
        assert_aborted(cloud, arn, f"in {state}", judged)


def test_worker_that_never_starts(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    """The task engine runs no privileged containers, as Fargate does not; ECS says so in its own words."""
    with container_redefined(cloud, "worker", privileged=True):
        described = ended(start(ENDLESS))  # two further starts, each after a pause
    reason = "ResourceInitializationError: unable to pull image or start container"
    page = assert_failed(cloud, described, f"worker 0 never ran: {reason}")
    assert "First to fail: worker 0" in page
    assert "TaskFailedToStart" in page


def test_token_that_expires_before_the_server_answers(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    with idle_servers(cloud):
        arn = start(ENDLESS)
        until(lambda: running_tasks(cloud, arn), "its server is started")
        token = until(lambda: task_token(cloud, arn, "one"), "the state machine waits for the server")
        # As Step Functions ends a state that has waited for too long
        client(cloud, "stepfunctions").send_task_failure(taskToken=token, error="States.Timeout", cause="")
        described = ended(arn)
    assert_failed(
        cloud, described, "States.Timeout: a state has waited for too long; never started: worker 0"
    )


@pytest.fixture
def without_time(
    cloud: Cloud,
    study: str,
    gates: dict[str, Gate],
    timing_out: str,
    ended: Callable[..., dict[str, Any]],
) -> Callable[[str], AbstractContextManager[None]]:
    """Takes a function the time for the test's own study; no other study needs it meanwhile."""
    ended(timing_out)
    return lambda function: out_of_time(cloud, function, gates[function], study)


@pytest.mark.parametrize("killed", [False, True], ids=["trained-well", "worker-killed"])
def test_judging_out_of_time_costs_no_verdict(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
    *,
    killed: bool,
) -> None:
    """JudgeExperiment never comes to an end: what it would have said, ReconcileMetrics does."""
    with without_time("judge_experiment"):
        arn = start(ENDLESS if killed else SHORT)
        if killed:
            tasks = until(lambda: trains(cloud, arn), "server and worker run")
            os.kill(next(task.pid for task in tasks if task.role == "worker"), signal.SIGKILL)
        described = ended(arn)
    assert errors_of(cloud, arn).count(TIMED_OUT) == 2
    if killed:
        assert_failed(cloud, described, "worker 0 was killed (exit code 137")
        return
    assert described["status"] == "SUCCEEDED", cause_of(described)
    assert [(row.status, row.cause) for row in rows_of(cloud, arn)] == [(Status.COMPLETED, "")]
    assert status_of(cloud, arn) is Status.COMPLETED
    assert_nothing_left(cloud, arn)


def test_planning_out_of_time(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Nothing was started, and nothing written."""
    with without_time("plan_study"):
        arn = start(SHORT)
        described = ended(arn)
    assert (described["status"], errors_of(cloud, arn)) == ("FAILED", [TIMED_OUT])
    assert cause_of(described).startswith(f"the study could not be planned: {TIMED_OUT}: ")
    assert (status_of(cloud, arn), rows_of(cloud, arn)) == (None, [])
    assert (running_tasks(cloud, arn), ended_tasks(cloud, arn)) == ([], 0)


def test_reconciling_out_of_time(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> None:
    """The verdicts stand; that records may be missing is a warning of the report."""
    with without_time("reconcile_metrics"):
        arn = start(SHORT)
        described = ended(arn)
    assert described["status"] == "SUCCEEDED", cause_of(described)
    assert errors_of(cloud, arn).count(TIMED_OUT) == 2
    assert [(row.status, row.cause) for row in rows_of(cloud, arn)] == [(Status.COMPLETED, "")]
    assert status_of(cloud, arn) is Status.COMPLETED
    assert_nothing_left(cloud, arn)
    (warning,) = json.loads(published(cloud, arn, "study.json") or "")["warnings"]
    assert (
        warning
        == f"records may be missing: ReconcileMetrics failed: {TIMED_OUT}: Task timed out after 1.00 seconds"
    )
    assert warning in (published(cloud, arn, "report.html") or "")


def test_publishing_out_of_time(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> None:
    """A study without a report has failed, whatever its experiments did."""
    with without_time("publish_report"):
        arn = start(SHORT)
        described = ended(arn)
    assert (described["status"], described["error"]) == ("FAILED", "StudyFailed")
    assert errors_of(cloud, arn).count(TIMED_OUT) == 2
    assert cause_of(described).startswith(f"the report could not be published: {TIMED_OUT}: ")
    assert [(row.status, row.cause) for row in rows_of(cloud, arn)] == [(Status.COMPLETED, "")]
    assert status_of(cloud, arn) is Status.FAILED
    assert_nothing_left(cloud, arn)


def test_concluding_out_of_time(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Nobody has written how the study ended: clean-up does, and why."""
    with without_time("conclude_study"):
        arn = start(SHORT)
        described = ended(arn)
    assert (described["status"], described["error"]) == ("FAILED", TIMED_OUT)
    assert errors_of(cloud, arn).count(TIMED_OUT) == 2
    until(lambda: status_of(cloud, arn) in TERMINAL, "clean-up")
    row, told = (
        table_of(cloud).study(study_of(arn)),
        f"the execution of the study has ended: FAILED ({TIMED_OUT}: ",
    )
    assert row is not None
    assert (row.status, row.cause.startswith(told)) == (Status.ABORTED, True), row.cause
    assert [(each.status, each.cause) for each in rows_of(cloud, arn)] == [(Status.COMPLETED, "")]
    assert_nothing_left(cloud, arn)
    until(lambda: told in (published(cloud, arn, "report.html") or ""), "a report that says why")


def test_judging_and_reconciling_out_of_time(
    cloud: Cloud,
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Nobody has ended the server: the study fails without a verdict, and gets one once clean-up has done it."""
    with (
        without_time("judge_experiment"),
        without_time("reconcile_metrics"),
    ):
        arn = start(ENDLESS)
        tasks = until(lambda: trains(cloud, arn), "server and worker run")
        server, worker = (
            next(task.pid for task in tasks if task.role == role) for role in ("server", "worker")
        )
        # It outlives its worker, until clean-up has it killed
        os.kill(server, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        described = ended(arn)
    assert (described["status"], described["error"]) == ("FAILED", "StudyFailed")
    assert errors_of(cloud, arn).count(TIMED_OUT) == 4
    said = "1 of 1 experiments have not ended: one"
    assert cause_of(described).startswith(said)
    until(lambda: status_of(cloud, arn) in TERMINAL, "clean-up")
    # The status is written after clean-up
    assert_nothing_left(cloud, arn)
    assert {status_of(cloud, arn), *(row.status for row in rows_of(cloud, arn))} == {Status.ABORTED}
    assert all(f"FAILED (StudyFailed: {said}" in row.cause for row in rows_of(cloud, arn))
    until(lambda: said in (published(cloud, arn, "report.html") or ""), "a report that says why")


def test_cleaning_up_out_of_time(
    cloud: Cloud,
    start: Callable[..., str],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> None:
    """What it had no time for, the next call does."""
    functions = client(cloud, "lambda")
    arn = start(ENDLESS)
    until(lambda: trains(cloud, arn), "it trains")
    with without_time("sweep_tasks"):
        stop(cloud, arn, "before a call without time")
        answer = functions.invoke(FunctionName=function_name(cloud, "sweep_tasks"), Payload=b"{}")
        assert json.loads(answer["Payload"].read())["errorType"] == TIMED_OUT
        assert (status_of(cloud, arn), len(running_tasks(cloud, arn))) == (Status.RUNNING, 2)
    assert swept(cloud)
    assert_aborted(cloud, arn, "before a call without time")


@pytest.fixture
def second(cloud: Cloud) -> Iterator[Cloud]:
    """A second stack, beside the first one."""
    cloudformation = client(cloud, "cloudformation")
    name = f"{STACK}-other"
    cloudformation.create_stack(
        StackName=name,
        TemplateURL=f"{cloud.endpoint}/{ASSET_BUCKET}/{STACK}.template.json",
        Parameters=[{"ParameterKey": EMBEDDED_CLOUD, "ParameterValue": "true"}],
        Capabilities=["CAPABILITY_IAM"],
    )
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    outputs = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    yield replace(cloud, outputs={o["OutputKey"]: o["OutputValue"] for o in outputs})
    delete_second_stack(cloud)


def delete_second_stack(cloud: Cloud) -> None:
    cloudformation = client(cloud, "cloudformation")
    cloudformation.delete_stack(StackName=f"{STACK}-other")
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=f"{STACK}-other", WaiterConfig={"Delay": 1}
    )


def test_updated_stack(cloud: Cloud, second: Cloud, study: str) -> None:
    """An experiment that begins after all task definitions were replaced has those that its study began with."""
    # Given the first of two experiments, one at a time
    two = [{"name": name, "mode": "sync", "workers": 1} for name in ("first", "next")]
    arn = start_study(second, study, {**ENDLESS, "experiments": two, "max_parallel_experiments": 1})
    tasks = until(lambda: trains(second, arn), "the first one trains")

    # When the stack is deployed anew
    ecs, cloudformation = client(second, "ecs"), client(second, "cloudformation")
    began_with = set(ecs.list_task_definitions()["taskDefinitionArns"])
    s3, key = client(second, "s3"), f"{STACK}.template.json"
    template = json.loads(s3.get_object(Bucket=ASSET_BUCKET, Key=key)["Body"].read())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::ECS::TaskDefinition":
            resource["Properties"]["ContainerDefinitions"][0]["StopTimeout"] += 1
    s3.put_object(Bucket=ASSET_BUCKET, Key=f"other-{key}", Body=json.dumps(template))
    cloudformation.update_stack(
        StackName=f"{STACK}-other",
        TemplateURL=f"{cloud.endpoint}/{ASSET_BUCKET}/other-{key}",
        Parameters=[{"ParameterKey": EMBEDDED_CLOUD, "UsePreviousValue": True}],
        Capabilities=["CAPABILITY_IAM"],
    )
    cloudformation.get_waiter("stack_update_complete").wait(
        StackName=f"{STACK}-other", WaiterConfig={"Delay": 1}
    )
    assert len(set(ecs.list_task_definitions()["taskDefinitionArns"]) - began_with) == 3

    # Then the next one trains as the first one did
    os.kill(next(task.pid for task in tasks if task.role == "worker"), signal.SIGKILL)
    until(lambda: {t.experiment for t in trains(second, arn) or []} == {"next"}, "the next one trains")
    assert definitions_of(second, arn) <= began_with


def test_deleted_stack(cloud: Cloud, second: Cloud, study: str) -> None:
    arn = start_study(second, study, ENDLESS)
    tasks = until(lambda: trains(second, arn), "its tasks are running")
    delete_second_stack(cloud)
    # Nothing of its study is left
    await_death(cloud, [task.pid for task in tasks])
    described = client(cloud, "stepfunctions").describe_execution(executionArn=arn)
    assert (described["status"], described["error"]) == ("ABORTED", "StackDeleted")


def test_timed_out(cloud: Cloud, timing_out: str, ended: Callable[..., dict[str, Any]]) -> None:
    """It has trained beside the other tests of this file."""
    described = ended(timing_out)
    said = f"training did not end within EXPERIMENT_TIMEOUT_SECONDS={TIMEOUT_SECONDS}"
    page = assert_failed(cloud, described, f"server failed: {said}")
    assert "First to fail: server" in page
    assert f"lockstep-server {study_of(timing_out)}/one: {said}" in page
