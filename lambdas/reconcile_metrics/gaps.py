"""Find what is missing between the records that tasks emitted and those that arrived.

Used by reconcile_metrics. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from contract.metrics import FINAL_KINDS, MetricRecord
from contract.plan import Experiment
from contract.table import Status
from lambdas.verdict import SUMMARIES, Emitter, TaskOutcome, Verdict, emitters_of, judge, names_of


@dataclass(frozen=True)
class Gaps:
    """What is missing of an experiment's records."""

    missing: dict[Emitter, int]
    """Emitters → how many of their records are known to be missing; those that miss none are left out."""
    unknown: frozenset[Emitter]
    """Emitters that were cut off before a last record: how many they emitted is not known."""

    @property
    def suspects(self) -> frozenset[Emitter]:
        """Emitters that may have emitted more than arrived."""
        return self.unknown | self.missing.keys()

    @property
    def closed(self) -> bool:
        """Nothing is known to be missing."""
        return not self.missing


def find_gaps(
    experiment: Experiment, outcomes: Sequence[TaskOutcome], records: Iterable[MetricRecord]
) -> Gaps:
    """Compare every emitter's records with the highest sequence number that it is known to have reached.

    Records are numbered 0, 1, 2 … without a gap; one that ended well ended with a final record.
    """
    arrived: dict[Emitter, set[int]] = {}
    finished: set[Emitter] = set()
    for record in records:
        emitter: Emitter = (record.role, record.rank)
        arrived.setdefault(emitter, set()).add(record.seq)
        if record.kind in FINAL_KINDS:
            finished.add(emitter)
    ended_well = {(outcome.role, outcome.rank) for outcome in outcomes if outcome.succeeded}
    emitters = emitters_of(experiment)
    missing: dict[Emitter, int] = {}
    for emitter in emitters:
        there = arrived.get(emitter, set())
        emitted = max(there, default=-1) + 1 + (emitter in ended_well - finished)
        if lost := emitted - len(there):
            missing[emitter] = lost
    return Gaps(missing, frozenset(emitters - finished - ended_well))


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
    summarized = {(r.role, r.rank) for r in records if r.kind in SUMMARIES}
    if verdict.status is Status.COMPLETED and (lost := emitters_of(experiment) - summarized):
        verdict = Verdict(Status.FAILED, f"no result: the summary of {names_of(lost)} did not arrive")
    warnings = [
        f"{experiment.name}: {lost} record(s) of {names_of([emitter])} did not arrive"
        for emitter, lost in sorted(gaps.missing.items())
    ]
    return verdict, warnings
