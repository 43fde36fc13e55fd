"""Find what is missing between the records that tasks emitted and those that arrived.

Used by reconcile_metrics. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from contract.metrics import FINAL_KINDS, MetricRecord
from contract.plan import Experiment
from contract.table import Status
from lambdas.verdict import (
    Emitter,
    TaskOutcome,
    Verdict,
    emitters_of,
    judge,
    names_of,
    summarized,
    went_on_without,
)


@dataclass(frozen=True)
class Gaps:
    """What is missing of an experiment's records."""

    missing: dict[Emitter, int]
    """Emitters → how many of their records are known to be missing; those that miss none are left out."""
    unknown: frozenset[Emitter]
    """Emitters of which an attempt was cut off before a last record: how many it emitted is not known."""
    speechless: frozenset[Emitter]
    """Those of them that ended by themselves, with an error: that should be on its way."""

    @property
    def suspects(self) -> frozenset[Emitter]:
        """Emitters that may have emitted more than arrived."""
        return self.unknown | self.missing.keys()

    @property
    def closed(self) -> bool:
        """Nothing is known to be missing, or likely to come."""
        return not self.missing and not self.speechless


def find_gaps(
    experiment: Experiment, outcomes: Sequence[TaskOutcome], records: Iterable[MetricRecord]
) -> Gaps:
    """Compare the records of every attempt with the highest sequence number that it is known to have reached.

    Each attempt numbers its records 0, 1, 2 … without a gap; an emitter that ended well ended with a summary.
    """
    records = list(records)
    arrived: dict[Emitter, dict[int, set[int]]] = {}
    for record in records:
        attempts = arrived.setdefault((record.role, record.rank), {})
        attempts.setdefault(record.attempt, set()).add(record.seq)
    final = {(record.role, record.rank, record.attempt) for record in records if record.kind in FINAL_KINDS}
    ended_well = {(outcome.role, outcome.rank) for outcome in outcomes if outcome.succeeded}
    ends = {(o.role, o.rank): o for o in sorted(outcomes, key=lambda outcome: outcome.stopped_at)}
    unsummarized = ended_well - summarized(records)
    missing: dict[Emitter, int] = {}
    unknown: set[Emitter] = set()
    speechless: set[Emitter] = set()
    for emitter in emitters_of(experiment):
        attempts = arrived.get(emitter, {})
        lost = sum(max(there) + 1 - len(there) for there in attempts.values()) + (emitter in unsummarized)
        if lost:
            missing[emitter] = lost
        # What the last attempt of one that ended well may lack is counted above.
        last = max(attempts, default=0)
        cut_off = {attempt for attempt in attempts or {0} if (*emitter, attempt) not in final}
        if cut_off - ({last} if emitter in ended_well else set()):
            unknown.add(emitter)
            if last in cut_off and emitter in ends and ends[emitter].says_why:
                speechless.add(emitter)
    return Gaps(missing, frozenset(unknown), frozenset(speechless))


def settle(
    experiment: Experiment,
    outcomes: Sequence[TaskOutcome],
    error: dict[str, str] | None,
    records: Sequence[MetricRecord],
) -> tuple[Verdict, list[str]]:
    """The last word on an experiment, now that no more records will come, and warnings on its data.

    An experiment whose tasks ended well but whose summaries never arrived has no result: it is FAILED. Nobody
    waits for the summaries of workers that it went on without.
    """
    verdict = judge(experiment, outcomes, records, error)
    gaps = find_gaps(experiment, outcomes, records)
    lost = went_on_without(experiment, outcomes, records) or set()
    if verdict.status is Status.COMPLETED and (
        unheard := emitters_of(experiment) - lost - summarized(records)
    ):
        verdict = Verdict(Status.FAILED, f"no result: the summary of {names_of(unheard)} did not arrive")
    warnings = [f"{experiment.name}: {verdict.cause}"] if verdict.status is Status.COMPLETED and lost else []
    warnings += [
        f"{experiment.name}: {lost} record(s) of {names_of([emitter])} did not arrive"
        for emitter, lost in sorted(gaps.missing.items())
    ]
    return verdict, warnings
