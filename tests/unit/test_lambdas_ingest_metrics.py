"""IngestMetrics: a delivery of CloudWatch Logs in, rows out; no line keeps its neighbours from being stored."""

import base64
import gzip
import json
from typing import Any

import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.metrics import MARKER, MetricRecord, to_line
from contract.plan import plan
from contract.study import parse_study
from lambdas.ingest_metrics.handler import handler
from lambdas.metric_lines import parse_lines
from lambdas.table import ExperimentTable
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
    assert [record.getMessage() for record in caplog.records] == ["refused a metric line"] * 3
    told = [vars(record) for record in caplog.records]
    assert [record["problem"].partition(":")[0] for record in told] == [
        "document",
        "server_summary.seq",
        "server_interval.gradients",
    ]
    assert {record["log_stream"] for record in told} == {"lockstep/worker/0123456789abcdef"}
    (counted,) = (json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line)
    assert (counted["RecordsStored"], counted["LinesRefused"]) == ([2.0], [3.0])


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
    assert [len(refusal) <= 500 for refusal in parsed.refusals] == [True]
