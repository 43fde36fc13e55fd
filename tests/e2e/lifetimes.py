"""Studies that end in some way, and what is to be so afterwards: in the table, in the report, and on the machine."""

import json
from typing import Any, Final

from contract.table import TERMINAL, Status
from lambdas.rows import ExperimentRow
from local.cloud import Cloud
from tests.e2e.machine import (
    LONG,
    QUICK,
    RunningTask,
    assert_nothing_left,
    cause_of,
    client,
    published,
    running_tasks,
    study_of,
    table_of,
    until,
)
from tests.e2e.provocations import function_name

ONE: dict[str, Any] = {"experiments": [{"name": "one", "mode": "sync", "workers": 1}]}
SHORT = {**ONE, "training": {**QUICK, "epochs": 1}}
ENDLESS = {**ONE, "training": {**QUICK, "epochs": 100}, "compute": LONG}
STATES = ("plan_study", "judge_experiment", "reconcile_metrics", "publish_report", "conclude_study")
"""Functions that the state machine calls."""
CLEAN_UP_SECONDS: Final = 60
"""Within which a study is cleaned up, and the table says so, however it ended: a promise, no bound for what hangs."""


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


def assert_cleaned_up(cloud: Cloud, arn: str) -> None:
    """Soon the table says that the study has ended, and by then nothing of it is left."""
    until(lambda: status_of(cloud, arn) in TERMINAL, f"the end of {arn} in the table", CLEAN_UP_SECONDS)
    assert_nothing_left(cloud, arn)


def assert_aborted(cloud: Cloud, arn: str, why: str, experiment: Status = Status.ABORTED) -> None:
    """The table says so and why, the report does, and nothing is left."""
    table, study = table_of(cloud), study_of(arn)
    assert_cleaned_up(cloud, arn)
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
