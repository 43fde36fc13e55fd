"""What is live of training: from the records of one delivery to the numbers that the dashboard draws.

Pure. The report is made from the rows, not from these.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from contract.metrics import MetricRecord, ServerInterval, WorkerEpoch
from contract.watching import ACCURACY, STALENESS, UPDATES_PER_SECOND, Metric


class Whose(NamedTuple):
    """The experiment that numbers are of."""

    study: str
    experiment: str


def live_values(records: Iterable[MetricRecord]) -> dict[Whose, list[tuple[Metric, float]]]:
    """The numbers of each experiment; one that said nothing live is not among them."""
    found: dict[Whose, list[tuple[Metric, float]]] = {}
    for record in records:
        if values := _values(record):
            found.setdefault(Whose(record.study, record.experiment), []).extend(values)
    return found


def lag_seconds(records: Iterable[MetricRecord], now: datetime) -> float | None:
    """Age of the oldest record; None where there is none. Clocks differ: never less than 0."""
    oldest = min((record.timestamp for record in records), default=None)
    return None if oldest is None else max(0.0, (now - oldest).total_seconds())


def _values(record: MetricRecord) -> list[tuple[Metric, float]]:
    match record:
        case WorkerEpoch(test_samples=samples) if samples:
            return [(ACCURACY, 100 * record.test_correct / samples)]
        case ServerInterval():
            values = [(UPDATES_PER_SECOND, record.updates_per_second)]
            return values if record.mean_staleness is None else [*values, (STALENESS, record.mean_staleness)]
        case _:
            return []
