"""What failed tasks wrote last: the end of their log streams, of the tasks nearest to the root, and not much of it."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from contract.metrics import to_line
from contract.plan import plan
from contract.study import parse_study
from lambdas.task_logs import CHARACTERS, LINES, PAGES, TASKS, TaskLogs
from lambdas.verdict import TaskOutcome
from tests.unit.conftest import LOG_GROUP
from tests.unit.report_fixtures import records_of, task_failed

EXPERIMENT = plan(parse_study({"experiments": [{"mode": "sync", "workers": 2}]}), "study-1")[0]
KILLED = TaskOutcome(role="worker", rank=1, task_arn="arn:aws:ecs:…:task/lockstep/killed", exit_code=137)


@pytest.fixture
def logs(aws: boto3.Session) -> TaskLogs:
    aws.client("logs").create_log_group(logGroupName=LOG_GROUP)
    return TaskLogs.named(LOG_GROUP)


@pytest.fixture
def written(logs: TaskLogs, aws: boto3.Session) -> Callable[..., None]:
    """Write lines to a stream of the group."""
    assert logs
    client = aws.client("logs")

    def write(stream: str, *lines: str) -> None:
        client.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
        for number, line in enumerate(lines):
            event = {"timestamp": int(time.time() * 1000) + number, "message": line}
            client.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=[event])  # type: ignore[list-item]  # a plain dict is one

    return write


def test_a_failed_task_has_the_end_of_its_own_stream(logs: TaskLogs, written: Callable[..., None]) -> None:
    written("lockstep/worker/killed", *(f"line {number}" for number in range(LINES + 3)))
    written("lockstep/worker/other", "of another task")
    (outcome,) = logs.attached([KILLED])
    assert outcome.last_lines == tuple(f"line {number}" for number in range(3, LINES + 3))
    assert outcome.model_copy(update={"last_lines": ()}) == KILLED


def test_lines_for_people_go_before_records(logs: TaskLogs, written: Callable[..., None]) -> None:
    records = [to_line(record) for record in records_of(EXPERIMENT)]
    written("lockstep/worker/killed", "Traceback (most recent call last):", "  boom", *records[:3])
    (outcome,) = logs.attached([KILLED])
    assert outcome.last_lines == ("Traceback (most recent call last):", "  boom")


def test_where_there_are_records_alone_the_last_ones_are_shown(
    logs: TaskLogs, written: Callable[..., None]
) -> None:
    records = [to_line(record) for record in records_of(EXPERIMENT)][:4]
    written("lockstep/worker/killed", *records)
    (outcome,) = logs.attached([KILLED])
    assert outcome.last_lines == tuple(line[:CHARACTERS] for line in records)


def test_however_long_lines_are_a_row_holds_them(logs: TaskLogs, written: Callable[..., None]) -> None:
    outcomes = [
        TaskOutcome(role="worker", rank=rank, task_arn=f"arn/{rank}", exit_code=137) for rank in range(32)
    ]
    for rank in range(32):
        written(f"lockstep/worker/{rank}", *["\N{SKULL}" * 5000] * LINES)
    attached = logs.attached(outcomes)
    assert sum(bool(outcome.last_lines) for outcome in attached) == TASKS
    stored = json.dumps([outcome.model_dump(mode="json") for outcome in attached], ensure_ascii=False)
    assert len(stored.encode()) < 200_000  # of the 400 KB of a row


def test_of_many_those_nearest_to_the_root_are_read(logs: TaskLogs, written: Callable[..., None]) -> None:
    """One was killed, the others lost their server."""
    gave_up = [
        TaskOutcome(role="worker", rank=rank, task_arn=f"arn/{rank}", exit_code=1) for rank in range(2, 20)
    ]
    records = [task_failed(EXPERIMENT, "worker", rank, 4, "server") for rank in range(2, 20)]
    written("lockstep/worker/killed", "on my way")
    attached = logs.attached([*gave_up, KILLED], records)
    assert attached[-1].last_lines == ("on my way",)


def test_what_succeeded_is_not_looked_at(logs: TaskLogs, written: Callable[..., None]) -> None:
    done = TaskOutcome(role="worker", task_arn="arn/done", exit_code=0)
    written("lockstep/worker/done", "all is well")
    assert logs.attached([done]) == [done]


def test_a_task_that_never_ran_has_no_stream(logs: TaskLogs) -> None:
    absent = TaskOutcome(role="worker", task_arn="arn/absent", stop_code="TaskFailedToStart")
    unknown = TaskOutcome(role="worker", rank=1)
    assert logs.attached([absent, unknown]) == [absent, unknown]


def test_lines_that_were_read_before_stay_where_none_are_found_now(logs: TaskLogs) -> None:
    known = KILLED.model_copy(update={"last_lines": ("read before",)})
    assert logs.attached([known]) == [known]


@pytest.fixture
def answers(aws: boto3.Session) -> Iterator[list[dict[str, Any] | str]]:
    """What GetLogEvents answers: pages, or an error code."""
    given: list[dict[str, Any] | str] = []

    def answer(**_: Any) -> Any:
        page = given.pop(0)
        if isinstance(page, str):
            raise ClientError({"Error": {"Code": page, "Message": ""}}, "GetLogEvents")
        return type("Http", (), {"status_code": 200}), page

    aws.events.register("before-call.cloudwatch-logs.GetLogEvents", answer, unique_id="answers")
    yield given
    aws.events.unregister("before-call.cloudwatch-logs.GetLogEvents", unique_id="answers")


def test_a_log_that_cannot_be_read_says_so_and_nothing_fails(answers: list[dict[str, Any] | str]) -> None:
    logs = TaskLogs.named(LOG_GROUP)
    answers.append("AccessDeniedException")
    (outcome,) = logs.attached([KILLED])
    assert outcome.last_lines == ("(its log could not be read: AccessDeniedException)",)


def test_an_empty_page_may_have_more_behind_it(answers: list[dict[str, Any] | str]) -> None:
    logs = TaskLogs.named(LOG_GROUP)
    line = {"timestamp": 1, "message": "at last\n"}
    answers += [{"events": [], "nextBackwardToken": "b/1"}, {"events": [line], "nextBackwardToken": "b/2"}]
    assert logs.attached([KILLED])[0].last_lines == ("at last",)
    # And the same token twice is the end
    answers += [{"events": [], "nextBackwardToken": "b/1"}] * 2
    assert logs.attached([KILLED])[0].last_lines == ()
    answers += [{"events": [], "nextBackwardToken": f"b/{page}"} for page in range(PAGES)]
    assert logs.attached([KILLED])[0].last_lines == ()
    assert answers == []
