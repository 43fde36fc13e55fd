"""Adapter to CloudWatch Logs: the metric lines that a study has written.

Used by reconcile_metrics.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3

from contract.metrics import FILTER_PATTERN

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient


def metric_lines(
    log_group_name: str, study_id: str, since_ms: int, logs: "CloudWatchLogsClient | None" = None
) -> Iterator[str]:
    """Every line with the marker and the study's id since `since_ms` (milliseconds since the epoch), as it comes.

    A line of another study may be among them, where it mentions this one.
    """
    client = logs or boto3.client("logs")
    pages = client.get_paginator("filter_log_events").paginate(
        logGroupName=log_group_name,
        startTime=since_ms,
        # Terms side by side must all be there; source: CloudWatch Logs User Guide, filter pattern syntax.
        filterPattern=f'{FILTER_PATTERN} "{study_id}"',
    )
    for page in pages:
        for event in page["events"]:
            yield event["message"]
