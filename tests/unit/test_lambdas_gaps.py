"""What is missing between the records that were emitted and those that arrived."""

from hypothesis import given
from hypothesis import strategies as st

from contract.metrics import FINAL_KINDS, MetricRecord
from contract.plan import plan
from contract.study import parse_study
from contract.table import Status
from lambdas.reconcile_metrics.gaps import find_gaps, settle
from lambdas.verdict import Emitter, TaskOutcome
from tests.unit.report_fixtures import failed_outcome, records_of

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
    killed = [
        task if task.label != "worker 1" else task.model_copy(update={"exit_code": 137}) for task in WELL
    ]
    verdict, warnings = settle(EXPERIMENT, killed, None, failed.records)
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
