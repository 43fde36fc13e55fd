"""Metric lines: what a task prints is read back as it was said, and nothing else is read at all."""

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import MetricLineRefused
from contract.metrics import (
    FILTER_PATTERN,
    FINAL_KINDS,
    LARGEST,
    MARKER,
    MAX_LINE_BYTES,
    MetricRecord,
    ServerInterval,
    TaskFailed,
    from_line,
    from_mapping,
    is_metric_line,
    to_line,
    to_mapping,
    utc_now,
)
from tests.unit.metric_records import KINDS, records

INTERVAL: dict[str, Any] = {
    "schema_version": 1,
    "study": "demo-1",
    "experiment": "sync_2workers",
    "role": "server",
    "rank": 0,
    "seq": 3,
    "timestamp": "2026-03-01T12:00:00Z",
    "kind": "server_interval",
    "interval_seconds": 1.0,
    "version": 40,
    "updates": 20,
    "updates_per_second": 20.0,
    "gradients": 40,
    "mean_staleness": 0.5,
    "max_staleness": 1,
}


def line_of(text: str) -> str:
    return f"{MARKER} {text}"


def changed(**changes: Any) -> str:
    return line_of(json.dumps(INTERVAL | changes))


def problems(line: str) -> tuple[str, ...]:
    with pytest.raises(MetricLineRefused) as refused:
        from_line(line)
    return refused.value.problems


def test_every_kind_of_record_is_tried_here() -> None:
    (union, _) = get_args(MetricRecord)
    assert set(get_args(union)) == set(KINDS)
    assert {kind.model_fields["kind"].default for kind in KINDS} > FINAL_KINDS


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_record_survives_its_line(kind: Any, data: st.DataObject) -> None:
    record = data.draw(records(kind))
    line = to_line(record)
    assert line.isascii()
    assert line.splitlines() == [line]
    assert is_metric_line(line)
    assert from_line(line) == record


@given(record=records())
def test_a_record_survives_plain_json_values(record: MetricRecord) -> None:
    assert from_mapping(json.loads(json.dumps(to_mapping(record), allow_nan=False))) == record


def test_a_record_from_before_attempts_were_counted_is_read_as_the_first() -> None:
    record = from_line(changed())
    assert isinstance(record, ServerInterval)
    assert (record.attempt, record.workers_away, record.sent_bytes) == (0, 0, 0)
    assert from_line(changed(attempt=3)) == record.model_copy(update={"attempt": 3})


def test_the_longest_reason_is_not_too_long_for_a_line() -> None:
    """Every character outside the basic plane takes twelve in ASCII."""
    record = TaskFailed(
        study="🙂" * 128,
        experiment="🙂" * 128,
        role="worker",
        rank=31,
        seq=10**9 - 1,
        timestamp=utc_now(),
        reason="🙂" * 4000,
        lost_peer="worker 31",
    )
    assert len(to_line(record)) < MAX_LINE_BYTES
    assert from_line(to_line(record)) == record


def test_the_filter_lets_exactly_the_marker_through() -> None:
    assert f'"{MARKER}"' == FILTER_PATTERN
    record = ServerInterval.model_validate(INTERVAL)
    assert to_line(record).startswith('METRICS_JSON {"schema_version":1,"study":"demo-1",')


def test_times_are_in_utc() -> None:
    assert utc_now().tzinfo is UTC
    record = from_line(changed(timestamp="2026-03-01T14:00:00+02:00"))
    assert record.timestamp == datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "METRICS_JSON", "METRICS_JSONL {}", " METRICS_JSON {}", "metrics_json {}", "about METRICS_JSON {}"],
)
def test_a_line_that_only_mentions_the_marker_is_no_metric_line(text: str) -> None:
    assert not is_metric_line(text)
    assert problems(text) == ("the line does not begin with 'METRICS_JSON '",)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"role": "client"}, "role"),
        ({"rank": 32}, "rank"),
        ({"rank": -1}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"attempt": -1}, "attempt"),
        ({"attempt": 1000}, "attempt"),
        ({"attempt": None}, "attempt"),
        ({"seq": "first"}, "seq"),
        ({"seq": 10**9}, "seq"),
        ({"study": ""}, "study"),
        ({"study": None}, "study"),
        ({"experiment": "x" * 129}, "experiment"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2026-03-01T12:00:00"}, "timestamp"),
        ({"interval_seconds": -0.1}, "interval_seconds"),
        ({"interval_seconds": LARGEST * 1.01}, "interval_seconds"),
        ({"gradients": 2**63}, "gradients"),
        ({"gradients": 10**300}, "gradients"),
        ({"gradients": []}, "gradients"),
        ({"mean_staleness": float("nan")}, "mean_staleness"),
        ({"updates_per_second": float("inf")}, "updates_per_second"),
        ({"updates_per_second": None}, "updates_per_second"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(changes: dict[str, Any], place: str) -> None:
    (problem,) = problems(changed(**changes))
    assert place in problem.split(":")[0]


@pytest.mark.parametrize("key", sorted(INTERVAL.keys() - {"schema_version", "kind"}))
def test_a_missing_value_is_named_by_its_field(key: str) -> None:
    (problem,) = problems(line_of(json.dumps({k: v for k, v in INTERVAL.items() if k != key})))
    assert problem == f"server_interval.{key}: Field required"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        "{}",
        '{"kind": "weather"}',
        '{"kind": []}',
        json.dumps(INTERVAL)[:-1],
        json.dumps(INTERVAL) + "}",
        json.dumps(INTERVAL).replace("0.5", "1e999"),
        json.dumps(INTERVAL).replace("0.5", "NaN"),
        json.dumps(INTERVAL).replace("0.5", "-Infinity"),
        json.dumps(INTERVAL).replace("demo-1", "\\ud800"),
        json.dumps(INTERVAL).replace("demo-1", "\ud800"),
        "[" * 60_000,
        '{"a":' * 10_000,
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    assert problems(line_of(text))


def test_a_huge_line_is_not_even_parsed() -> None:
    assert problems(line_of("x" * MAX_LINE_BYTES)) == (
        f"{MAX_LINE_BYTES + len(MARKER) + 1} characters; at most {MAX_LINE_BYTES} are read",
    )


@given(record=records(), data=st.data())
def test_a_truncated_line_is_refused(record: MetricRecord, data: st.DataObject) -> None:
    line = to_line(record)
    cut = data.draw(st.integers(0, len(line) - 1))
    with pytest.raises(MetricLineRefused):
        from_line(line[:cut])


@given(record=records(), data=st.data())
def test_a_damaged_line_is_refused_or_still_a_whole_record(record: MetricRecord, data: st.DataObject) -> None:
    line = to_line(record)
    at = data.draw(st.integers(0, len(line)))
    gone = data.draw(st.integers(0, 5))
    damaged = line[:at] + data.draw(st.text(max_size=5)) + line[at + gone :]
    try:
        read = from_line(damaged)
    except MetricLineRefused:
        return
    assert from_line(to_line(read)) == read


@given(text=st.text(), marked=st.booleans())
def test_any_text_is_refused_with_a_reason(text: str, marked: bool) -> None:
    assert problems(line_of(text) if marked else text)


@given(raw=st.binary())
def test_any_bytes_are_refused_with_a_reason(raw: bytes) -> None:
    assert problems(line_of(raw.decode("utf-8", "surrogateescape")))
    assert problems(line_of(raw.decode("latin-1")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    key=st.sampled_from(sorted(INTERVAL)) | st.text(max_size=5),
    value=JSON,
    through_text=st.booleans(),
)
def test_any_value_in_any_field_is_refused_or_taken(key: str, value: Any, through_text: bool) -> None:
    document = INTERVAL | {key: value}
    try:
        record = from_line(line_of(json.dumps(document))) if through_text else from_mapping(document)
    except MetricLineRefused:
        return
    assert from_line(to_line(record)) == record
