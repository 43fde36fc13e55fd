"""Parse many log lines: metric records, refusals, and the lines that are neither.

Used by ingest_metrics and reconcile_metrics. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from contract.errors import MetricLineRefused
from contract.metrics import MetricRecord, from_line, is_metric_line


@dataclass(frozen=True)
class ParsedLines:
    """What was in a batch of lines."""

    records: list[MetricRecord]
    refusals: list[str]
    """One line for each metric line that could not be read."""


def parse_lines(lines: Iterable[str]) -> ParsedLines:
    """Read every metric line; lines that merely mention the marker are passed over."""
    records: list[MetricRecord] = []
    refusals: list[str] = []
    for line in lines:
        if not is_metric_line(line):
            continue
        try:
            records.append(from_line(line.rstrip("\r\n")))
        except MetricLineRefused as refusal:
            refusals.append("; ".join(refusal.problems)[:500])
    return ParsedLines(records, refusals)
