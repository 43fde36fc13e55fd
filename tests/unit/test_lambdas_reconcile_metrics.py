"""ReconcileMetrics: rows that never arrived are read from the log streams, then every experiment is settled."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from ministack.services.cloudwatch_logs import _compile_filter_pattern

from contract.metrics import MetricRecord, TaskFailed, to_line
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.reconcile_metrics.handler import handler
from lambdas.table import ExperimentTable
from lambdas.verdict import TaskOutcome, Verdict
from tests.unit.conftest import EXECUTION, LOG_GROUP, TABLE
from tests.unit.fake_ecs import FakeEcs, FakeTask, ended
from tests.unit.report_fixtures import failed_outcome, records_of

DOCUMENT = {"matrix": {"mode": ["async"], "workers": [2, 1]}}
COMPLETED = Verdict(Status.COMPLETED)


class Streams:
    """The log group of the tasks: what they printed, one stream a task."""

    def __init__(self, session: boto3.Session) -> None:
        self._logs = session.client("logs")
        self._logs.create_log_group(logGroupName=LOG_GROUP)

    def print(self, stream: str, *lines: str) -> None:
        """Print lines, now."""
        self._logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line} for line in lines]
        self._logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)  # type: ignore[arg-type]  # a plain dict is one


class EmbeddedFilter:
    """The filter patterns of the embedded cloud, which like AWS asks for every term of several; moto does not."""

    def __init__(self, pattern: str) -> None:
        self.matches = _compile_filter_pattern(pattern)


@pytest.fixture
def streams(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setenv("PATIENCE_SECONDS", "0")
    monkeypatch.setattr("moto.logs.models.EventMessageFilter", EmbeddedFilter)
    return Streams(aws)


@pytest.fixture
def read_lines(aws: boto3.Session) -> Iterator[list[str]]:
    """Every line that the log streams have answered."""
    lines: list[str] = []

    def note(parsed: dict[str, Any], **_: Any) -> None:
        lines.extend(event["message"] for event in parsed["events"])

    aws.events.register("after-call.cloudwatch-logs.FilterLogEvents", note, unique_id="lines")
    yield lines
    aws.events.unregister("after-call.cloudwatch-logs.FilterLogEvents", unique_id="lines")


@pytest.fixture
def written(aws: boto3.Session) -> Iterator[list[int]]:
    """Rows of every BatchWriteItem call."""
    sizes: list[int] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        sizes.extend(len(rows) for rows in params["RequestItems"].values())

    aws.events.register("provide-client-params.dynamodb.BatchWriteItem", note, unique_id="written")
    yield sizes
    aws.events.unregister("provide-client-params.dynamodb.BatchWriteItem", unique_id="written")


@pytest.fixture
def experiments(table: ExperimentTable) -> list[Experiment]:
    planned = plan(parse_study(DOCUMENT), "study-1")
    table.put_plan("study-1", DOCUMENT, planned, EXECUTION)
    return planned


def judge_well(table: ExperimentTable, *experiments: Experiment) -> None:
    for experiment in experiments:
        tasks = [TaskOutcome(role="server", exit_code=0)]
        tasks += [TaskOutcome(role="worker", rank=rank, exit_code=0) for rank in range(experiment.workers)]
        table.settle(experiment, COMPLETED, tasks=tasks)


def call(context: LambdaContext, unjudged: list[dict[str, Any]] | None = None) -> dict[str, int]:
    result: dict[str, int] = handler({"study_id": "study-1", "unjudged": unjudged or []}, context)
    return result


def some(records: list[MetricRecord]) -> list[MetricRecord]:
    """What a subscription that skips has brought: neither the summaries nor every other record."""
    return [record for record in records[::2] if not record.kind.endswith("summary")]


def test_with_every_row_there_the_streams_are_not_read(
    table: ExperimentTable, experiments: list[Experiment], context: LambdaContext
) -> None:
    """There is no log group at all here: reading it would fail."""
    judge_well(table, *experiments)
    for experiment in experiments:
        table.put_records(records_of(experiment))
    assert call(context) == {"experiments": 2, "backfilled": 0}
    assert {row.status for row in table.experiments("study-1")} == {Status.COMPLETED}
    assert [list(row.warnings) for row in table.experiments("study-1")] == [[], []]


def test_missing_rows_come_from_the_streams(
    table: ExperimentTable, streams: Streams, experiments: list[Experiment], context: LambdaContext
) -> None:
    judge_well(table, *experiments)
    emitted = [record for experiment in experiments for record in records_of(experiment)]
    table.put_records(some(emitted))
    streams.print("lockstep/server/a", "loading data", *(to_line(record) for record in emitted))
    streams.print("lockstep/worker/b", "about METRICS_JSON lines", "METRICS_JSON {damaged")
    foreign = [record.model_copy(update={"study": "study-0"}) for record in emitted]
    streams.print("lockstep/worker/c", *(to_line(record) for record in foreign))
    assert call(context) == {"experiments": 2, "backfilled": len(emitted)}
    for experiment in experiments:
        assert len(table.records("study-1", experiment.name)) == len(records_of(experiment))
        assert table.records("study-0", experiment.name) == []
    rows = table.experiments("study-1")
    assert [(row.status, list(row.warnings)) for row in rows] == [(Status.COMPLETED, [])] * 2


def test_only_lines_of_the_study_are_read_and_only_what_may_be_missing_is_written(
    table: ExperimentTable,
    streams: Streams,
    experiments: list[Experiment],
    context: LambdaContext,
    *,
    read_lines: list[str],
    written: list[int],
) -> None:
    """One worker was killed: its last records may be in the streams alone. All others' are there already."""
    two, one = experiments
    judge_well(table, one)
    outcome = failed_outcome(two)
    tasks = [
        TaskOutcome(role="server", exit_code=1),
        TaskOutcome(role="worker", rank=0, exit_code=1),
        TaskOutcome(role="worker", rank=1, exit_code=137),
    ]
    table.settle(two, Verdict(Status.FAILED, "worker 1 was killed"), tasks=tasks)
    killed = [r for r in outcome.records if (r.role, r.rank) == ("worker", 1)]
    assert len(killed) >= 3
    table.put_records([*records_of(one), *(r for r in outcome.records if r not in killed[1:])])
    own = [to_line(record) for record in [*records_of(one), *outcome.records]]
    foreign = [to_line(r.model_copy(update={"study": "other-1"})) for r in records_of(one)]
    streams.print("lockstep/all", *own, *foreign, "study-1 is no metric line", "METRICS_JSON neither")
    written.clear()
    # When it is reconciled
    assert call(context) == {"experiments": 2, "backfilled": len(killed)}
    # Then no line of another study was answered, and no row of another task was written
    assert sorted(read_lines) == sorted(own)
    assert sum(written) == len(killed)
    assert table.records("study-1", two.name, emitter=("worker", 1)) == killed


def test_records_are_written_some_at_a_time(
    table: ExperimentTable,
    streams: Streams,
    experiments: list[Experiment],
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long a study's log streams are, so many lines of them are in memory."""
    judge_well(table, *experiments)
    emitted = [record for experiment in experiments for record in records_of(experiment)]
    streams.print("lockstep/all", *(to_line(record) for record in emitted))
    put = ExperimentTable.put_records
    batches: list[int] = []

    def counted(self: ExperimentTable, records: Iterator[MetricRecord]) -> int:
        batches.append(count := put(self, records))
        return count

    monkeypatch.setattr(ExperimentTable, "put_records", counted)
    monkeypatch.setattr("lambdas.reconcile_metrics.handler.LINES_AT_ONCE", 7)
    assert call(context) == {"experiments": 2, "backfilled": len(emitted)}
    assert len(batches) >= len(emitted) // 7
    assert max(batches) <= 7


def test_what_the_streams_do_not_hold_is_a_warning_or_a_failure(
    table: ExperimentTable, streams: Streams, experiments: list[Experiment], context: LambdaContext
) -> None:
    """One experiment misses a record in the middle, the other one the server's summary."""
    judge_well(table, *experiments)
    two, one = experiments
    holed = [
        record for record in records_of(two) if (record.role, record.rank, record.seq) != ("worker", 1, 2)
    ]
    beheaded = [record for record in records_of(one) if record.kind != "server_summary"]
    streams.print("lockstep/all", *(to_line(record) for record in holed + beheaded))
    call(context)
    first, second = table.experiments("study-1")
    assert first.status is Status.COMPLETED
    assert list(first.warnings) == ["async_2workers: 1 record(s) of worker 1 did not arrive"]
    assert (second.status, second.cause) == (
        Status.FAILED,
        "no result: the summary of server did not arrive",
    )


def test_rows_that_arrive_while_it_waits_spare_the_streams(
    table: ExperimentTable,
    experiments: list[Experiment],
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three waits, and the subscription has caught up. Again there is no log group to read."""
    judge_well(table, *experiments)
    late = [record for experiment in experiments for record in records_of(experiment)]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        table.put_records(late[: len(late) * len(pauses) // 3])

    monkeypatch.setattr("lambdas.reconcile_metrics.handler.time.sleep", sleep)
    assert call(context) == {"experiments": 2, "backfilled": 0}
    assert pauses == [0.25, 0.5, 1.0]


def judge_by_exit_codes(
    table: ExperimentTable, *, failed: Experiment, well: Experiment, last_exit_code: int
) -> list[TaskOutcome]:
    """One experiment has failed, as far as the ends of its tasks tell, and the other one went well; those ends."""
    judge_well(table, well)
    table.put_records(records_of(well))
    tasks = [
        TaskOutcome(role="server", exit_code=1, stopped_at="2026-03-01T12:00:01"),
        TaskOutcome(role="worker", rank=0, exit_code=1, stopped_at="2026-03-01T12:00:02"),
        TaskOutcome(role="worker", rank=1, exit_code=last_exit_code, stopped_at="2026-03-01T12:00:03"),
    ]
    table.settle(failed, Verdict(Status.FAILED, "server exited with code 1"), tasks=tasks)
    return tasks


def test_a_killed_workers_last_words_are_looked_for_and_the_cause_is_settled(
    table: ExperimentTable, streams: Streams, experiments: list[Experiment], context: LambdaContext
) -> None:
    """The verdict at once saw exit codes alone; the records say who lost whom."""
    two, one = experiments
    tasks = judge_by_exit_codes(table, failed=two, well=one, last_exit_code=1)
    streams.print("lockstep/all", *(to_line(record) for record in failed_outcome(two).records))
    call(context)
    row = table.experiment("study-1", two.name)
    assert row.status is Status.FAILED
    assert row.cause.startswith(
        "worker 1 exited with code 1; its log stream may say why. Then: server failed:"
    )
    assert list(row.tasks) == tasks
    assert table.experiment("study-1", one.name).status is Status.COMPLETED


@pytest.mark.usefixtures("streams")
def test_the_last_words_of_one_that_gave_up_are_waited_for(
    table: ExperimentTable,
    experiments: list[Experiment],
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are neither rows nor in the log yet: a task's end is told sooner than its last lines are."""
    monkeypatch.setenv("PATIENCE_SECONDS", "60")
    two, one = experiments
    judge_by_exit_codes(table, failed=two, well=one, last_exit_code=137)
    said = failed_outcome(two).records
    table.put_records(record for record in said if not isinstance(record, TaskFailed))
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        words = [record for record in said if isinstance(record, TaskFailed)]
        table.put_records(words[: len(pauses)])

    monkeypatch.setattr("lambdas.reconcile_metrics.handler.time.sleep", sleep)
    call(context)
    assert pauses == [0.25, 0.5]
    row = table.experiment("study-1", two.name)
    assert row.cause.startswith("worker 1 was killed (exit code 137: ")
    assert ". Then: server failed: worker 1 was lost" in row.cause
    assert "its log stream may say why" not in row.cause
    assert list(row.warnings) == []


@pytest.mark.usefixtures("streams")
def test_what_was_aborted_stays_so_and_what_was_never_started_failed(
    table: ExperimentTable, experiments: list[Experiment], context: LambdaContext
) -> None:
    table.abort(experiments[0], "the execution was stopped")
    call(context)
    aborted, planned = table.experiments("study-1")
    assert (aborted.status, aborted.cause) == (Status.ABORTED, "the execution was stopped")
    assert planned.status is Status.FAILED
    assert planned.cause == ("NotStarted: no task of it was started; the execution's history may say more")


@pytest.mark.usefixtures("streams")
def test_an_experiment_whose_row_could_not_be_marked_says_why(
    table: ExperimentTable, experiments: list[Experiment], context: LambdaContext
) -> None:
    """The state machine's error is all that is known of it: it has neither tasks nor records."""
    judge_well(table, experiments[1])
    error = {"Error": "DynamoDB.AccessDeniedException", "Cause": "not authorized to perform UpdateItem"}
    call(context, [{"name": experiments[0].name, "error": error}])
    row = table.experiment("study-1", experiments[0].name)
    cause = (
        "NotStarted: no task of it was started:"
        " DynamoDB.AccessDeniedException: not authorized to perform UpdateItem"
    )
    assert (row.status, row.cause) == (Status.FAILED, cause)
    # And a retried call, however little it is told, says the same
    call(context)
    assert table.experiment("study-1", experiments[0].name).cause == cause


@pytest.mark.usefixtures("streams")
def test_an_experiment_whose_end_could_not_be_judged_is_not_said_to_have_had_no_tasks(
    table: ExperimentTable, ecs: FakeEcs, experiments: list[Experiment], context: LambdaContext
) -> None:
    assert ecs.tasks == []
    judge_well(table, experiments[1])
    begin(table, experiments[0])
    call(context, [{"name": experiments[0].name, "error": {"Error": "Lambda.Unknown", "Cause": "timed out"}}])
    row = table.experiment("study-1", experiments[0].name)
    assert row.status is Status.FAILED
    assert row.cause == (
        "NotJudged: JudgeExperiment could not tell how its tasks ended: Lambda.Unknown: timed out"
    )
    call(context)
    assert table.experiment("study-1", experiments[0].name).cause == row.cause


def begin(table: ExperimentTable, experiment: Experiment) -> None:
    """As MarkRunning does."""
    boto3.resource("dynamodb").Table(TABLE).update_item(
        Key={"pk": f"STUDY#{experiment.study_id}", "sk": f"EXPERIMENT#{experiment.name}"},
        UpdateExpression="SET #status = :running",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={":running": "RUNNING"},
    )
    assert table.experiment(experiment.study_id, experiment.name).status is Status.RUNNING


@pytest.mark.usefixtures("streams")
def test_an_experiment_that_nobody_judged_is_ended_before_it_is_settled(
    table: ExperimentTable, ecs: FakeEcs, experiments: list[Experiment], context: LambdaContext
) -> None:
    """JudgeExperiment ran out of time; its tasks say what it would have said."""
    two, one = experiments
    judge_well(table, one)
    begin(table, two)
    group = two.task_group
    ecs.add(FakeTask(group, "server"), ended(group, "worker", 0), ended(group, "worker", 1, exit_code=137))
    call(context, [{"name": two.name, "error": {"Error": "Lambda.Unknown", "Cause": "timed out"}}])
    row = table.experiment("study-1", two.name)
    assert ecs.running() == []
    assert (row.status, row.cause.partition(" (")[0]) == (Status.FAILED, "worker 1 was killed")
    assert {task.label: task.exit_code for task in row.tasks} == {
        "server": 143,
        "worker 0": 0,
        "worker 1": 137,
    }


def test_an_experiment_that_lacks_nothing_but_a_verdict_gets_it(
    table: ExperimentTable, ecs: FakeEcs, experiments: list[Experiment], context: LambdaContext
) -> None:
    two, one = experiments
    judge_well(table, one)
    begin(table, two)
    group = two.task_group
    ecs.add(ended(group, "server"), ended(group, "worker", 0), ended(group, "worker", 1))
    for experiment in experiments:
        table.put_records(records_of(experiment))
    call(context, [{"name": two.name, "error": {"Error": "Lambda.Unknown", "Cause": "timed out"}}])
    row = table.experiment("study-1", two.name)
    assert (row.status, row.cause, row.error) == (Status.COMPLETED, "", None)


@pytest.mark.usefixtures("streams")
def test_an_experiment_that_cannot_be_ended_gets_no_verdict_and_says_why(
    table: ExperimentTable, ecs: FakeEcs, experiments: list[Experiment], context: LambdaContext
) -> None:
    """A terminal status would say that nothing runs; the sweep of the execution's end writes one."""
    two, one = experiments
    judge_well(table, one)
    table.put_records(records_of(one))
    begin(table, two)
    ecs.add(FakeTask(two.task_group, "server"))
    ecs.refusals[f"{two.task_group}/server/0"] = "AccessDeniedException"
    unjudged = [{"name": two.name, "error": {"Error": "Lambda.Unknown", "Cause": "timed out"}}]
    call(context, unjudged)
    row = table.experiment("study-1", two.name)
    assert row.status is Status.RUNNING
    assert row.cause.startswith("its tasks could not be ended: ExceptionGroup: 1 tasks could not be stopped")
    assert "AccessDeniedException" in row.cause
    assert row.cause.endswith("; before that, JudgeExperiment failed: Lambda.Unknown: timed out")
    assert table.experiment("study-1", one.name).status is Status.COMPLETED
    # And a retried call that can gives it
    ecs.refusals.clear()
    call(context, unjudged)
    row = table.experiment("study-1", two.name)
    assert (row.status, ecs.running()) == (Status.FAILED, [])
    assert row.cause.startswith("NotJudged: JudgeExperiment could not tell how its tasks ended")


@pytest.mark.usefixtures("streams")
def test_one_that_cannot_be_ended_costs_no_other_its_verdict(
    table: ExperimentTable, ecs: FakeEcs, experiments: list[Experiment], context: LambdaContext
) -> None:
    stuck, well = experiments
    for experiment in experiments:
        begin(table, experiment)
        table.put_records(records_of(experiment))
    ecs.add(FakeTask(stuck.task_group, "server"))
    ecs.add(
        *(ended(well.task_group, role, rank) for role, rank in [("server", 0), ("worker", 0), ("worker", 1)])
    )
    ecs.refusals[f"{stuck.task_group}/server/0"] = "AccessDeniedException"
    call(context)
    rows = {row.experiment.name: row for row in table.experiments("study-1")}
    assert rows[stuck.name].status is Status.RUNNING
    assert rows[stuck.name].cause.startswith("its tasks could not be ended")
    assert (rows[well.name].status, rows[well.name].cause) == (Status.COMPLETED, "")


@pytest.mark.usefixtures("streams")
def test_experiments_that_nobody_judged_are_ended_together(
    table: ExperimentTable,
    ecs: FakeEcs,
    experiments: list[Experiment],
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Map itself failed: of each of them a task may be starting. The looks at all are the looks at one."""
    late, pauses = FakeTask(experiments[1].task_group, "worker", 0), list[float]()
    for experiment in experiments:
        begin(table, experiment)
        ecs.add(FakeTask(experiment.task_group, "server"))

    def start(seconds: float) -> None:
        pauses.append(seconds)
        if late not in ecs.tasks:
            ecs.add(late)

    monkeypatch.setenv("QUIET_SECONDS", "10")
    monkeypatch.setattr("lambdas.tasks.time.sleep", start)
    call(context)
    rows = table.experiments("study-1")
    assert (ecs.running(), pauses) == ([], [10, 10])
    assert [(row.status, len(row.tasks)) for row in rows] == [(Status.FAILED, 1), (Status.FAILED, 2)]


def test_lines_that_were_on_their_way_when_it_was_judged_are_added(
    table: ExperimentTable, streams: Streams, experiments: list[Experiment], context: LambdaContext
) -> None:
    two, one = experiments
    judge_well(table, one)
    tasks = [TaskOutcome(role="worker", rank=1, task_arn="arn/late", exit_code=1)]
    table.settle(two, Verdict(Status.FAILED, "worker 1 exited with code 1"), tasks=tasks)
    streams.print("lockstep/worker/late", "no data in /data")
    call(context)
    (task,) = table.experiment("study-1", two.name).tasks
    assert task.last_lines == ("no data in /data",)


def test_a_worker_that_ecs_has_forgotten_counts_by_its_summary(
    table: ExperimentTable, experiments: list[Experiment], context: LambdaContext
) -> None:
    """Its records were on the way when the experiment was judged, an hour and more after it had ended."""
    two, one = experiments
    judge_well(table, one)
    known = [TaskOutcome(role=role, exit_code=0) for role in ("server", "worker")]
    table.settle(two, Verdict(Status.FAILED, "2 of 3 tasks were started (server, worker 0)"), tasks=known)
    for experiment in experiments:
        table.put_records(records_of(experiment))
    assert call(context) == {"experiments": 2, "backfilled": 0}
    row = table.experiment("study-1", two.name)
    assert (row.status, row.cause, list(row.warnings)) == (Status.COMPLETED, "", [])


def test_a_study_that_was_never_planned_has_nothing_to_reconcile(
    table: ExperimentTable, context: LambdaContext
) -> None:
    assert call(context) == {"experiments": 0, "backfilled": 0}
    assert table.study("study-1") is None


def test_records_of_an_earlier_run_are_not_read_into_this_one(
    table: ExperimentTable,
    streams: Streams,
    experiments: list[Experiment],
    context: LambdaContext,
    aws: boto3.Session,
) -> None:
    """Both runs of a redriven experiment are in the streams, and number their records alike."""
    judge_well(table, *experiments)
    for experiment in experiments:
        emitted = records_of(experiment)
        began = min(record.timestamp for record in emitted)
        aws.resource("dynamodb").Table(TABLE).update_item(
            Key={"pk": "STUDY#study-1", "sk": f"EXPERIMENT#{experiment.name}"},
            UpdateExpression="SET started_at = :at",
            ExpressionAttributeValues={":at": began.isoformat()},
        )
        before = [r.model_copy(update={"timestamp": r.timestamp - timedelta(hours=1)}) for r in emitted]
        table.put_records(some(emitted))
        streams.print(f"lockstep/server/{experiment.name}", *(to_line(r) for r in [*emitted, *before]))
    call(context)
    for experiment in experiments:
        stored = table.records("study-1", experiment.name)
        assert sorted(r.timestamp for r in stored) == sorted(r.timestamp for r in records_of(experiment))
