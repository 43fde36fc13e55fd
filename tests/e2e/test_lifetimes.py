"""Every way a study can end: it is named, in the table and in the report, and neither task nor process is left.

One cloud for all; studies are small, and each of them is held where it is to end. Killed servers and workers, and
tasks that give up, are in test_failures.py, functions without time in test_out_of_time.py, stacks in test_stacks.py.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.table import TERMINAL, Status
from local.cloud import Cloud
from tests.e2e.lifetimes import (
    ENDLESS,
    ONE,
    SHORT,
    STATES,
    assert_aborted,
    assert_failed,
    rows_of,
    status_of,
    stop,
    swept,
    trains,
)
from tests.e2e.machine import (
    LONG,
    PATIENCE_SECONDS,
    QUICK,
    assert_nothing_left,
    await_death,
    cause_of,
    client,
    ended_tasks,
    published,
    running_tasks,
    study_of,
    trained,
    until,
)
from tests.e2e.provocations import (
    Gate,
    container_redefined,
    frozen,
    idle_servers,
    task_token,
)

TIMEOUT_SECONDS = 30
"""The shortest that a study may ask for."""


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
    until(lambda: trained(cloud, beside, "one"), "the other one trains")
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


def test_timed_out(cloud: Cloud, timing_out: str, ended: Callable[..., dict[str, Any]]) -> None:
    """It has trained beside the other tests of this file."""
    described = ended(timing_out)
    said = f"training did not end within EXPERIMENT_TIMEOUT_SECONDS={TIMEOUT_SECONDS}"
    page = assert_failed(cloud, described, f"server failed: {said}")
    assert "First to fail: server" in page
    assert f"lockstep-server {study_of(timing_out)}/one: {said}" in page
