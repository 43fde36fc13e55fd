"""What is missing between the records that were emitted and those that arrived."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.metrics import FINAL_KINDS, MetricRecord, TaskStarted
from contract.plan import plan
from contract.study import parse_study
from contract.table import Status
from lambdas.reconcile_metrics.gaps import find_gaps, settle
from lambdas.verdict import Emitter, TaskOutcome
from tests.unit.report_fixtures import failed_outcome, records_of, task_failed

(EXPERIMENT,) = plan(
    parse_study({"experiments": [{"name": "one", "mode": "async", "workers": 3}]}), "study-1"
)
EMITTERS: set[Emitter] = {("server", 0), ("worker", 0), ("worker", 1), ("worker", 2)}
EMITTED = records_of(EXPERIMENT)
WELL = [TaskOutcome(role=role, rank=rank, exit_code=0) for role, rank in sorted(EMITTERS)]
KILLED = [task.model_copy(update={"exit_code": 137}) for task in WELL]


def emitter(record: MetricRecord) -> Emitter:
    return (record.role, record.rank)


def known_lost(dropped: set[int], *, ended_well: bool) -> dict[Emitter, int]:
    """How many records of each emitter are known to be missing, told by walking what was emitted.

    A record is known to be missing where a later one of its emitter arrived; of one that ended well, the final
    one is known to be missing too.
    """
    lost: dict[Emitter, int] = {}
    for who in EMITTERS:
        mine = [(i, record) for i, record in enumerate(EMITTED) if emitter(record) == who]
        arrived = [record.seq for i, record in mine if i not in dropped]
        final_arrived = any(record.kind in FINAL_KINDS for i, record in mine if i not in dropped)
        count = sum(i in dropped and any(seq > record.seq for seq in arrived) for i, record in mine)
        count += ended_well and not final_arrived
        if count:
            lost[who] = count
    return lost


SUBSETS = st.sets(st.integers(0, len(EMITTED) - 1)) | st.sets(st.integers(0, len(EMITTED) - 1), min_size=15)


@given(dropped=SUBSETS, repeated=st.lists(st.integers(0, len(EMITTED) - 1)), ended_well=st.booleans())
def test_whatever_is_dropped_or_repeated_the_known_losses_are_counted(
    dropped: set[int], repeated: list[int], ended_well: bool
) -> None:
    arrived = [EMITTED[i] for i in [*range(len(EMITTED)), *repeated] if i not in dropped]
    gaps = find_gaps(EXPERIMENT, WELL if ended_well else KILLED, arrived)
    assert gaps.missing == known_lost(dropped, ended_well=ended_well)
    assert gaps.closed == (not gaps.missing)
    assert gaps.suspects == gaps.missing.keys() | gaps.unknown
    finished = {emitter(record) for record in arrived if record.kind in FINAL_KINDS}
    assert gaps.unknown == (frozenset() if ended_well else EMITTERS - finished)


@given(dropped=SUBSETS)
def test_an_experiment_without_all_summaries_has_no_result(dropped: set[int]) -> None:
    arrived = [record for i, record in enumerate(EMITTED) if i not in dropped]
    verdict, warnings = settle(EXPERIMENT, WELL, None, arrived)
    unsummarized = EMITTERS - {emitter(record) for record in arrived if record.kind in FINAL_KINDS}
    assert (verdict.status is Status.FAILED) == bool(unsummarized)
    for role, rank in unsummarized:
        assert ("server" if role == "server" else f"worker {rank}") in verdict.cause
    assert len(warnings) == len(known_lost(dropped, ended_well=True))


def test_all_records_of_an_experiment_that_ended_well() -> None:
    gaps = find_gaps(EXPERIMENT, WELL, EMITTED)
    assert (gaps.missing, gaps.unknown, gaps.closed) == ({}, frozenset(), True)
    verdict, warnings = settle(EXPERIMENT, WELL, None, EMITTED)
    assert (verdict.status, verdict.cause, warnings) == (Status.COMPLETED, "", [])


def test_a_missing_record_is_a_warning_and_a_missing_summary_a_failure() -> None:
    holed = [record for record in EMITTED if (emitter(record), record.seq) != (("worker", 1), 2)]
    verdict, warnings = settle(EXPERIMENT, WELL, None, holed)
    assert verdict.status is Status.COMPLETED
    assert warnings == ["one: 1 record(s) of worker 1 did not arrive"]
    cut = [record for record in EMITTED if record.kind != "server_summary"]
    verdict, warnings = settle(EXPERIMENT, WELL, None, cut)
    assert (verdict.status, verdict.cause) == (
        Status.FAILED,
        "no result: the summary of server did not arrive",
    )
    assert warnings == ["one: 1 record(s) of server did not arrive"]


def test_a_failure_keeps_its_own_cause() -> None:
    failed = failed_outcome(EXPERIMENT)
    ended = [task.model_copy(update={"exit_code": 137 if task.label == "worker 1" else 1}) for task in WELL]
    verdict, warnings = settle(EXPERIMENT, ended, None, failed.records)
    assert verdict.status is Status.FAILED
    assert verdict.cause.startswith("worker 1 was killed")
    assert warnings == []


def test_what_was_never_started_misses_nothing_that_is_known() -> None:
    gaps = find_gaps(EXPERIMENT, [], [])
    assert gaps.closed
    assert gaps.unknown == gaps.suspects == EMITTERS


def test_records_of_ranks_that_were_not_planned_are_left_aside() -> None:
    stray = EMITTED[-1].model_copy(update={"rank": 30})
    assert find_gaps(EXPERIMENT, WELL, [*EMITTED, stray]) == find_gaps(EXPERIMENT, WELL, EMITTED)


def again(records: list[MetricRecord], who: Emitter, kept: int, attempt: int = 1) -> list[MetricRecord]:
    """The records of an emitter that was cut off after `kept` of them and started again."""
    mine = [record for record in records if emitter(record) == who]
    others = [record for record in records if emitter(record) != who]
    return [*others, *mine[:kept], *(record.model_copy(update={"attempt": attempt}) for record in mine)]


ONE: Emitter = ("worker", 1)


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("attempt", [1, 4])
def test_an_attempt_that_died_is_no_gap_where_a_later_one_finished(kept: int, attempt: int) -> None:
    """Nothing is known to be missing; what the dead attempt said last may lie in its log stream all the same."""
    arrived = again(EMITTED, ONE, kept, attempt)
    gaps = find_gaps(EXPERIMENT, WELL, arrived)
    assert (gaps.missing, gaps.unknown) == ({}, {ONE} if kept else set())
    verdict, warnings = settle(EXPERIMENT, WELL, None, arrived)
    assert (verdict.status, warnings) == (Status.COMPLETED, [])


@given(
    lost=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 6))),
    ended_well=st.booleans(),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_records_of_each_attempt_are_counted_alone(
    lost: set[tuple[int, int]], ended_well: bool, shuffle: Random
) -> None:
    """The first attempt died after four records; the second finished with its seventh."""
    emitted = [r for r in again(EMITTED, ONE, 4) if emitter(r) == ONE]
    numbers = [(r.attempt, r.seq) for r in emitted]
    assert numbers == [(0, seq) for seq in range(4)] + [(1, seq) for seq in range(7)]
    arrived = [r for r in emitted if (r.attempt, r.seq) not in lost]
    shuffle.shuffle(arrived)
    others = [r for r in EMITTED if emitter(r) != ONE]
    gaps = find_gaps(EXPERIMENT, WELL if ended_well else KILLED, others + arrived)
    holes = sum(
        any(r.attempt == attempt and r.seq > seq for r in arrived)
        for attempt, seq in numbers
        if (attempt, seq) in lost
    )
    assert gaps.missing.get(ONE, 0) == holes + (ended_well and (1, 6) in lost)


def test_one_that_gave_up_and_then_ended_well_still_owes_its_summary() -> None:
    """Its first attempt said why it gave up; of the second, which ended well, nothing has arrived."""
    gave_up = task_failed(EXPERIMENT, "worker", 1, 2, "server")
    others = [record for record in EMITTED if emitter(record) != ONE]
    mine = [record for record in EMITTED if emitter(record) == ONE][:2]
    gaps = find_gaps(EXPERIMENT, WELL, [*others, *mine, gave_up])
    assert gaps.missing == {ONE: 1}
    verdict, _ = settle(EXPERIMENT, WELL, None, [*others, *mine, gave_up])
    assert verdict.cause == "no result: the summary of worker 1 did not arrive"


CONTINUING = EXPERIMENT.model_copy(update={"on_worker_loss": "continue"})
WITHOUT_ONE = [
    task.model_copy(update={"exit_code": 137}) if task.label == "worker 1" else task for task in WELL
]


def test_an_experiment_that_went_on_is_completed_without_the_summary_of_the_worker_that_was_lost() -> None:
    cut = [r for r in EMITTED if emitter(r) != ONE or isinstance(r, TaskStarted)]
    verdict, warnings = settle(CONTINUING, WITHOUT_ONE, None, cut)
    said = "went on without worker 1, which was killed (exit code 137: SIGKILL, from outside or for lack of memory)"
    assert (verdict.status, verdict.cause, warnings) == (Status.COMPLETED, said, [f"one: {said}"])
    assert find_gaps(CONTINUING, WITHOUT_ONE, cut).unknown == {ONE}
    assert settle(EXPERIMENT, WITHOUT_ONE, None, cut)[0].status is Status.FAILED


@pytest.mark.parametrize("who", [("server", 0), ("worker", 0)])
def test_an_experiment_that_went_on_has_no_result_without_the_summaries_of_those_that_finished(
    who: Emitter,
) -> None:
    cut = [r for r in EMITTED if emitter(r) != ONE and (emitter(r) != who or r.kind not in FINAL_KINDS)]
    verdict, _ = settle(CONTINUING, WITHOUT_ONE, None, cut)
    name = "server" if who[0] == "server" else "worker 0"
    assert (verdict.status, verdict.cause) == (
        Status.FAILED,
        f"no result: the summary of {name} did not arrive",
    )
