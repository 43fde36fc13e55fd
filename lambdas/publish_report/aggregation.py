"""Aggregate the records of one experiment into its result.

Pure: the same set of records gives the same result, in whatever order and however often each arrived.
A figure whose records are missing is None; none is estimated from the rest.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, TypeVar

from contract.aggregation import BARRIER_MODES
from contract.metrics import (
    FINAL_KINDS,
    MetricRecord,
    Role,
    ServerInterval,
    ServerSummary,
    TaskFailed,
    TaskStarted,
    WorkerEpoch,
    WorkerSummary,
)
from contract.plan import Experiment
from contract.table import Status
from lambdas.publish_report.results import (
    AsyncServerMetrics,
    EmitterRecords,
    EpochAccuracy,
    EpochTimes,
    ExperimentOutcome,
    ExperimentResult,
    ServerMetrics,
    TaskFailure,
    TaskProvenance,
    TimeSplit,
    Traffic,
    WorkerMetrics,
    WorkerResult,
)
from lambdas.verdict import failed_in_order, first_to_fail

Kind = TypeVar("Kind", bound=MetricRecord)
Emitter = tuple[Role, int]


def experiment_result(outcome: ExperimentOutcome) -> ExperimentResult:
    """The result of one experiment from whatever records of it arrived."""
    experiment, records = outcome.experiment, unique_records(outcome.records)
    epochs = _of(records, WorkerEpoch)
    summaries = _of(records, WorkerSummary)
    return ExperimentResult(
        study_id=experiment.study_id,
        experiment_name=experiment.name,
        status=outcome.status,
        cause=outcome.cause,
        seed=experiment.seed,
        aggregation=experiment.aggregation,
        training=experiment.training,
        compute=experiment.compute,
        exchange=experiment.exchange,
        network=experiment.network,
        faults=experiment.faults,
        on_worker_loss=experiment.on_worker_loss,
        checkpoint=experiment.checkpoint,
        shards=experiment.shards,
        server_metrics=_server_metrics(experiment, records),
        worker_metrics_aggregated=WorkerMetrics(
            num_workers=len({r.rank for r in records if r.role == "worker"}),
            average_epoch_time_seconds=fmean(e.epoch_seconds for e in epochs) if epochs else None,
            epoch_times_by_epoch=_epoch_times(epochs),
            accuracy_by_epoch=_epoch_accuracies(epochs),
            **_final_accuracy(experiment, epochs, summaries, _lost(_of(records, ServerSummary))),
        ),
        time_split=_time_split(epochs, summaries),
        traffic=_traffic(summaries, _of(records, ServerSummary)),
        workers=[_picked(WorkerResult, summary) for summary in summaries],
        failures=[_picked(TaskFailure, failed) for failed in _of(records, TaskFailed)],
        **_ends(outcome, records),
        provenance=[_picked(TaskProvenance, started) for started in _of(records, TaskStarted)],
        records=_emitter_records(experiment, records),
    )


def _ends(outcome: ExperimentOutcome, records: Sequence[MetricRecord]) -> dict[str, Any]:
    """How the tasks of an experiment ended that did not complete, and which of them failed first."""
    if outcome.status is Status.COMPLETED:
        return {"first_failure": "", "task_ends": []}
    first = first_to_fail(outcome.tasks, records)
    failed = failed_in_order(outcome.tasks, records)
    others = sorted((task for task in outcome.tasks if task.succeeded), key=lambda task: task.label)
    return {
        "first_failure": first.label if first else "",
        "task_ends": [*failed, *others],
    }


def unique_records(records: Iterable[MetricRecord]) -> list[MetricRecord]:
    """Each (role, rank, attempt, seq) once, sorted by it.

    Of records that claim the same place and differ, the one whose JSON sorts first is kept: any rule will
    do that does not depend on the order of arrival.
    """
    kept: dict[tuple[Role, int, int, int], MetricRecord] = {}
    for record in records:
        key = (record.role, record.rank, record.attempt, record.seq)
        known = kept.setdefault(key, record)
        if known != record:
            kept[key] = min(known, record, key=lambda candidate: candidate.model_dump_json())
    return [kept[key] for key in sorted(kept)]


def _of(records: Iterable[MetricRecord], kind: type[Kind]) -> list[Kind]:
    return [record for record in records if isinstance(record, kind)]


def _server_metrics(experiment: Experiment, records: Sequence[MetricRecord]) -> ServerMetrics:
    shape = ServerMetrics if experiment.mode in BARRIER_MODES else AsyncServerMetrics
    summaries = _of(records, ServerSummary)
    versions = [interval.version for interval in _of(records, ServerInterval)]
    versions += [summary.global_steps_completed for summary in summaries]
    own = {
        "mode": experiment.mode,
        "total_workers": experiment.workers,
        "last_version_seen": max(versions, default=None),
    }
    measured = _measured_by_all(experiment, summaries)
    return shape.model_validate({name: measured.get(name) for name in shape.model_fields} | own)


SUMMED = ("apply_seconds", "lock_seconds", "sent_bytes", "received_bytes")
"""Of several servers: what each did for its part of the parameters. All else is what the first one says."""


def _measured_by_all(experiment: Experiment, summaries: Sequence[ServerSummary]) -> dict[str, Any]:
    """The summary of the one server, or of all that the parameters are spread over; empty where one is missing."""
    by_shard = {summary.rank: summary for summary in summaries}  # of one that was restarted, the last
    if len(by_shard) < experiment.shards:
        return {}
    every = [by_shard[shard] for shard in sorted(by_shard)]
    measured = every[0].model_dump()
    if len(every) > 1:
        measured |= {name: sum(getattr(summary, name) for summary in every) for name in SUMMED}
        digests = " ".join(summary.parameters_sha256 for summary in every)
        measured["parameters_sha256"] = hashlib.sha256(digests.encode()).hexdigest()
    return measured


def _traffic(workers: Sequence[WorkerSummary], servers: Sequence[ServerSummary]) -> Traffic | None:
    """What the workers that finished sent and received; None where none did."""
    if not workers:
        return None
    steps = sum(worker.steps for worker in workers)
    known = steps and not any(server.resumed_from_version is not None for server in servers)
    return Traffic(
        transports=sorted({worker.transport for worker in workers if worker.transport}),
        sent_bytes_per_step=sum(worker.sent_bytes for worker in workers) / steps if known else None,
        received_bytes_per_step=sum(worker.received_bytes for worker in workers) / steps if known else None,
    )


def _by_epoch(epochs: Iterable[WorkerEpoch]) -> dict[int, dict[int, WorkerEpoch]]:
    """Records by epoch, then rank, both ascending. An epoch reported again counts as the last report says."""
    found: dict[int, dict[int, WorkerEpoch]] = defaultdict(dict)
    for record in epochs:
        found[record.epoch][record.rank] = record
    return dict(sorted(found.items()))


def _epoch_times(epochs: Iterable[WorkerEpoch]) -> list[EpochTimes]:
    times = []
    for epoch, by_rank in _by_epoch(epochs).items():
        seconds = [record.epoch_seconds for record in by_rank.values()]
        times.append(
            EpochTimes(
                epoch=epoch,
                max_time=max(seconds),
                avg_time=fmean(seconds),
                min_time=min(seconds),
                workers=len(seconds),
            )
        )
    return times


def _epoch_accuracies(epochs: Iterable[WorkerEpoch]) -> list[EpochAccuracy]:
    accuracies = []
    for epoch, by_rank in _by_epoch(epochs).items():
        correct = sum(record.test_correct for record in by_rank.values())
        samples = sum(record.test_samples for record in by_rank.values())
        losses = [record.loss for record in by_rank.values() if record.loss is not None]
        accuracies.append(
            EpochAccuracy(
                epoch=epoch,
                test_accuracy_percent=_percent(correct, samples),
                test_correct=correct,
                test_samples=samples,
                workers=len(by_rank),
                mean_loss=fmean(losses) if losses else None,
            )
        )
    return accuracies


def _percent(correct: int | None, samples: int | None) -> float | None:
    return 100 * correct / samples if correct is not None and samples else None


def _lost(servers: Sequence[ServerSummary]) -> set[int]:
    """Ranks that were lost and did not come back: what is missing of them never was."""
    if not servers:
        return set()
    last = servers[-1]  # a server that was restarted tells of the losses before, too
    return set(Counter(last.lost_workers) - Counter(last.rejoined_workers))


def _final_accuracy(
    experiment: Experiment,
    epochs: Iterable[WorkerEpoch],
    summaries: Iterable[WorkerSummary],
    lost: set[int],
) -> dict[str, float | int | str | None]:
    """The final parameters as the last worker tested them; else the last epoch that all tested who were not lost.

    The worker that was to be the last one, and to test, may have been lost.
    """
    on_final = [s for s in summaries if s.final_test_samples and s.final_test_correct is not None]
    if on_final:
        last = max(on_final, key=lambda summary: (summary.timestamp, summary.rank))
        correct, samples = last.final_test_correct or 0, last.final_test_samples or 0
        return _final_fields(correct, samples, "final parameters", None)
    everyone = set(range(experiment.workers))
    for epoch, by_rank in reversed(_by_epoch(epochs).items()):
        correct = sum(record.test_correct for record in by_rank.values())
        samples = sum(record.test_samples for record in by_rank.values())
        if everyone - lost <= by_rank.keys() and samples:
            whole = everyone <= by_rank.keys()
            source = "shares of an epoch" if whole else "shares of finished workers"
            return _final_fields(correct, samples, source, epoch)
    return _final_fields(None, None, None, None)


def _final_fields(
    correct: int | None, samples: int | None, source: str | None, epoch: int | None
) -> dict[str, float | int | str | None]:
    return {
        "final_test_accuracy_percent": _percent(correct, samples),
        "final_test_correct": correct,
        "final_test_samples": samples,
        "final_test_source": source,
        "final_test_epoch": epoch,
    }


def _time_split(epochs: Sequence[WorkerEpoch], summaries: Sequence[WorkerSummary]) -> TimeSplit | None:
    """Sums over workers: of each life that ended well its summary, of another its epochs so far."""
    finished = {(summary.rank, summary.attempt) for summary in summaries}
    parts = [*summaries, *(epoch for epoch in epochs if (epoch.rank, epoch.attempt) not in finished)]
    if not parts:
        return None
    seconds = {
        name: sum(getattr(part, f"{name}_seconds") for part in parts)
        for name in ("compute", "push_pull", "serialize", "transfer", "waiting", "evaluation")
    }
    # Push and pull is serialize and transfer: what says no more is all transfer.
    seconds["transfer"] = max(seconds["transfer"], seconds["push_pull"] - seconds["serialize"])
    total = sum(seconds.values()) - seconds["push_pull"]
    return TimeSplit.model_validate(
        {f"{name}_seconds": value for name, value in seconds.items()}
        | {f"{name}_share": value / total if total else None for name, value in seconds.items()}
    )


Part = TypeVar("Part", WorkerResult, TaskFailure, TaskProvenance)


def _picked(shape: type[Part], record: MetricRecord) -> Part:
    """The fields of `record` that `shape` has under the same names."""
    return shape.model_validate({name: getattr(record, name) for name in shape.model_fields})


def _emitter_records(experiment: Experiment, records: Sequence[MetricRecord]) -> list[EmitterRecords]:
    """One line for every planned task, and for any other that spoke."""
    planned: list[Emitter] = [
        *(("server", shard) for shard in range(experiment.shards)),
        *(("worker", rank) for rank in range(experiment.workers)),
    ]
    heard: dict[Emitter, list[MetricRecord]] = {emitter: [] for emitter in planned}
    for record in records:
        heard.setdefault((record.role, record.rank), []).append(record)
    lines = []
    for (role, rank), mine in sorted(heard.items()):
        reached = {record.attempt: record.seq + 1 for record in mine}  # in the order of their numbers
        finals = {record.attempt for record in mine if record.kind in FINAL_KINDS}
        known = sum(reached.values())
        lines.append(
            EmitterRecords(
                role=role,
                rank=rank,
                received=len(mine),
                expected=known if reached and finals == reached.keys() else None,
                missing=known - len(mine),
            )
        )
    return lines
