"""Judging an experiment: every way its tasks can end, and which of several failures is the root."""

from typing import Any

import pytest

from contract.metrics import MetricRecord, Role
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.verdict import TaskOutcome, Verdict, failed_in_order, first_to_fail, judge, of_this_run
from tests.unit.report_fixtures import records_of, task_failed

(EXPERIMENT,) = plan(parse_study({"experiments": [{"name": "one", "mode": "sync", "workers": 4}]}), "study-1")
STATE_ERROR = {"Error": "ECS.AmazonECSException", "Cause": "no capacity"}


def ended(role: str, rank: int = 0, **how: Any) -> TaskOutcome:
    """A task that ended well unless `how` says otherwise."""
    return TaskOutcome(
        **{"role": role, "rank": rank, "exit_code": 0, "stop_code": "EssentialContainerExited", **how}
    )


def all_ended(**others: TaskOutcome) -> list[TaskOutcome]:
    """Server and four workers, all well but those given by name, as in `worker_2=…`."""
    well = {"server": ended("server"), **{f"worker_{rank}": ended("worker", rank) for rank in range(4)}}
    assert others.keys() <= well.keys()
    return list({**well, **others}.values())


def lost(role: Role, rank: int, peer: str) -> MetricRecord:
    """The last word of a task that gave up because another was gone."""
    return task_failed(EXPERIMENT, role, rank, 9, peer)


def gave_up(role: Role, rank: int, reason: str) -> MetricRecord:
    return lost(role, rank, "").model_copy(update={"reason": reason})


KILLED: dict[str, Any] = {"exit_code": 137}
BY_CONTROLLER: dict[str, Any] = {
    "exit_code": 143,
    "stop_code": "UserInitiated",
    "stopped_reason": "Lockstep: it has ended",
}
KILLED_TEXT = "was killed (exit code 137: SIGKILL, from outside or for lack of memory)"


@pytest.mark.parametrize(
    ("outcomes", "records", "error", "cause"),
    [
        pytest.param(all_ended(), [], None, "", id="all ended well"),
        pytest.param(
            all_ended(
                worker_2=ended("worker", 2, **KILLED, stopped_at="2026-03-01T12:00:09"),
                server=ended("server", exit_code=1, stopped_at="2026-03-01T12:00:01"),
                worker_0=ended("worker", 0, exit_code=1, stopped_at="2026-03-01T12:00:02"),
                worker_1=ended("worker", 1, **BY_CONTROLLER, stopped_at="2026-03-01T12:00:03"),
                worker_3=ended("worker", 3, exit_code=1, stopped_at="2026-03-01T12:00:04"),
            ),
            [lost("server", 0, "worker 2"), lost("worker", 0, "server"), lost("worker", 3, "server")],
            {"Error": "States.TaskFailed", "Cause": "a task failed"},
            f"worker 2 {KILLED_TEXT}."
            " Then: server failed: worker 2 was lost: no heartbeat for 10 s;"
            " worker 0 failed: server was lost: no heartbeat for 10 s;"
            " worker 3 failed: server was lost: no heartbeat for 10 s",
            id="one killed, the others lost a peer or were stopped: the killed one is the root",
        ),
        pytest.param(
            all_ended(server=ended("server", **KILLED), worker_0=ended("worker", 0, exit_code=1)),
            [lost("worker", 0, "server")],
            None,
            f"server {KILLED_TEXT}. Then: worker 0 failed: server was lost: no heartbeat for 10 s",
            id="the server killed",
        ),
        pytest.param(
            all_ended(
                worker_3=ended("worker", 3, exit_code=1, stopped_at="2026-03-01T12:00:01"),
                worker_1=ended("worker", 1, exit_code=1, stopped_at="2026-03-01T12:00:02"),
            ),
            [gave_up("worker", 3, "loss is NaN; lower the learning rate"), lost("worker", 1, "server")],
            None,
            "worker 3 failed: loss is NaN; lower the learning rate."
            " Then: worker 1 failed: server was lost: no heartbeat for 10 s",
            id="one gave up for a reason of its own",
        ),
        pytest.param(
            all_ended(
                worker_3=ended("worker", 3, exit_code=2, stopped_at="2026-03-01T12:00:02"),
                worker_1=ended("worker", 1, exit_code=2, stopped_at="2026-03-01T12:00:01"),
            ),
            [],
            None,
            "worker 1 exited with code 2; its log stream may say why."
            " Then: worker 3 exited with code 2; its log stream may say why",
            id="two without a word: the first to end is the root",
        ),
        pytest.param(
            all_ended(
                worker_0=ended(
                    "worker",
                    0,
                    exit_code=None,
                    stop_code="TaskFailedToStart",
                    stopped_reason="CannotPullContainerError: manifest unknown",
                )
            ),
            [],
            None,
            "worker 0 never ran: CannotPullContainerError: manifest unknown",
            id="never started",
        ),
        pytest.param(
            all_ended(worker_0=ended("worker", 0, exit_code=None, stop_code="")),
            [],
            None,
            "worker 0 never ran: ECS gives no reason",
            id="never started, for no reason",
        ),
        pytest.param(
            all_ended(worker_1=ended("worker", 1, exit_code=139)),
            [],
            None,
            "worker 1 was killed (exit code 139: SIGSEGV)",
            id="another signal",
        ),
        pytest.param(
            all_ended(worker_1=ended("worker", 1, exit_code=255)),
            [],
            None,
            "worker 1 was killed (exit code 255: signal 127)",
            id="a signal without a name",
        ),
        pytest.param(
            all_ended(
                worker_1=ended(
                    "worker",
                    1,
                    exit_code=0,
                    stop_code="SpotInterruption",
                    stopped_reason="Your Spot Task was interrupted.",
                ),
                server=ended("server", exit_code=1),
            ),
            [lost("server", 0, "worker 1")],
            None,
            "worker 1 was taken away (SpotInterruption): Your Spot Task was interrupted."
            " Then: server failed: worker 1 was lost: no heartbeat for 10 s",
            id="taken away by AWS, whatever its exit code",
        ),
        pytest.param(
            all_ended(
                worker_1=ended(
                    "worker",
                    1,
                    exit_code=143,
                    stop_code="SpotInterruption",
                    stopped_reason="Your Spot Task was interrupted.",
                    stopped_at="2026-03-01T12:00:02",
                ),
                worker_3=ended("worker", 3, exit_code=1, stopped_at="2026-03-01T12:00:01"),
            ),
            [gave_up("worker", 1, "stopped by SIGTERM"), gave_up("worker", 3, "no space left")],
            None,
            "worker 1 was taken away (SpotInterruption): Your Spot Task was interrupted."
            " Then: worker 3 failed: no space left",
            id="taken away by AWS, whatever it said when it was told to stop",
        ),
        pytest.param(
            all_ended(
                server=ended(
                    "server",
                    exit_code=143,
                    stop_code="TerminationNotice",
                    stopped_reason="Fargate retires its host",
                    stopped_at="2026-03-01T12:00:03",
                ),
                worker_0=ended("worker", 0, exit_code=1, stopped_at="2026-03-01T12:00:01"),
            ),
            [
                gave_up("server", 0, "stopped by SIGTERM"),
                gave_up("worker", 0, "the server was stopped by SIGTERM"),
            ],
            None,
            "server was taken away (TerminationNotice): Fargate retires its host."
            " Then: worker 0 failed: the server was stopped by SIGTERM",
            id="the server taken away, and its workers ended before it",
        ),
        pytest.param(
            all_ended(
                worker_0=ended(
                    "worker", 0, exit_code=None, stop_code="SpotInterruption", stopped_reason="capacity"
                )
            ),
            [],
            None,
            "worker 0 was taken away (SpotInterruption): capacity",
            id="taken away before any process ended",
        ),
        pytest.param(
            [ended("server", **BY_CONTROLLER), *(ended("worker", r, **BY_CONTROLLER) for r in range(4))],
            [],
            None,
            "server was stopped: Lockstep: it has ended",
            id="all stopped by the controller",
        ),
        pytest.param(
            all_ended(worker_2=ended("worker", 2, **BY_CONTROLLER | {"exit_code": 0})),
            [],
            None,
            "worker 2 was stopped: Lockstep: it has ended",
            id="stopped by the controller, with exit code 0",
        ),
        pytest.param(
            [ended("server", **BY_CONTROLLER), *(ended("worker", r, **BY_CONTROLLER) for r in range(2))],
            [],
            STATE_ERROR,
            "ECS.AmazonECSException: no capacity",
            id="the state machine failed to start a task, and the others were stopped",
        ),
        pytest.param(
            [ended("server"), ended("worker", 0), ended("worker", 1)],
            [],
            None,
            "3 of 5 tasks were started (server, worker 0, worker 1)",
            id="not all were started",
        ),
        pytest.param([], [], None, "0 of 5 tasks were started (none)", id="none was started"),
        pytest.param(
            [],
            [],
            STATE_ERROR,
            "ECS.AmazonECSException: no capacity",
            id="none was started, and it is known why",
        ),
        pytest.param(
            all_ended(), [], STATE_ERROR, "ECS.AmazonECSException: no capacity", id="all well but for a state"
        ),
        pytest.param([], [], {}, "0 of 5 tasks were started (none)", id="an empty error is none"),
    ],
)
def test_an_experiment_is_judged_by_how_its_tasks_ended(
    outcomes: list[TaskOutcome], records: list[MetricRecord], error: dict[str, str] | None, cause: str
) -> None:
    verdict = judge(EXPERIMENT, outcomes, records, error)
    assert (verdict.status, verdict.cause) == (Status.FAILED if cause else Status.COMPLETED, cause)
    reversed_verdict = judge(EXPERIMENT, outcomes[::-1], records[::-1], error)
    assert reversed_verdict.status is verdict.status
    if verdict.cause.startswith("worker"):
        assert reversed_verdict == verdict


def test_records_of_success_are_no_reason_to_fail() -> None:
    assert judge(EXPERIMENT, all_ended(), records_of(EXPERIMENT), None).status is Status.COMPLETED


@pytest.mark.parametrize("forgotten", [["worker 1"], ["worker 0", "worker 3"], ["server"]])
def test_what_ecs_has_forgotten_ended_well_where_its_summary_says_so(forgotten: list[str]) -> None:
    """ECS remembers an ended task for an hour; an experiment may go on for a day."""
    known = [outcome for outcome in all_ended() if outcome.label not in forgotten]
    said = records_of(EXPERIMENT)
    assert judge(EXPERIMENT, known, said, None) == Verdict(Status.COMPLETED)
    # Then without a summary it is not known to have been there at all
    mute = [record for record in said if not record.kind.endswith("summary")]
    cause = judge(EXPERIMENT, known, mute, None).cause
    assert cause.startswith(f"{5 - len(forgotten)} of 5 tasks were started (")
    assert not any(label in cause for label in forgotten)


def test_a_summary_does_not_excuse_a_task_that_ended_badly() -> None:
    outcomes = all_ended(worker_2=ended("worker", 2, **KILLED))
    assert judge(EXPERIMENT, outcomes, records_of(EXPERIMENT), None).cause == f"worker 2 {KILLED_TEXT}"


NEVER_RAN: dict[str, Any] = {
    "exit_code": None,
    "stop_code": "TaskFailedToStart",
    "stopped_reason": "no network",
}


def starts(role: str, rank: int, *how: dict[str, Any]) -> list[TaskOutcome]:
    """The tasks of one rank, one after another."""
    return [ended(role, rank, **each, stopped_at=f"2026-03-01T12:0{i}:00") for i, each in enumerate(how)]


@pytest.mark.parametrize(("role", "rank"), [("worker", 2), ("server", 0)])
def test_a_start_that_came_to_nothing_is_made_up_for_by_the_next(role: str, rank: int) -> None:
    others = [outcome for outcome in all_ended() if (outcome.role, outcome.rank) != (role, rank)]
    outcomes = [*others, *starts(role, rank, NEVER_RAN, NEVER_RAN, {})]
    assert judge(EXPERIMENT, outcomes, [], None) == Verdict(Status.COMPLETED)
    assert failed_in_order(outcomes, []) == []
    # Nor is it what another failure followed from
    outcomes = [*others, *starts(role, rank, NEVER_RAN, KILLED)]
    assert judge(EXPERIMENT, outcomes, [], None).cause.endswith(KILLED_TEXT)


def test_a_task_none_of_whose_starts_succeeded_is_named_once() -> None:
    outcomes = [
        *(outcome for outcome in all_ended() if outcome.rank != 2),
        *starts("worker", 2, NEVER_RAN, NEVER_RAN, NEVER_RAN),
    ]
    verdict = judge(EXPERIMENT, outcomes, [], STATE_ERROR)
    assert verdict == Verdict(Status.FAILED, "worker 2 never ran: no network")


def test_a_task_that_ran_and_was_lost_is_not_excused_by_a_later_start() -> None:
    outcomes = [*all_ended()[:-1], *starts("worker", 3, KILLED, {})]
    assert judge(EXPERIMENT, outcomes, [], None).cause == f"worker 3 {KILLED_TEXT}"


CONTINUING = EXPERIMENT.model_copy(update={"on_worker_loss": "continue"})


@pytest.mark.parametrize(
    ("outcomes", "error", "cause"),
    [
        pytest.param(all_ended(), None, "", id="nobody was lost"),
        pytest.param(
            all_ended(worker_2=ended("worker", 2, **KILLED)),
            {"Error": "States.TaskFailed", "Cause": "a task failed"},
            f"went on without worker 2, which {KILLED_TEXT}",
            id="one was killed",
        ),
        pytest.param(
            all_ended(
                worker_3=ended("worker", 3, exit_code=None, stop_code="TaskFailedToStart"),
                worker_0=ended(
                    "worker", 0, exit_code=143, stop_code="SpotInterruption", stopped_reason="capacity"
                ),
                worker_1=ended("worker", 1, **BY_CONTROLLER),
            ),
            None,
            "went on without worker 0, which was taken away (SpotInterruption): capacity;"
            " went on without worker 1, which was stopped: Lockstep: it has ended;"
            " went on without worker 3, which never ran: TaskFailedToStart",
            id="all but one were lost",
        ),
        pytest.param(
            [
                *all_ended(worker_2=ended("worker", 2, **KILLED, stopped_at="2026-03-01T12:00:01")),
                ended("worker", 2, stopped_at="2026-03-01T12:00:09"),
            ],
            None,
            "",
            id="one was killed, started again, and finished",
        ),
        pytest.param(
            [
                *all_ended(worker_2=ended("worker", 2, exit_code=1, stopped_at="2026-03-01T12:00:09")),
                ended("worker", 2, **KILLED, stopped_at="2026-03-01T12:00:01"),
            ],
            None,
            "went on without worker 2, which exited with code 1; its log stream may say why",
            id="one was lost twice: how it ended in the end counts",
        ),
        pytest.param(
            all_ended()[:-1],
            STATE_ERROR,
            "went on without worker 3, which left no trace in ECS",
            id="no trace",
        ),
    ],
)
def test_an_experiment_that_may_go_on_is_completed_where_its_server_and_a_worker_finished(
    outcomes: list[TaskOutcome], error: dict[str, str] | None, cause: str
) -> None:
    assert judge(CONTINUING, outcomes, [], error) == Verdict(Status.COMPLETED, cause)
    assert judge(CONTINUING, outcomes[::-1], [], error) == Verdict(Status.COMPLETED, cause)
    if any(not outcome.succeeded for outcome in outcomes):
        assert judge(EXPERIMENT, outcomes, [], error).status is Status.FAILED


@pytest.mark.parametrize(
    ("outcomes", "cause"),
    [
        pytest.param(
            all_ended(
                worker_2=ended("worker", 2, **KILLED, stopped_at="2026-03-01T12:00:01"),
                server=ended("server", exit_code=1, stopped_at="2026-03-01T12:00:02"),
            ),
            f"worker 2 {KILLED_TEXT}. Then: server exited with code 1; its log stream may say why",
            id="the server failed",
        ),
        pytest.param(
            [ended("server"), *(ended("worker", rank, **KILLED) for rank in range(4))],
            "; ".join(f"worker {rank} {KILLED_TEXT}" for rank in range(4)).replace("; ", ". Then: ", 1),
            id="no worker finished",
        ),
        pytest.param(all_ended()[1:], "4 of 5 tasks were started (worker 0, worker 1, worker 2, worker 3)"),
        pytest.param([], "0 of 5 tasks were started (none)", id="none was started"),
    ],
)
def test_an_experiment_that_may_go_on_fails_without_its_server_or_all_workers(
    outcomes: list[TaskOutcome], cause: str
) -> None:
    assert judge(CONTINUING, outcomes, [], None) == Verdict(Status.FAILED, cause)


def test_what_a_server_says_of_workers_that_came_back_is_told() -> None:
    records = [
        record.model_copy(update={"lost_workers": [1, 3, 1], "rejoined_workers": [1, 1]})
        if record.kind == "server_summary"
        else record
        for record in records_of(EXPERIMENT)
        if (record.role, record.rank) != ("worker", 3)
    ]
    outcomes = all_ended(worker_3=ended("worker", 3, **KILLED))
    cause = f"went on without worker 3, which {KILLED_TEXT}; worker 1 came back after a loss"
    assert judge(CONTINUING, outcomes, records, None) == Verdict(Status.COMPLETED, cause)
    # ECS may have forgotten those that finished by now
    assert judge(CONTINUING, outcomes[-1:], records, None) == Verdict(Status.COMPLETED, cause)


def test_the_last_attempt_has_the_last_word() -> None:
    words = [gave_up("worker", 1, f"reason {n}").model_copy(update={"attempt": n}) for n in (0, 1, 2)]
    outcomes = all_ended(worker_1=ended("worker", 1, exit_code=1))
    for order in (words, words[::-1]):
        assert judge(EXPERIMENT, outcomes, order, None).cause == "worker 1 failed: reason 2"


def test_every_shard_has_a_server() -> None:
    sharded = CONTINUING.model_copy(update={"shards": 2})
    assert judge(sharded, all_ended(), [], None).cause.startswith(
        "5 of 6 tasks were started (server, worker 0"
    )
    both = [*all_ended(), ended("server", 1)]
    assert judge(sharded, both, [], None) == Verdict(Status.COMPLETED)
    struck = [*all_ended(), ended("server", 1, **KILLED)]
    assert judge(sharded, struck, [], None).cause == f"server shard 1 {KILLED_TEXT}"


def test_of_a_state_that_waited_too_long_is_told_what_never_came() -> None:
    """AWS says nothing more: here the server never gave its address."""
    stopped = [ended("server", **BY_CONTROLLER)]
    verdict = judge(EXPERIMENT, stopped, [], {"Error": "States.Timeout", "Cause": ""})
    assert verdict.cause == (
        "States.Timeout: a state has waited for too long;"
        " never started: worker 0, worker 1, worker 2, worker 3"
    )
    verdict = judge(EXPERIMENT, all_ended(server=stopped[0]), [], {"Error": "States.Timeout"})
    assert verdict.cause == "States.Timeout: a state has waited for too long; never started: none"


def test_tasks_that_did_not_succeed_are_ordered_from_the_root_on() -> None:
    records = [lost("worker", 0, "server"), lost("server", 0, "worker 2"), gave_up("worker", 3, "no data")]
    outcomes = all_ended(
        server=ended("server", exit_code=1, stopped_at="2026-03-01T12:00:02"),
        worker_0=ended("worker", 0, exit_code=1, stopped_at="2026-03-01T12:00:01"),
        worker_1=ended("worker", 1, **BY_CONTROLLER, stopped_at="2026-03-01T12:00:00"),
        worker_2=ended("worker", 2, **KILLED, stopped_at="2026-03-01T12:00:09"),
        worker_3=ended("worker", 3, exit_code=1, stopped_at="2026-03-01T12:00:08"),
    )
    order = ["worker 2", "worker 3", "worker 0", "server", "worker 1"]
    assert [outcome.label for outcome in failed_in_order(outcomes, records)] == order
    first = first_to_fail(outcomes, records)
    assert first is not None
    assert first.label == "worker 2"


def test_where_tasks_were_merely_stopped_none_failed_first() -> None:
    assert first_to_fail(all_ended(), []) is None
    assert first_to_fail(all_ended(worker_1=ended("worker", 1, **BY_CONTROLLER)), []) is None


def test_a_long_cause_of_a_state_is_cut() -> None:
    cause = judge(EXPERIMENT, [], [], {"Error": "E", "Cause": "x" * 100_000}).cause
    assert len(cause) == 2000


@pytest.mark.parametrize(
    ("how", "succeeded"),
    [
        ({}, True),
        ({"stop_code": ""}, True),
        ({"exit_code": 1}, False),
        ({"exit_code": None}, False),
        ({"stop_code": "UserInitiated"}, False),
        ({"stop_code": "SpotInterruption"}, False),
    ],
)
def test_a_task_succeeded_that_ended_by_itself_with_exit_code_0(how: dict[str, Any], succeeded: bool) -> None:
    assert ended("worker", 1, **how).succeeded is succeeded


def test_tasks_are_called_as_in_the_report() -> None:
    assert [ended("server").label, ended("worker", 2).label] == ["server", "worker 2"]


def test_the_experiment_of_these_tests_has_five_tasks() -> None:
    assert isinstance(EXPERIMENT, Experiment)
    assert EXPERIMENT.task_count == 5


def test_a_task_of_an_earlier_run_is_told_by_its_start_however_soon_the_next_run_began() -> None:
    began = "2026-03-01T12:01:00+00:00"
    earlier = ended("server", started_at="2026-03-01T12:00:50+00:00", stopped_at="2026-03-01T12:00:59+00:00")
    never_ran = ended("worker", stopped_at="2026-03-01T12:00:40+00:00")
    this_run = [
        ended("server", started_at="2026-03-01T12:00:59+00:00", stopped_at="2026-03-01T12:03:00+00:00"),
        ended("worker", started_at="2026-03-01T12:01:05+00:00"),
        ended("worker", stopped_at="2026-03-01T12:01:20+00:00"),
        ended("worker"),
    ]
    assert of_this_run([earlier, never_ran, *this_run], began) == this_run
    assert of_this_run([earlier, never_ran], "") == [earlier, never_ran]
