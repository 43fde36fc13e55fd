"""Parse many log lines: metric records, refusals, and the lines that are neither.

Used by ingest_metrics and reconcile_metrics. Pure.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from contract.errors import MetricLineRefused
from contract.metrics import MetricRecord, from_line, is_metric_line

_STUDY = re.compile(r'"study": ?"([\w.-]{1,128})"')


@dataclass(frozen=True)
class RefusedLine:
    """A metric line that could not be read."""

    problem: str
    study: str
    """What the line says of it, as far as that can be read; empty where it cannot."""


@dataclass(frozen=True)
class ParsedLines:
    """What was in a batch of lines."""

    records: list[MetricRecord]
    refusals: list[RefusedLine]


def parse_lines(lines: Iterable[str]) -> ParsedLines:
    """Read every metric line; lines that merely mention the marker are passed over."""
    records: list[MetricRecord] = []
    refusals: list[RefusedLine] = []
    for line in lines:
        if not is_metric_line(line):
            continue
        try:
            records.append(from_line(line.rstrip("\r\n")))
        except MetricLineRefused as refusal:
            study = _STUDY.search(line)
            refusals.append(RefusedLine("; ".join(refusal.problems)[:500], study[1] if study else ""))
    return ParsedLines(records, refusals)
