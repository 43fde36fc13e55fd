"""Keys of the table: a row's place follows from what it is about, and rows sort as they were emitted."""

import re

from hypothesis import given
from hypothesis import strategies as st

from contract.document import MAX_WORKERS
from contract.metrics import MAX_ATTEMPTS, MetricRecord
from contract.study import NAME_PATTERN
from contract.table import (
    EXPERIMENT_PREFIX,
    STUDY_SORT,
    TERMINAL,
    Status,
    emitter_prefix,
    experiment_sort,
    metric_key,
    metric_sort,
    metrics_partition,
    rendezvous_sort,
    server_partition,
    study_partition,
)
from tests.unit.metric_records import records

EMITTED = st.tuples(
    st.sampled_from(["server", "worker"]),
    st.integers(0, MAX_WORKERS - 1),
    st.integers(0, MAX_ATTEMPTS - 1),
    st.integers(0, 10**9 - 1),
)
EXECUTION_NAMES = st.from_regex(re.compile(r"[A-Za-z0-9_.+=@!'()\-]{1,80}"), fullmatch=True)
EXPERIMENT_NAMES = st.from_regex(re.compile(NAME_PATTERN.replace("$", r"\Z")), fullmatch=True)


@given(one=EMITTED, other=EMITTED)
def test_sort_keys_sort_by_emitter_then_in_the_order_of_emission(
    one: tuple[str, int, int, int], other: tuple[str, int, int, int]
) -> None:
    assert (metric_sort(*one) < metric_sort(*other)) == (one < other)
    assert (metric_sort(*one) == metric_sort(*other)) == (one == other)


@given(one=EMITTED, other=EMITTED)
def test_an_emitters_prefix_finds_its_records_alone(
    one: tuple[str, int, int, int], other: tuple[str, int, int, int]
) -> None:
    assert metric_sort(*one).startswith(emitter_prefix(*other[:2])) == (one[:2] == other[:2])


@given(one=st.tuples(EXECUTION_NAMES, EXPERIMENT_NAMES), other=st.tuples(EXECUTION_NAMES, EXPERIMENT_NAMES))
def test_no_two_experiments_share_a_partition(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (metrics_partition(*one) == metrics_partition(*other)) == (one == other)
    assert (server_partition(*one) == server_partition(*other)) == (one == other)


@given(record=records())
def test_a_records_key_is_within_dynamodbs_limits(record: MetricRecord) -> None:
    key = metric_key(record)
    assert key == {
        "pk": f"EXPERIMENT#{record.study}/{record.experiment}",
        "sk": f"METRIC#{record.role}#{record.rank:03d}#{record.attempt:03d}#{record.seq:09d}",
    }
    assert len(key["pk"].encode()) <= 2048
    assert len(key["sk"].encode()) <= 1024


def test_the_rows_of_a_study_are_told_apart_by_their_sort_keys() -> None:
    assert study_partition("s") == "STUDY#s"
    assert experiment_sort("sync_1worker") == "EXPERIMENT#sync_1worker"
    assert rendezvous_sort("sync_1worker", 2) == "RENDEZVOUS#sync_1worker#2"
    assert not STUDY_SORT.startswith(EXPERIMENT_PREFIX)


def test_what_lets_workers_in_is_in_a_partition_of_its_own() -> None:
    assert server_partition("s", "sync_1worker") == "SERVER#s/sync_1worker"


def test_what_is_terminal_has_ended() -> None:
    assert frozenset(Status) - TERMINAL == {Status.PLANNED, Status.RUNNING, Status.STOPPING}
