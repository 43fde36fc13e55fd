"""The ECS adapter: tasks are found by their group, stopped, waited for, and told how they ended."""

from datetime import UTC, datetime
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import WaiterError

from lambdas.tasks import TaskList
from lambdas.verdict import TaskOutcome
from tests.unit.fake_ecs import CLUSTER, FakeEcs, FakeTask, ended

GROUP = "study-1/sync_2workers"


@pytest.fixture
def tasks(ecs: FakeEcs, session: boto3.Session) -> TaskList:
    """The adapter, on the real client."""
    return TaskList(session.client("ecs", endpoint_url=ecs.endpoint), CLUSTER)


def labels(outcomes: list[TaskOutcome]) -> list[str]:
    return sorted(outcome.label for outcome in outcomes)


def test_running_tasks_are_told_with_their_group_and_rank(ecs: FakeEcs, tasks: TaskList) -> None:
    """More of them than one answer holds."""
    ecs.add(FakeTask(GROUP, "server"), *(FakeTask(GROUP, "worker", rank) for rank in range(7)))
    ecs.add(ended(GROUP, "worker", 9))
    running = tasks.running()
    assert {(task.group, task.ended) for task in running} == {(GROUP, False)}
    assert labels([task.outcome for task in running]) == ["server", *(f"worker {rank}" for rank in range(7))]
    assert all(task.arn == task.outcome.task_arn for task in running)
    assert {task.outcome.exit_code for task in running} == {None}


def test_several_servers_are_told_apart_by_their_shards(ecs: FakeEcs, tasks: TaskList) -> None:
    ecs.add(FakeTask(GROUP, "server"), FakeTask(GROUP, "server", 1), FakeTask(GROUP, "worker", 1))
    outcomes = [task.outcome for task in tasks.running()]
    assert labels(outcomes) == ["server", "server shard 1", "worker 1"]


def test_an_empty_cluster_has_none(tasks: TaskList) -> None:
    assert tasks.running() == []
    assert tasks.end_group(GROUP, "it has ended") == []


def test_how_a_task_ended_is_told_as_ecs_tells_it(ecs: FakeEcs, tasks: TaskList) -> None:
    ecs.add(
        ended(GROUP, "worker", 3, exit_code=137, reason="OutOfMemoryError", pulled_at=2, stopped_at=5),
        ended(GROUP, "server", exit_code=None, stop_code="TaskFailedToStart", reason="no image"),
    )
    server, worker = sorted(tasks.end_group(GROUP, "it has ended"), key=lambda outcome: outcome.role)
    assert worker == TaskOutcome(
        role="worker",
        rank=3,
        task_arn=worker.task_arn,
        exit_code=137,
        stop_code="EssentialContainerExited",
        stopped_reason="OutOfMemoryError",
        started_at=worker.started_at,
        stopped_at=worker.stopped_at,
    )
    assert datetime.fromisoformat(worker.started_at) == datetime.fromtimestamp(1_790_000_002, UTC)
    assert server.started_at == ""
    assert datetime.fromisoformat(worker.stopped_at) == datetime.fromtimestamp(1_790_000_005, UTC)
    assert (server.exit_code, server.stop_code, server.stopped_reason) == (
        None,
        "TaskFailedToStart",
        "no image",
    )


def test_ending_a_group_stops_its_tasks_alone_and_waits_for_them(
    ecs: FakeEcs, tasks: TaskList, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("botocore.waiter.time.sleep", pauses.append)
    ecs.add(
        FakeTask(GROUP, "server", lingers=4, exit_code_when_stopped=143),
        FakeTask(GROUP, "worker", 0, lingers=1),
        ended(GROUP, "worker", 1, exit_code=137),
        FakeTask("study-2/sync_2workers", "server"),
        FakeTask("study-1/sync_2workers_seed1", "server"),
    )
    outcomes = tasks.end_group(GROUP, "it has ended")
    assert ecs.stopped == [f"{GROUP}/server/0: it has ended", f"{GROUP}/worker/0: it has ended"]
    assert ecs.running() == ["study-2/sync_2workers/server/0", "study-1/sync_2workers_seed1/server/0"]
    assert {o.label: (o.exit_code, o.stop_code) for o in outcomes} == {
        "server": (143, "UserInitiated"),
        "worker 0": (143, "UserInitiated"),
        "worker 1": (137, "EssentialContainerExited"),
    }
    assert pauses
    assert set(pauses) == {2}


def test_stopping_what_ecs_has_forgotten_meanwhile_is_no_error(ecs: FakeEcs, tasks: TaskList) -> None:
    gone, there = FakeTask(GROUP, "server"), FakeTask(GROUP, "worker", 0)
    ecs.add(gone, there)
    running = tasks.running()
    ecs.forget(gone)
    tasks.stop(running, "it has ended")
    assert ecs.stopped == [f"{GROUP}/worker/0: it has ended"]


def test_a_task_that_cannot_be_stopped_does_not_keep_the_others(ecs: FakeEcs, tasks: TaskList) -> None:
    ecs.add(*(FakeTask(GROUP, "worker", rank) for rank in range(4)))
    for rank, code in ((0, "AccessDeniedException"), (2, "InvalidParameterException")):
        ecs.refusals[f"{GROUP}/worker/{rank}"] = code
    with pytest.raises(ExceptionGroup, match="2 tasks could not be stopped") as raised:
        tasks.stop(tasks.running(), "it has ended")
    said = [str(error) for error in raised.value.exceptions]
    assert ["AccessDenied" in said[0], "InvalidParameter" in said[1]] == [True, True]
    assert ecs.running() == [f"{GROUP}/worker/0", f"{GROUP}/worker/2"]


def test_a_task_that_does_not_end_is_an_error(
    ecs: FakeEcs, tasks: TaskList, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("botocore.waiter.time.sleep", pauses.append)
    ecs.add(FakeTask(GROUP, "server", lingers=10_000))
    with pytest.raises(WaiterError, match="Max attempts exceeded"):
        tasks.end_group(GROUP, "it has ended")
    assert sum(pauses) == pytest.approx(120, abs=4)


def test_many_tasks_are_waited_for_no_longer_than_one(
    ecs: FakeEcs, tasks: TaskList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DescribeTasks takes a hundred: those that come after them have what is left of the time."""
    pauses: list[float] = []
    monkeypatch.setattr("botocore.waiter.time.sleep", pauses.append)
    monkeypatch.setattr("lambdas.tasks.time", SimpleNamespace(monotonic=lambda: sum(pauses)))
    ecs.add(*(FakeTask(GROUP, "worker", rank, lingers=50) for rank in range(100)))
    ecs.add(*(FakeTask(GROUP, "worker", rank, lingers=10_000) for rank in range(100, 103)))
    with pytest.raises(WaiterError, match="Max attempts exceeded"):
        tasks.end_group(GROUP, "it has ended")
    assert sum(pauses) == pytest.approx(120, abs=4)


def test_ending_a_group_twice_is_ending_it_once(ecs: FakeEcs, tasks: TaskList) -> None:
    ecs.add(FakeTask(GROUP, "server"), ended(GROUP, "worker", 0))
    assert tasks.end_group(GROUP, "it has ended") == tasks.end_group(GROUP, "it has ended")
    assert len(ecs.stopped) == 1


def test_ending_looks_again_for_what_was_started_meanwhile(
    ecs: FakeEcs, tasks: TaskList, monkeypatch: pytest.MonkeyPatch
) -> None:
    ecs.add(FakeTask(GROUP, "server", lingers=4))
    late = FakeTask(GROUP, "worker", 0)

    def begin(_: float) -> None:
        if late not in ecs.tasks:
            ecs.add(late)

    monkeypatch.setattr("botocore.waiter.time.sleep", begin)
    assert labels(tasks.end_group(GROUP, "it has ended")) == ["server", "worker 0"]
    assert ecs.running() == []


@pytest.mark.parametrize("comes_late", [False, True])
def test_where_one_may_be_starting_two_looks_apart_must_find_nothing(
    ecs: FakeEcs, tasks: TaskList, monkeypatch: pytest.MonkeyPatch, *, comes_late: bool
) -> None:
    """A RunTask was under way when the others were given up, and ECS shows its task late."""
    late, pauses = FakeTask(GROUP, "worker", 0), list[float]()

    def begin(seconds: float) -> None:
        pauses.append(seconds)
        if comes_late and late not in ecs.tasks:
            ecs.add(late)

    monkeypatch.setattr("lambdas.tasks.time.sleep", begin)
    ecs.add(FakeTask(GROUP, "server"))
    found = labels(tasks.end_group(GROUP, "it has ended", quiet_seconds=5))
    assert (found, pauses) == ((["server", "worker 0"], [5, 5]) if comes_late else (["server"], [5]))
    assert ecs.running() == []


def test_where_none_can_be_starting_one_look_is_enough(
    ecs: FakeEcs, tasks: TaskList, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("lambdas.tasks.time.sleep", pauses.append)
    ecs.add(ended(GROUP, "server"), ended(GROUP, "worker", 0))
    assert labels(tasks.end_group(GROUP, "it has ended")) == ["server", "worker 0"]
    assert pauses == []
