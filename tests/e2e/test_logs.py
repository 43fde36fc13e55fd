"""Logs: every line says whose study it is of, and none holds what lets anybody in."""

import json
from collections.abc import Callable
from typing import Any

from contract.metrics import from_line, is_metric_line
from contract.table import SERVER_TOKEN, TASK_TOKEN
from local.cloud import Cloud
from tests.e2e.machine import QUICK, client


def test_lines_name_their_study_and_hold_no_token(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given a study that has run, and what its tasks were let in with
    arn = start({"matrix": {"workers": [2]}, "training": QUICK, "exchange": {"tls": True}})
    assert ended(arn)["status"] == "SUCCEEDED"
    study = arn.rpartition(":")[2]
    tokens = _tokens(cloud, study)
    assert len(tokens) == 4, "a task token and one of the server for each experiment"

    # Then no line of any log holds it
    groups = _lines_by_group(cloud)
    everything = "\n".join(line for lines in groups.values() for line in lines)
    assert study in everything
    assert [token for token in tokens if token in everything] == []
    assert "PRIVATE KEY" not in everything

    # And lines of tasks name their study and experiment, in a record or before what they say
    said = [line for line in groups.pop(cloud.outputs["LogGroupName"]) if study in line]
    whose = {f"{study}/{name}" for name in ("sync_2workers", "async_2workers")}
    for line in said:
        if is_metric_line(line):
            record = from_line(line)
            assert f"{record.study}/{record.experiment}" in whose
        else:
            assert line.partition(":")[0].split()[-1] in whose
    assert not all(map(is_metric_line, said))

    # And so do those of every function that worked on it
    told = [
        line for lines in groups.values() for line in lines if line.startswith("{") and '"_aws"' not in line
    ]
    services = {line["service"] for line in map(json.loads, told) if line.get("study_id") == study}
    assert services >= {
        "plan_study",
        "ingest_metrics",
        "judge_experiment",
        "reconcile_metrics",
        "publish_report",
    }


def _tokens(cloud: Cloud, study: str) -> set[str]:
    """Task tokens and what lets workers in, of one study."""
    pages = client(cloud, "dynamodb").get_paginator("scan").paginate(TableName=cloud.outputs["TableName"])
    rows = [row for page in pages for row in page["Items"] if study in row["pk"]["S"]]
    return {row[name]["S"] for row in rows for name in (TASK_TOKEN, SERVER_TOKEN) if name in row}


def _lines_by_group(cloud: Cloud) -> dict[str, list[str]]:
    """Every line of every log group."""
    logs = client(cloud, "logs")
    groups = [g for page in logs.get_paginator("describe_log_groups").paginate() for g in page["logGroups"]]
    return {
        group["logGroupName"]: [
            event["message"]
            for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group["logGroupName"])
            for event in page["events"]
        ]
        for group in groups
    }
