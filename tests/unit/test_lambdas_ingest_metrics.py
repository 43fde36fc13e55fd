"""IngestMetrics: a delivery of CloudWatch Logs in, rows out; no line keeps its neighbours from being stored."""

import base64
import gzip
import json
from datetime import timedelta
from typing import Any

import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.metrics import MARKER, MetricRecord, ServerInterval, WorkerEpoch, to_line
from contract.plan import plan
from contract.study import parse_study
from contract.watching import UPDATES_PER_SECOND
from lambdas.ingest_metrics.handler import handler
from lambdas.ingest_metrics.live import lag_seconds, live_values
from lambdas.metric_lines import parse_lines
from lambdas.table import ExperimentTable
from tests.unit.conftest import STACK
from tests.unit.report_fixtures import records_of

(EXPERIMENT, _) = plan(parse_study({"matrix": {"workers": [2]}}), "study-1")
SAID = records_of(EXPERIMENT)


def delivery(messages: list[str], message_type: str = "DATA_MESSAGE") -> dict[str, Any]:
    """An event as a subscription filter sends it."""
    batch = {
        "messageType": message_type,
        "owner": "123456789012",
        "logGroup": "lockstep-tasks",
        "logStream": "lockstep/worker/0123456789abcdef",
        "subscriptionFilters": ["MetricLines"],
        "logEvents": [
            {"id": f"{number:056d}", "timestamp": 1_790_000_000_000 + number, "message": message}
            for number, message in enumerate(messages)
        ],
    }
    data = base64.b64encode(gzip.compress(json.dumps(batch).encode())).decode()
    return {"awslogs": {"data": data}}


def ingested(messages: list[str], context: LambdaContext, **how: str) -> dict[str, int]:
    result: dict[str, int] = handler(delivery(messages, **how), context)
    return result


def stored(table: ExperimentTable) -> list[MetricRecord]:
    return table.records("study-1", EXPERIMENT.name)


def emitted(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines that CloudWatch reads metrics out of."""
    lines = (json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line)
    return [{**line, "dimensions": line["_aws"]["CloudWatchMetrics"][0]["Dimensions"]} for line in lines]


def test_every_record_of_a_delivery_becomes_a_row(table: ExperimentTable, context: LambdaContext) -> None:
    assert ingested([to_line(record) for record in SAID], context) == {"stored": len(SAID), "refused": 0}
    assert stored(table) == SAID


def test_a_delivery_that_comes_twice_is_stored_once(table: ExperimentTable, context: LambdaContext) -> None:
    lines = [to_line(record) for record in SAID]
    ingested(lines, context)
    ingested(lines[::-1] + lines[:3], context)
    assert stored(table) == SAID


def test_a_damaged_line_is_counted_and_its_neighbours_are_kept(
    table: ExperimentTable,
    context: LambdaContext,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, cut, other = (to_line(record) for record in SAID[:3])
    absurd = to_line(SAID[3]).replace('"seq":3', '"seq":3e999')
    huge = to_line(SAID[1]).replace('"gradients":', '"gradients":9')
    huge = huge.replace('"gradients":9', '"gradients":' + "9" * 60)
    result = ingested([good, cut[:-9], absurd, huge, other], context)
    assert result == {"stored": 2, "refused": 3}
    assert stored(table) == [SAID[0], SAID[2]]
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.getMessage() for record in warnings] == ["refused a metric line"] * 3
    told = [vars(record) for record in warnings]
    assert [record["problem"].partition(":")[0] for record in told] == [
        "document",
        "server_summary.seq",
        "server_interval.gradients",
    ]
    assert {record["log_stream"] for record in told} == {"lockstep/worker/0123456789abcdef"}
    counted, *_ = emitted(capsys)
    assert (counted["RecordsStored"], counted["LinesRefused"]) == ([2.0], [3.0])
    assert {record["study_id"] for record in told} == {"study-1"}


def test_a_line_that_only_mentions_the_marker_is_passed_over(
    table: ExperimentTable, context: LambdaContext
) -> None:
    lines = [f"printing {MARKER} lines", f"{MARKER}:", MARKER, "", f" {MARKER} {{}}"]
    assert ingested(lines, context) == {"stored": 0, "refused": 0}
    assert stored(table) == []


def test_line_ends_of_the_forwarder_do_no_harm(table: ExperimentTable, context: LambdaContext) -> None:
    assert ingested([to_line(SAID[0]) + "\n", to_line(SAID[1]) + "\r\n"], context) == {
        "stored": 2,
        "refused": 0,
    }
    assert stored(table) == SAID[:2]


def test_a_control_message_is_no_delivery(table: ExperimentTable, context: LambdaContext) -> None:
    """CloudWatch Logs sends one to see whether the function can be reached."""
    result = ingested([to_line(SAID[0])], context, message_type="CONTROL_MESSAGE")
    assert result == {"stored": 0, "refused": 0}
    assert stored(table) == []


def test_a_refusal_is_short() -> None:
    parsed = parse_lines([f"{MARKER} " + json.dumps({"kind": "x" * 50_000})])
    assert parsed.records == []
    assert [len(refused.problem) <= 500 for refused in parsed.refusals] == [True]


def test_a_refused_line_says_whose_it_is_as_far_as_it_can_be_read() -> None:
    lines = [to_line(SAID[0])[:-9], f'{MARKER} {{"study": "study-2"}}', f"{MARKER} {{", f"{MARKER} 1"]
    assert [refused.study for refused in parse_lines(lines).refusals] == ["study-1", "study-2", "", ""]


def other_study(records: list[MetricRecord]) -> list[MetricRecord]:
    """The same records, said by another study's tasks."""
    return [record.model_copy(update={"study": "study-2"}) for record in records]


def test_what_was_stored_is_logged_for_each_study_of_a_delivery(
    table: ExperimentTable, context: LambdaContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ingested([to_line(record) for record in [*SAID, *other_study(SAID[:2])]], context)
    told = [vars(record) for record in caplog.records if record.getMessage() == "stored"]
    assert {record["study_id"]: record["records"] for record in told} == {"study-1": len(SAID), "study-2": 2}
    assert len(stored(table)) == len(SAID)


def test_what_is_live_is_emitted_for_each_experiment(
    table: ExperimentTable, context: LambdaContext, capsys: pytest.CaptureFixture[str]
) -> None:
    del table
    epoch = next(record for record in SAID if isinstance(record, WorkerEpoch))
    interval = next(record for record in SAID if isinstance(record, ServerInterval))
    lines = [to_line(record) for record in [epoch, epoch, interval, *other_study([epoch])]]
    ingested(lines, context)
    own, first, second = emitted(capsys)
    assert own["dimensions"] == [["stack"]]
    assert own["stack"] == STACK
    assert own["IngestLagSeconds"][0] > 0
    accuracy = 100 * epoch.test_correct / epoch.test_samples
    assert first["dimensions"] == second["dimensions"] == [["stack", "study", "experiment"]]
    assert (first["stack"], first["study"], first["experiment"]) == (STACK, "study-1", EXPERIMENT.name)
    assert first["AccuracyPercent"] == [accuracy, accuracy]
    assert first["UpdatesPerSecond"] == [interval.updates_per_second]
    assert first["MeanStaleness"] == [interval.mean_staleness]
    assert second["study"] == "study-2"
    assert second["AccuracyPercent"] == [accuracy]


def test_only_what_was_measured_is_live() -> None:
    """No accuracy without a sample, no staleness without a gradient; and nothing of an experiment's start and end."""
    epoch = next(record for record in SAID if isinstance(record, WorkerEpoch))
    interval = next(record for record in SAID if isinstance(record, ServerInterval))
    unmeasured = [
        epoch.model_copy(update={"test_samples": 0, "test_correct": 0}),
        interval.model_copy(update={"mean_staleness": None}),
    ]
    [(whose, values)] = live_values([*unmeasured, SAID[0]]).items()
    assert whose == ("study-1", EXPERIMENT.name)
    assert values == [(UPDATES_PER_SECOND, interval.updates_per_second)]
    assert live_values([SAID[0]]) == {}


def test_lag_is_that_of_the_oldest_record_and_never_negative() -> None:
    oldest = min(record.timestamp for record in SAID)
    assert lag_seconds(SAID, oldest + timedelta(seconds=90)) == 90
    assert lag_seconds(SAID, oldest - timedelta(seconds=1)) == 0
    assert lag_seconds([], oldest) is None
