"""Adapter to CloudWatch Logs: what a task that did not succeed wrote last.

Used by judge_experiment, reconcile_metrics and sweep_tasks, once the tasks have ended.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import boto3
from botocore.exceptions import ClientError

from contract.metrics import MetricRecord, is_metric_line
from contract.task import log_stream
from lambdas.verdict import TaskOutcome, failed_in_order

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

TASKS: Final = 8
"""Tasks of one experiment whose logs are read: those nearest to the root of its failure."""

LINES: Final = 12
CHARACTERS: Final = 300
"""How much of one log is kept: with TASKS a small part of the 400 KB that a row of the table holds."""

EVENTS_AT_ONCE: Final = 100
PAGES: Final = 3


class TaskLogs:
    """The log group of all tasks."""

    def __init__(self, logs: "CloudWatchLogsClient", log_group_name: str) -> None:
        self._logs = logs
        self._group = log_group_name

    @classmethod
    def named(cls, log_group_name: str, session: boto3.Session | None = None) -> Self:
        """The log group of that name in the account of `session` (default: the one that all calls share)."""
        return cls((session or boto3).client("logs"), log_group_name)

    def attached(
        self, outcomes: Sequence[TaskOutcome], records: Iterable[MetricRecord] = ()
    ) -> list[TaskOutcome]:
        """The same outcomes; those that tell why an experiment did not succeed have their last lines.

        A log that cannot be read says so in their place: a verdict does not depend on it.
        """
        lines = {
            outcome.task_arn: self._last_lines(outcome)
            for outcome in failed_in_order(outcomes, records)[:TASKS]
            if outcome.task_arn
        }
        return [
            outcome.model_copy(update={"last_lines": lines.get(outcome.task_arn) or outcome.last_lines})
            for outcome in outcomes
        ]

    def _last_lines(self, outcome: TaskOutcome) -> tuple[str, ...]:
        """What it wrote for people, and only where that is nothing its last records."""
        try:
            lines = self._newest(log_stream(outcome.role, outcome.task_arn))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            # A task that never ran has no log stream.
            return () if code == "ResourceNotFoundException" else (f"(its log could not be read: {code})",)
        for_people = [line for line in lines if not is_metric_line(line)]
        return tuple(line[:CHARACTERS] for line in (for_people or lines)[-LINES:])

    def _newest(self, stream: str) -> list[str]:
        """An answer may be empty although there is more behind its token. Source: API reference, GetLogEvents."""
        request: dict[str, Any] = {"logGroupName": self._group, "logStreamName": stream}
        for _ in range(PAGES):
            page = self._logs.get_log_events(**request, limit=EVENTS_AT_ONCE, startFromHead=False)
            token = page.get("nextBackwardToken")
            if page["events"] or token is None or token == request.get("nextToken"):
                return [event["message"].rstrip("\r\n") for event in page["events"]]
            request["nextToken"] = token
        return []
