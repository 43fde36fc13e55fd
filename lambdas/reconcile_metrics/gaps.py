"""Find what is missing between the records that tasks emitted and those that arrived.

Used by reconcile_metrics. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from contract.metrics import FINAL_KINDS, MetricRecord
from contract.plan import Experiment
from contract.table import Status
from lambdas.verdict import TaskOutcome, Verdict, judge

Emitter = tuple[str, int]
"""(role, rank)."""


@dataclass(frozen=True)
class Gaps:
    """What is missing of an experiment's records."""

    missing: dict[Emitter, int]
    """Emitters whose last record is there, or that ended well → how many records are known to be missing."""
    unknown: frozenset[Emitter]
    """Emitters that were cut off before a last record: how many they emitted is not known."""

    @property
    def closed(self) -> bool:
        """Nothing is known to be missing."""
        return not self.missing


def find_gaps(
    experiment: Experiment, outcomes: Sequence[TaskOutcome], records: Iterable[MetricRecord]
) -> Gaps:
    """Compare every emitter's records with the sequence number of its last one."""
    arrived: dict[Emitter, set[int]] = {}
    emitted: dict[Emitter, int] = {}
    for record in records:
        emitter: Emitter = (record.role, record.rank)
        arrived.setdefault(emitter, set()).add(record.seq)
        if record.kind in FINAL_KINDS:
            emitted[emitter] = record.seq + 1
    ended_well = {(outcome.role, outcome.rank) for outcome in outcomes if outcome.succeeded}
    missing: dict[Emitter, int] = {}
    unknown: set[Emitter] = set()
    for emitter in _emitters(experiment):
        there = arrived.get(emitter, set())
        if emitter in emitted:
            if lost := emitted[emitter] - len(there):
                missing[emitter] = lost
        elif emitter in ended_well:
            missing[emitter] = 1
        else:
            unknown.add(emitter)
    return Gaps(missing, frozenset(unknown))


def settle(
    experiment: Experiment,
    outcomes: Sequence[TaskOutcome],
    error: dict[str, str] | None,
    records: Sequence[MetricRecord],
) -> tuple[Verdict, list[str]]:
    """The last word on an experiment, now that no more records will come, and warnings on its data.

    An experiment whose tasks ended well but whose summaries never arrived has no result: it is FAILED.
    """
    verdict = judge(experiment, outcomes, records, error)
    gaps = find_gaps(experiment, outcomes, records)
    summarized = {(r.role, r.rank) for r in records if r.kind in {"server_summary", "worker_summary"}}
    if verdict.status is Status.COMPLETED and (lost := _emitters(experiment) - summarized):
        verdict = Verdict(Status.FAILED, f"no result: the summary of {_names(lost)} did not arrive")
    warnings = [
        f"{experiment.name}: {lost} record(s) of {_names([emitter])} did not arrive"
        for emitter, lost in sorted(gaps.missing.items())
    ]
    return verdict, warnings


def _emitters(experiment: Experiment) -> set[Emitter]:
    return {("server", 0), *(("worker", rank) for rank in range(experiment.workers))}


def _names(emitters: Iterable[Emitter]) -> str:
    return ", ".join("server" if role == "server" else f"worker {rank}" for role, rank in sorted(emitters))
