"""Whichever function runs out of time in the middle of its work, the study ends, says so, and leaves nothing."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from contract.table import Status
from local.cloud import Cloud
from tests.e2e.lifetimes import (
    ENDLESS,
    SHORT,
    assert_aborted,
    assert_cleaned_up,
    assert_failed,
    rows_of,
    status_of,
    stop,
    swept,
    trains,
)
from tests.e2e.machine import (
    assert_nothing_left,
    cause_of,
    client,
    ended_tasks,
    errors_of,
    published,
    running_tasks,
    study_of,
    table_of,
    until,
)
from tests.e2e.provocations import TIMED_OUT, Gate, function_name, out_of_time


@pytest.fixture
def without_time(
    cloud: Cloud,
    study: str,
    gates: dict[str, Gate],
) -> Callable[[str], AbstractContextManager[None]]:
    """Takes a function the time for the test's own study; no other one is there meanwhile."""
    return lambda function: out_of_time(cloud, function, gates[function], study)


@pytest.fixture
def ended_without(
    start: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    without_time: Callable[[str], AbstractContextManager[None]],
) -> Callable[[str], dict[str, Any]]:
    """Runs a short study while a function has no time; the description of its end."""

    def run(function: str) -> dict[str, Any]:
        with without_time(function):
            return ended(start(SHORT))

    return run


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


def test_planning_out_of_time(cloud: Cloud, ended_without: Callable[[str], dict[str, Any]]) -> None:
    """Nothing was started, and nothing written."""
    described = ended_without("plan_study")
    arn = described["executionArn"]
    assert (described["status"], errors_of(cloud, arn)) == ("FAILED", [TIMED_OUT])
    assert cause_of(described).startswith(f"the study could not be planned: {TIMED_OUT}: ")
    assert (status_of(cloud, arn), rows_of(cloud, arn)) == (None, [])
    assert (running_tasks(cloud, arn), ended_tasks(cloud, arn)) == ([], 0)


def test_reconciling_out_of_time(cloud: Cloud, ended_without: Callable[[str], dict[str, Any]]) -> None:
    """The verdicts stand; that records may be missing is a warning of the report."""
    described = ended_without("reconcile_metrics")
    arn = described["executionArn"]
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


def test_publishing_out_of_time(cloud: Cloud, ended_without: Callable[[str], dict[str, Any]]) -> None:
    """A study without a report has failed, whatever its experiments did."""
    described = ended_without("publish_report")
    arn = described["executionArn"]
    assert (described["status"], described["error"]) == ("FAILED", "StudyFailed")
    assert errors_of(cloud, arn).count(TIMED_OUT) == 2
    assert cause_of(described).startswith(f"the report could not be published: {TIMED_OUT}: ")
    assert [(row.status, row.cause) for row in rows_of(cloud, arn)] == [(Status.COMPLETED, "")]
    assert status_of(cloud, arn) is Status.FAILED
    assert_nothing_left(cloud, arn)


def test_concluding_out_of_time(cloud: Cloud, ended_without: Callable[[str], dict[str, Any]]) -> None:
    """Nobody has written how the study ended: clean-up does, and why."""
    described = ended_without("conclude_study")
    arn = described["executionArn"]
    assert (described["status"], described["error"]) == ("FAILED", TIMED_OUT)
    assert errors_of(cloud, arn).count(TIMED_OUT) == 2
    assert_cleaned_up(cloud, arn)
    row, told = (
        table_of(cloud).study(study_of(arn)),
        f"the execution of the study has ended: FAILED ({TIMED_OUT}: ",
    )
    assert row is not None
    assert (row.status, row.cause.startswith(told)) == (Status.ABORTED, True), row.cause
    assert [(each.status, each.cause) for each in rows_of(cloud, arn)] == [(Status.COMPLETED, "")]
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
    assert_cleaned_up(cloud, arn)
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
