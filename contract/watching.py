"""Numbers that functions emit for people to watch: names, units and dimensions of CloudWatch metrics.

Emitted by functions, drawn and alarmed on by the stack; knows no AWS SDK.
"""

from typing import Final, NamedTuple

NAMESPACE: Final = "Lockstep"

STACK_DIMENSION: Final = "stack"
"""On every metric: stacks in one account do not mix."""

STUDY_DIMENSION: Final = "study"
EXPERIMENT_DIMENSION: Final = "experiment"
"""Beside the stack on what is live of training: each experiment is a line of its own.

CloudWatch charges each combination for the hours in which it was sent: an experiment of an hour costs 0.12 cents.
"""


class Metric(NamedTuple):
    """One number; `unit` is CloudWatch's word."""

    name: str
    unit: str


RECORDS_STORED: Final = Metric("RecordsStored", "Count")
LINES_REFUSED: Final = Metric("LinesRefused", "Count")
INGEST_LAG: Final = Metric("IngestLagSeconds", "Seconds")
"""From when a record was emitted to when it was stored; of each delivery its oldest record."""

TASKS_SWEPT: Final = Metric("TasksSwept", "Count")
"""Tasks that ran on, minutes after their execution had ended or after their experiment's verdict, and were stopped."""

ACCURACY: Final = Metric("AccuracyPercent", "Percent")
"""Of each worker on its share of the test set; the mean over an epoch's workers is the experiment's."""

UPDATES_PER_SECOND: Final = Metric("UpdatesPerSecond", "Count/Second")
STALENESS: Final = Metric("MeanStaleness", "Count")
"""Updates between the parameters that a gradient was computed on and those that it was applied to."""
