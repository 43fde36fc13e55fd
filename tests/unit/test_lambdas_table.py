"""The table adapter: every write may be repeated, and no late word overwrites a final one."""

import random
from datetime import datetime

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings

from contract.errors import StudyRefused
from contract.metrics import MetricRecord, ServerInterval, ServerSummary
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import EXPIRY, TERMINAL, Status
from lambdas.rows import Execution
from lambdas.table import ExperimentTable
from lambdas.verdict import TaskOutcome, Verdict
from tests.unit.conftest import TABLE
from tests.unit.metric_records import records
from tests.unit.report_fixtures import records_of, task_failed

STUDY = "study-1"
DOCUMENT = {"matrix": {"workers": [2, 1]}, "training": {"learning_rate": 0.1}}
FIRST = Execution("arn:aws:states:…:study-1", "2026-03-01T12:00:00Z")
KILLED = Verdict(Status.FAILED, "worker 1 was killed")


@pytest.fixture
def experiments(table: ExperimentTable) -> list[Experiment]:
    """A study of four experiments, planned."""
    planned = plan(parse_study(DOCUMENT), STUDY)
    table.put_plan(STUDY, DOCUMENT, planned, FIRST)
    return planned


def rows() -> list[dict[str, object]]:
    """Everything in the table but the time to live, which says when a row was written."""
    items = boto3.resource("dynamodb").Table(TABLE).scan()["Items"]
    return [{name: value for name, value in item.items() if name != EXPIRY} for item in items]


def test_a_plan_is_read_back_in_its_order(table: ExperimentTable, experiments: list[Experiment]) -> None:
    study = table.study(STUDY)
    assert study is not None
    assert (study.document, study.status, study.ended_at) == (DOCUMENT, Status.RUNNING, "")
    planned = table.experiments(STUDY)
    assert [row.experiment for row in planned] == experiments
    assert [e.name for e in experiments] == [
        "sync_2workers",
        "async_2workers",
        "sync_1worker",
        "async_1worker",
    ]
    assert {row.status for row in planned} == {Status.PLANNED}
    assert table.experiment(STUDY, "sync_1worker").experiment == experiments[2]


def test_what_is_not_there_is_told(table: ExperimentTable) -> None:
    assert table.study("other") is None
    assert table.experiments("other") == []
    assert table.records("other", "sync_1worker") == []
    with pytest.raises(KeyError, match="study other has no experiment sync_1worker"):
        table.experiment("other", "sync_1worker")


def test_a_plan_that_is_written_twice_stays_as_it_was(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    table.settle(experiments[0], KILLED)
    table.end_study(STUDY, Status.FAILED)
    before = rows()
    table.put_plan(STUDY, {"other": 1}, reversed(experiments), FIRST)
    assert rows() == before


def test_a_plan_that_was_half_written_is_completed(table: ExperimentTable) -> None:
    planned = plan(parse_study(DOCUMENT), STUDY)
    table.put_plan(STUDY, DOCUMENT, planned[:1], FIRST)
    table.put_plan(STUDY, DOCUMENT, planned, FIRST)
    assert [row.experiment for row in table.experiments(STUDY)] == planned


@pytest.mark.usefixtures("experiments")
@pytest.mark.parametrize(
    "other",
    [FIRST._replace(started_at="2026-06-01T12:00:00Z"), FIRST._replace(arn="arn:aws:states:…:other:study-1")],
)
def test_a_plan_of_another_execution_is_refused(table: ExperimentTable, other: Execution) -> None:
    before = rows()
    with pytest.raises(StudyRefused, match=r"study-1: taken by an execution that started at 2026-03-01"):
        table.put_plan(STUDY, {}, plan(parse_study({}), STUDY), other)
    assert rows() == before


def test_a_study_of_nobody_knows_which_execution_is_not_taken_over(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    """Rows of a version that did not write down whose they are."""
    boto3.resource("dynamodb").Table(TABLE).update_item(
        Key={"pk": f"STUDY#{STUDY}", "sk": "STUDY"},
        UpdateExpression="REMOVE execution_arn, execution_started_at",
    )
    with pytest.raises(StudyRefused, match="taken by an execution that started at"):
        table.put_plan(STUDY, DOCUMENT, experiments, FIRST)


def test_a_verdict_is_read_back_with_what_it_rests_on(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    tasks = [TaskOutcome(role="server", exit_code=0), TaskOutcome(role="worker", rank=1, exit_code=137)]
    error = {"Error": "States.TaskFailed", "Cause": "…"}
    table.settle(experiments[0], KILLED, tasks=tasks, error=error, warnings=["one record is missing"])
    row = table.experiment(STUDY, experiments[0].name)
    assert (row.status, row.cause, row.error) == (Status.FAILED, "worker 1 was killed", error)
    assert list(row.tasks) == tasks
    assert list(row.warnings) == ["one record is missing"]
    assert row.ended_at


def test_a_verdict_may_be_reconsidered_but_the_end_was_when_it_was(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    table.settle(experiments[0], Verdict(Status.COMPLETED))
    first = table.experiment(STUDY, experiments[0].name)
    table.settle(experiments[0], Verdict(Status.FAILED, "no result"), warnings=["late"])
    second = table.experiment(STUDY, experiments[0].name)
    assert (second.status, second.cause) == (Status.FAILED, "no result")
    assert second.ended_at == first.ended_at != ""


def test_a_verdict_does_not_overwrite_an_abort(table: ExperimentTable, experiments: list[Experiment]) -> None:
    table.abort(experiments[0], "the execution was stopped")
    before = rows()
    table.settle(experiments[0], Verdict(Status.COMPLETED))
    assert rows() == before
    assert table.experiment(STUDY, experiments[0].name).status is Status.ABORTED


def test_what_is_being_stopped_gets_no_verdict_and_then_says_how_its_tasks_ended(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    experiment = experiments[0]
    table.begin_stop(experiment)
    before = rows()
    table.settle(experiment, KILLED)
    table.begin_stop(experiment)
    assert rows() == before
    assert table.experiment(STUDY, experiment.name).status is Status.STOPPING
    tasks = [TaskOutcome(role="server", exit_code=143, last_lines=("\N{SKULL}", "stopped"))]
    table.abort(experiment, "the execution was stopped", tasks)
    row = table.experiment(STUDY, experiment.name)
    assert (row.status, row.cause, list(row.tasks)) == (Status.ABORTED, "the execution was stopped", tasks)
    assert row.ended_at


@pytest.mark.parametrize("verdict", [Verdict(Status.COMPLETED), KILLED])
def test_nothing_with_a_verdict_is_marked_as_stopping(
    table: ExperimentTable, experiments: list[Experiment], verdict: Verdict
) -> None:
    table.settle(experiments[0], verdict)
    before = rows()
    table.begin_stop(experiments[0])
    assert rows() == before


def test_a_study_is_open_from_its_plan_until_it_is_closed(table: ExperimentTable) -> None:
    assert table.open_studies() == []
    for name in ("one", "two"):
        table.put_plan(name, {}, plan(parse_study({}), name), FIRST)
    table.put_plan("one", {}, plan(parse_study({}), "one"), FIRST)
    table.end_study("one", Status.ABORTED, "stopped")
    assert sorted(table.open_studies()) == ["one", "two"]
    table.close("one")
    table.close("one")
    assert table.open_studies() == ["two"]
    study = table.study("one")
    assert study is not None
    assert (study.status, study.cause) == (Status.ABORTED, "stopped")


@pytest.mark.parametrize("verdict", [Verdict(Status.COMPLETED), KILLED])
def test_an_abort_does_not_overwrite_a_verdict(
    table: ExperimentTable, experiments: list[Experiment], verdict: Verdict
) -> None:
    table.settle(experiments[0], verdict)
    before = rows()
    table.abort(experiments[0], "the execution was stopped")
    assert rows() == before


@pytest.mark.usefixtures("experiments")
@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_study_ends_once(table: ExperimentTable, status: Status) -> None:
    assert table.end_study(STUDY, status)
    before = rows()
    for other in TERMINAL:
        assert not table.end_study(STUDY, other, "again")
    assert rows() == before
    study = table.study(STUDY)
    assert study is not None
    assert study.status is status
    assert study.ended_at
    assert {row.status for row in table.experiments(STUDY)} == {Status.PLANNED}


def test_no_word_on_what_was_never_planned_makes_a_row(table: ExperimentTable) -> None:
    (experiment, _) = plan(parse_study({}), STUDY)
    table.settle(experiment, KILLED)
    table.begin_stop(experiment)
    table.abort(experiment, "stopped")
    table.end_study(STUDY, Status.FAILED)
    assert rows() == []


def test_records_are_the_same_rows_however_they_arrive(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    """Delivery is at least once and in any order: twice, duplicated within a batch, shuffled, in parts."""
    experiment = experiments[0]
    said = records_of(experiment)
    first = [r for r in said if (r.role, r.rank) == ("worker", 1)]
    said += [r.model_copy(update={"attempt": 2}) for r in first]
    order = {(r.role, r.rank, r.attempt, r.seq): r for r in said}
    assert len(order) == len(said) > 15
    assert table.put_records(said) == len(said)
    once = rows()
    shuffled = random.Random(0).sample(said, len(said))
    assert table.put_records(shuffled + said + shuffled[:5]) == len(said)
    table.put_records(shuffled[:7])
    assert sorted(rows(), key=str) == sorted(once, key=str)
    assert table.records(STUDY, experiment.name) == [order[key] for key in sorted(order)]


def test_records_of_one_emitter_are_found_alone(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    experiment = experiments[0]
    said = records_of(experiment)
    table.put_records(said + records_of(experiments[1]))
    mine = [record for record in said if (record.role, record.rank) == ("worker", 1)]
    assert table.records(STUDY, experiment.name, emitter=("worker", 1)) == mine
    assert table.records(STUDY, experiment.name, emitter=("worker", 2)) == []


def test_more_rows_than_one_answer_holds_are_all_read(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    """DynamoDB answers a query with at most 1 MB."""
    experiment = experiments[0]
    template = task_failed(experiment, "worker", 0, 0, "server")
    many = [template.model_copy(update={"seq": seq, "reason": "x" * 4000}) for seq in range(300)]
    table.put_records(many)
    raw = boto3.client("dynamodb").query(
        TableName=TABLE,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": f"EXPERIMENT#{STUDY}/{experiment.name}"}},
    )
    assert "LastEvaluatedKey" in raw
    assert table.records(STUDY, experiment.name) == many


def test_every_row_expires_after_a_year(table: ExperimentTable, experiments: list[Experiment]) -> None:
    table.put_records(records_of(experiments[0])[:1])
    stored = boto3.resource("dynamodb").Table(TABLE).scan()["Items"]
    assert len(stored) == 2 + len(experiments) + 1
    (record,) = table.records(STUDY, experiments[0].name)
    year = 365 * 24 * 3600
    study = table.study(STUDY)
    assert study is not None
    for row in stored:
        age = int(str(row[EXPIRY])) - year - datetime.fromisoformat(study.created_at).timestamp()
        assert -1 <= age < 3600
    assert record == records_of(experiments[0])[0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records())
def test_any_record_can_be_stored_and_read_back(table: ExperimentTable, record: MetricRecord) -> None:
    """Whatever a line may say: no number is too large, too small or too exact for the table."""
    table.put_records([record])
    stored = table.records(record.study, record.experiment, emitter=(record.role, record.rank))
    (found,) = (one for one in stored if (one.attempt, one.seq) == (record.attempt, record.seq))
    assert found == approximately(record)


def test_histograms_are_read_back_with_numbers_for_keys(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    """A map's keys are strings in the table and in JSON."""
    (summary,) = (r for r in records_of(experiments[0]) if isinstance(r, ServerSummary))
    bins = {0.001 * 2**n: n for n in range(20)}
    said = summary.model_copy(update={"barrier_wait_histogram": bins, "lost_workers": [1, 0, 1]})
    table.put_records([said])
    (stored,) = table.records(STUDY, experiments[0].name)
    assert stored == said
    assert isinstance(stored, ServerSummary)
    assert stored.barrier_wait_histogram == bins
    assert {type(key) for key in stored.barrier_wait_histogram} == {float}
    assert {type(key) for key in stored.staleness_histogram} == {int}


def test_the_newest_records_of_an_emitter_are_those_of_its_last_attempt(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    experiment = experiments[0]
    mine = [record for record in records_of(experiment) if (record.role, record.rank) == ("worker", 0)]
    later = [record.model_copy(update={"attempt": 1}) for record in mine[:2]]
    table.put_records([*later, *mine])
    newest = table.newest(STUDY, experiment.name, emitter=("worker", 0), limit=3)
    assert newest == [*reversed(later), mine[-1]]


def approximately(record: MetricRecord) -> MetricRecord:
    """The record with the floats that the table does not tell from zero."""
    tiny = {name: 0.0 for name, value in record if isinstance(value, float) and 0 < abs(value) < 1e-100}
    return record.model_copy(update=tiny)


def test_a_number_next_to_zero_is_stored_as_zero(
    table: ExperimentTable, experiments: list[Experiment]
) -> None:
    (interval, *_) = (r for r in records_of(experiments[0]) if isinstance(r, ServerInterval))
    table.put_records([interval.model_copy(update={"interval_seconds": 5e-324, "mean_staleness": 1e-99})])
    (stored,) = table.records(STUDY, experiments[0].name)
    assert isinstance(stored, ServerInterval)
    assert (stored.interval_seconds, stored.mean_staleness) == (0, 1e-99)


def test_an_error_of_the_table_is_not_taken_for_a_row_that_is_there(aws: boto3.Session) -> None:
    absent = ExperimentTable.named("absent", aws)
    (experiment, _) = plan(parse_study({}), STUDY)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        absent.put_plan(STUDY, {}, [experiment], FIRST)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        absent.settle(experiment, KILLED)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        absent.abort(experiment, "")
