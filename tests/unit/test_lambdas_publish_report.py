"""PublishReport: whatever happened, the results tree is in the bucket, and how the study ended is told."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.forecast import Terms, forecast
from contract.history import fingerprint
from contract.plan import Experiment, plan
from contract.results import REPORT, STUDY_JSON, SUMMARY_CSV, SUMMARY_TEXT, experiment_file, study_prefix
from contract.study import parse_study
from contract.table import Status
from lambdas.history import History
from lambdas.publish_report.handler import handler
from lambdas.table import ExperimentTable
from lambdas.verdict import TaskOutcome, Verdict
from tests.unit.conftest import BUCKET, EXECUTION, TABLE
from tests.unit.report_fixtures import failed_outcome, records_of

PREFIX = study_prefix("study-1")


@pytest.fixture
def bucket(aws: boto3.Session) -> Any:
    made = aws.resource("s3").Bucket(BUCKET)
    made.create()
    return made


@pytest.fixture
def puts(aws: boto3.Session) -> Iterator[list[str]]:
    """Keys in the order in which they are put."""
    keys: list[str] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        keys.append(params["Key"])

    aws.events.register("provide-client-params.s3.PutObject", note, unique_id="puts")
    yield keys
    aws.events.unregister("provide-client-params.s3.PutObject", unique_id="puts")


def run(table: ExperimentTable, *, failing: str = "", tolerated: int = 0) -> list[Experiment]:
    """Rows of a study of two experiments that ended, one of them badly where it is named."""
    document = {"matrix": {"workers": [2]}, "training": {"epochs": 3}, "tolerated_failures": tolerated}
    experiments = plan(parse_study(document), "study-1")
    table.put_plan("study-1", document, experiments, EXECUTION)
    for experiment in experiments:
        if experiment.name == failing:
            outcome = failed_outcome(experiment)
            table.put_records(outcome.records)
            table.settle(experiment, Verdict(Status.FAILED, outcome.cause), tasks=outcome.tasks)
        else:
            table.put_records(records_of(experiment))
            table.settle(experiment, Verdict(Status.COMPLETED))
    return experiments


def plan_only(table: ExperimentTable) -> list[Experiment]:
    """Rows of a study of which nothing ran: no plots to draw."""
    experiments = plan(parse_study({}), "study-1")
    table.put_plan("study-1", {}, experiments, EXECUTION)
    return experiments


def call(context: LambdaContext) -> dict[str, Any]:
    result: dict[str, Any] = handler({"study_id": "study-1"}, context)
    return result


def status(table: ExperimentTable) -> Status:
    study = table.study("study-1")
    assert study is not None
    return study.status


def test_a_completed_study_is_published_with_its_report_last(
    table: ExperimentTable, bucket: Any, puts: list[str], context: LambdaContext
) -> None:
    experiments = run(table)
    assert call(context) == {
        "status": "COMPLETED",
        "report": f"s3://{BUCKET}/{PREFIX}{REPORT}",
        "failed": [],
        "cause": "",
    }
    expected = {
        REPORT,
        SUMMARY_CSV,
        SUMMARY_TEXT,
        STUDY_JSON,
        *(experiment_file(e.name) for e in experiments),
    }
    assert {f"{PREFIX}{path}" for path in expected} <= set(puts)
    assert {thing.key for thing in bucket.objects.all()} == set(puts)
    assert puts[-1] == f"{PREFIX}{REPORT}"
    assert len(puts) == len(set(puts))
    assert bucket.Object(puts[-1]).content_type == "text/html; charset=utf-8"
    assert bucket.Object(f"{PREFIX}{STUDY_JSON}").content_type == "application/json"
    assert status(table) is Status.RUNNING  # which ConcludeStudy changes, when all is done


def test_that_records_were_not_reconciled_is_a_warning(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    plan_only(table)
    cause = '{"errorMessage": "Task timed out after 600.00 seconds", "errorType": "Sandbox.Timedout"}'
    for error, warnings in (
        (
            {"Error": "Sandbox.Timedout", "Cause": cause},
            [
                "records may be missing: ReconcileMetrics failed: Sandbox.Timedout:"
                " Task timed out after 600.00 seconds"
            ],
        ),
        (
            {"Error": "ValueError", "Cause": json.dumps({"errorMessage": "why", "stackTrace": ["x" * 2000]})},
            ["records may be missing: ReconcileMetrics failed: ValueError: why"],
        ),
        (None, []),
    ):
        handler({"study_id": "study-1", "unreconciled": error}, context)
        document = json.loads(bucket.Object(f"{PREFIX}{STUDY_JSON}").get()["Body"].read())
        assert document["warnings"] == warnings


def test_an_experiment_without_a_verdict_is_beyond_what_a_study_tolerates(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    """Its tasks may run: that is no failure that anybody asked to tolerate."""
    document = {"matrix": {"workers": [2]}, "tolerated_failures": 1}
    experiments = plan(parse_study(document), "study-1")
    table.put_plan("study-1", document, experiments, EXECUTION)
    table.settle(experiments[0], Verdict(Status.COMPLETED))
    table.explain(experiments[1], "its tasks could not be ended: WaiterError")
    published = call(context)
    assert published["status"] == "FAILED"
    assert "its tasks could not be ended: WaiterError" in published["cause"]
    page = bucket.Object(f"{PREFIX}{REPORT}").get()["Body"].read().decode()
    assert "its tasks could not be ended: WaiterError" in page


def test_a_study_with_a_failed_experiment_is_published_and_failed(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    run(table, failing="sync_2workers")
    published = call(context)
    assert (published["status"], published["failed"]) == ("FAILED", ["sync_2workers"])
    assert published["cause"].startswith(
        "1 of 2 experiments failed. sync_2workers: worker 1 was killed (exit code 137"
    )
    page = bucket.Object(f"{PREFIX}{REPORT}").get()["Body"].read().decode()
    assert "worker 1 was killed" in page
    assert "Last log lines of worker 1" in page


def test_an_aborted_study_is_reported_as_such(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    for experiment in plan_only(table):
        table.abort(experiment, "stopped by hand")
    table.end_study("study-1", Status.ABORTED, "stopped by hand")
    ended = table.study("study-1")
    assert call(context)["status"] == "ABORTED"
    assert table.study("study-1") == ended
    document = json.loads(bucket.Object(f"{PREFIX}{STUDY_JSON}").get()["Body"].read())
    assert (document["status"], document["cause"]) == ("ABORTED", "stopped by hand")
    assert ended is not None
    assert datetime.fromisoformat(document["ended_at"]) == datetime.fromisoformat(ended.ended_at)


def test_a_report_that_was_overtaken_by_an_abort_is_written_again(
    table: ExperimentTable, bucket: Any, aws: boto3.Session, context: LambdaContext
) -> None:
    """The execution was stopped while its last states were at work."""
    plan_only(table)
    reports: list[str] = []

    def abort(params: dict[str, Any], **_: Any) -> None:
        if params["Key"] == f"{PREFIX}{REPORT}":
            reports.append(params["Body"].decode())
            table.end_study("study-1", Status.ABORTED, "stopped by hand")

    aws.events.register("provide-client-params.s3.PutObject", abort, unique_id="abort")
    assert call(context)["status"] == "ABORTED"
    aws.events.unregister("provide-client-params.s3.PutObject", unique_id="abort")
    assert ["stopped by hand" in report for report in reports] == [False, True]
    page = bucket.Object(f"{PREFIX}{REPORT}").get()["Body"].read().decode()
    assert "stopped by hand" in page


def test_a_failure_that_is_tolerated_is_named_all_the_same(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    run(table, failing="async_2workers", tolerated=1)
    published = call(context)
    assert (published["status"], published["failed"]) == ("COMPLETED", ["async_2workers"])
    assert "async_2workers: worker 1 was killed" in published["cause"]
    assert list(bucket.objects.filter(Prefix=f"{PREFIX}{REPORT}"))


def test_what_several_experiments_failed_of_is_said_once(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    for experiment in plan_only(table):
        table.settle(experiment, Verdict(Status.FAILED, "there is no data set"))
    assert call(context)["cause"] == (
        "2 of 2 experiments failed. sync_4workers, async_4workers: there is no data set"
    )
    assert list(bucket.objects.filter(Prefix=f"{PREFIX}{REPORT}"))


def test_a_study_of_which_nothing_ran_is_published_too(
    table: ExperimentTable, bucket: Any, context: LambdaContext
) -> None:
    experiments = plan_only(table)
    table.abort(experiments[0], "the execution was stopped")
    published = call(context)
    assert published["cause"] == (
        "2 of 2 experiments failed. sync_4workers: the execution was stopped | async_4workers: PLANNED"
    )
    assert published["status"] == "FAILED"
    assert list(bucket.objects.filter(Prefix=f"{PREFIX}{REPORT}"))


@pytest.mark.usefixtures("bucket")
def test_a_long_cause_fits_a_states_output(table: ExperimentTable, context: LambdaContext) -> None:
    for experiment in plan_only(table):
        table.settle(experiment, Verdict(Status.FAILED, "x" * 40_000))
    assert len(call(context)["cause"]) <= 30_100


@pytest.mark.usefixtures("bucket")
def test_publishing_twice_says_the_same(table: ExperimentTable, context: LambdaContext) -> None:
    plan_only(table)
    assert call(context) == call(context)


@pytest.mark.usefixtures("bucket")
def test_what_completed_experiments_with_real_compute_took_is_kept_for_the_next(
    table: ExperimentTable, context: LambdaContext
) -> None:
    document = {"matrix": {"workers": [2]}, "training": {"epochs": 3}, "tolerated_failures": 1}
    study = parse_study(document)
    completed, failed = experiments = plan(study, "study-1")
    table.put_plan("study-1", document, experiments, EXECUTION, forecast(study, experiments, Terms.on_aws()))
    times = {"started_at": "2026-03-01T12:00:00+00:00", "stopped_at": "2026-03-01T12:01:40+00:00"}
    tasks = [
        TaskOutcome(role=role, rank=rank, exit_code=0, **times)
        for role, rank in (("server", 0), ("worker", 0), ("worker", 1))
    ]
    table.put_records(records_of(completed))
    table.settle(completed, Verdict(Status.COMPLETED), tasks=tasks)
    table.settle(failed, Verdict(Status.FAILED, "worker 1 was killed"), tasks=tasks)

    assert call(context)["status"] == "COMPLETED"
    kept = History.named(TABLE).measured(fingerprint(completed, "x86_64"))
    assert kept is not None
    assert (kept.study_id, kept.experiment, kept.server_seconds) == ("study-1", completed.name, 100)
    assert History.named(TABLE).measured(fingerprint(failed, "x86_64")) is None


@pytest.mark.usefixtures("table")
def test_a_study_that_is_not_there_is_an_error(context: LambdaContext) -> None:
    with pytest.raises(KeyError, match="no study study-1 in the table"):
        call(context)


def test_without_a_bucket_there_is_an_error(table: ExperimentTable, context: LambdaContext) -> None:
    plan_only(table)
    with pytest.raises(Exception, match="NoSuchBucket"):
        call(context)
