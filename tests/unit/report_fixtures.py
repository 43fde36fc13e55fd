"""Plausible studies for tests of the report: a small simulation of sync and async training.

Seeded: the same arguments give the same records. No sleeping, no torch.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from math import ceil, log2
from random import Random
from statistics import fmean

from contract.aggregation import BARRIER_MODES, Mode
from contract.metrics import (
    MetricRecord,
    Role,
    ServerInterval,
    ServerSummary,
    TaskFailed,
    TaskStarted,
    WorkerEpoch,
    WorkerSummary,
)
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.results import ExperimentOutcome, ExperimentResult, StudyOutcome
from lambdas.verdict import TaskOutcome

BEGIN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TRAIN_SAMPLES, TEST_SAMPLES = 1437, 360
ROUND_TRIP, SERIALIZE, TEST_TIME = 0.004, 0.001, 0.02
EMULATED = {"mode": "emulated", "distribution": "exponential", "mean_ms": 50}


@dataclass
class Gradients:
    """What a simulated run did, step by step: one entry per worker and step."""

    draws: list[list[float]]
    waits: list[list[float]]
    staleness: list[tuple[int, bool]] = field(default_factory=list)
    """(staleness, whether all workers were training)."""
    updates: int = 0
    updates_all_training: int = 0
    all_training_seconds: float = 0.0

    def finished_at(self, rank: int, steps: int) -> float:
        """Seconds after which worker `rank` had done so many steps."""
        return sum(self.draws[rank][:steps]) + sum(self.waits[rank][:steps]) + steps * ROUND_TRIP


def study_outcome(
    *,
    modes: Sequence[str] = ("sync", "async"),
    workers: Sequence[int] = (1, 2, 4),
    seeds: Sequence[int] = (0,),
    epochs: int = 5,
    compute: dict[str, object] | None = None,
    aggregation: dict[str, object] | None = None,
    network: dict[str, object] | None = None,
    failing: str = "",
    name: str = "scaling",
    host: str = "",
) -> StudyOutcome:
    """A study whose experiments all completed, but the one named `failing`: its worker 1 was killed.

    All tasks ran on `host`, each on its own where none is named.
    """
    document = {
        "name": name,
        "matrix": {"mode": list(modes), "workers": list(workers)},
        "seeds": list(seeds),
        "training": {"dataset": "digits", "epochs": epochs},
        "compute": compute or EMULATED,
        **({"aggregation": aggregation} if aggregation else {}),
        **({"network": network} if network else {}),
    }
    experiments = [
        failed_outcome(experiment) if experiment.name == failing else completed_outcome(experiment)
        for experiment in plan(parse_study(document), f"{name}-20260301-120000")
    ]
    if host:
        experiments = [
            replace(e, records=[_moved(record, host) for record in e.records]) for e in experiments
        ]
    status = Status.FAILED if failing else Status.COMPLETED
    return StudyOutcome(
        study_id=f"{name}-20260301-120000",
        name=name,
        document=document,
        status=status,
        started_at=BEGIN,
        ended_at=BEGIN + timedelta(minutes=4, seconds=37),
        experiments=experiments,
    )


def measured(
    mode: str,
    workers: int,
    seconds: float | None,
    *,
    seed: int = 0,
    correct: int = 342,
    status: Status = Status.COMPLETED,
    name: str | None = None,
    told: dict[str, object] | None = None,
    exchange: dict[str, object] | None = None,
    network: dict[str, object] | None = None,
    server: dict[str, object] | None = None,
) -> ExperimentResult:
    """A result that says just this much; `server`: more of what the server measured."""
    asked = {"name": name, "mode": mode, "workers": workers, "seed": seed, "aggregation": told or {}}
    asked |= {"exchange": exchange or {}, "network": network or {}}
    study = parse_study({"experiments": [asked], "compute": EMULATED})
    empty = experiment_result(ExperimentOutcome(experiment=plan(study, "study-1")[0], status=status))
    tested = {
        "final_test_correct": correct,
        "final_test_samples": 360,
        "final_test_accuracy_percent": 100 * correct / 360,
    }
    known = {"total_training_time_seconds": seconds, "global_steps_completed": 100, **(server or {})}
    return empty.model_copy(
        update={
            "server_metrics": empty.server_metrics.model_copy(update=known),
            "worker_metrics_aggregated": empty.worker_metrics_aggregated.model_copy(update=tested),
        }
    )


def _moved(record: MetricRecord, host: str) -> MetricRecord:
    return record.model_copy(update={"hostname": host}) if isinstance(record, TaskStarted) else record


def completed_outcome(experiment: Experiment) -> ExperimentOutcome:
    return ExperimentOutcome(experiment=experiment, status=Status.COMPLETED, records=records_of(experiment))


def failed_outcome(experiment: Experiment) -> ExperimentOutcome:
    """Worker 1 is killed after its second epoch; the server notices; the others lose the server."""
    records: list[MetricRecord] = []
    for record in records_of(experiment):
        if isinstance(record, WorkerEpoch) and record.epoch > 2:
            continue
        if isinstance(record, WorkerSummary | ServerSummary):
            if (record.role, record.rank) == ("worker", 1):
                continue
            lost = "worker 1" if record.role == "server" else "server"
            seq = 3 if record.role == "worker" else record.seq
            records.append(task_failed(experiment, record.role, record.rank, seq, lost))
            continue
        records.append(record)
    cause = (
        "worker 1 was killed (exit code 137: SIGKILL, from outside or for lack of memory)."
        " Then: server failed: worker 1 was lost: no heartbeat for 10 s"
    )
    return ExperimentOutcome(
        experiment=experiment,
        status=Status.FAILED,
        cause=cause,
        tasks=failed_tasks(experiment),
        records=records,
    )


def failed_tasks(experiment: Experiment) -> list[TaskOutcome]:
    """How the tasks of such an experiment ended."""
    emitters = [("server", 0), *(("worker", rank) for rank in range(experiment.workers))]
    return [
        TaskOutcome(
            role=role,
            rank=rank,
            task_arn=f"arn:aws:ecs:eu-west-1:111122223333:task/lockstep/{role}{rank}",
            exit_code=137 if (role, rank) == ("worker", 1) else 1,
            stop_code="EssentialContainerExited",
            stopped_reason="Essential container in task exited",
            stopped_at=(BEGIN + timedelta(seconds=30 + (role == "server"))).isoformat(),
            last_lines=(f"lockstep-{role}: epoch 2 is done",) if (role, rank) == ("worker", 1) else (),
        )
        for role, rank in emitters
    ]


def task_failed(experiment: Experiment, role: Role, rank: int, seq: int, lost: str) -> TaskFailed:
    return TaskFailed(
        **whose(experiment, role, rank, seq, 30.0),
        reason=f"{lost} was lost: no heartbeat for 10 s",
        lost_peer=lost,
    )


def whose(experiment: Experiment, role: Role, rank: int, seq: int, after: float) -> dict[str, object]:
    return {
        "study": experiment.study_id,
        "experiment": experiment.name,
        "role": role,
        "rank": rank,
        "seq": seq,
        "timestamp": BEGIN + timedelta(seconds=after),
    }


def records_of(experiment: Experiment) -> list[MetricRecord]:
    """All records of an experiment that completed."""
    random = Random(f"{experiment.name} {experiment.seed}")
    samples = TRAIN_SAMPLES // experiment.workers
    steps = -(-samples // experiment.training.batch_size) * experiment.training.epochs
    mean = experiment.compute.mean_ms / 1000
    exponential = experiment.compute.distribution == "exponential"
    draws = [
        [random.expovariate(1 / mean) if exponential else mean for _ in range(steps)]
        for _ in range(experiment.workers)
    ]
    run = _sync(draws) if experiment.mode in BARRIER_MODES else _async(draws)
    records: list[MetricRecord] = list(_server_records(experiment, run))
    for rank in range(experiment.workers):
        records += _worker_records(experiment, run, rank, samples)
    return records


def _sync(draws: list[list[float]]) -> Gradients:
    waits: list[list[float]] = [[] for _ in draws]
    for step in zip(*draws, strict=True):
        for rank, draw in enumerate(step):
            waits[rank].append(max(step) - draw)
    return Gradients(draws, waits, [(0, True)] * sum(map(len, draws)), updates=len(draws[0]))


def _async(draws: list[list[float]]) -> Gradients:
    """Every gradient is applied on arrival; the push brings the parameters of the next step along."""
    run = Gradients(draws, [[0.0] * len(mine) for mine in draws])
    arrivals = [(mine[0], rank, 0) for rank, mine in enumerate(draws)]
    pulled = [0] * len(draws)
    heapq.heapify(arrivals)
    all_training, before, fresh = True, 0.0, set(range(len(draws)))
    while arrivals:
        now, rank, step = heapq.heappop(arrivals)
        if all_training and not fresh:
            run.updates_all_training += 1
            run.all_training_seconds += now - before
        before = now
        fresh.discard(rank)
        run.staleness.append((run.updates - pulled[rank], all_training))
        run.updates += 1
        pulled[rank] = run.updates
        if step + 1 < len(draws[rank]):
            heapq.heappush(arrivals, (now + draws[rank][step + 1] + ROUND_TRIP, rank, step + 1))
        else:
            all_training = False
    return run


def _started(experiment: Experiment, role: Role, rank: int, samples: int) -> TaskStarted:
    return TaskStarted(
        **whose(experiment, role, rank, 0, 0),
        task_arn=f"arn:aws:ecs:eu-west-1:111122223333:task/lockstep/{role}{rank}",
        hostname=f"ip-10-0-0-{10 + rank}",
        cpu_model="Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz",
        cpu_count=2,
        threads=1,
        device="cpu",
        python_version="3.11.14",
        torch_version="2.13.0+cpu",
        grpc_version="1.85.1",
        parameters=55_050,
        train_samples=samples,
        test_samples=TEST_SAMPLES,
    )


def _server_records(experiment: Experiment, run: Gradients) -> Iterator[MetricRecord]:
    steps = len(run.draws[0])
    seconds = max(run.finished_at(rank, steps) for rank in range(len(run.draws)))
    seconds += experiment.training.epochs * TEST_TIME
    stale = [staleness for staleness, _ in run.staleness]
    stale_together = [staleness for staleness, together in run.staleness if together]
    yield _started(experiment, "server", 0, 0)
    for number in (1, 2):
        yield ServerInterval(
            **whose(experiment, "server", 0, number, seconds * number / 2),
            interval_seconds=seconds / 2,
            version=run.updates * number // 2,
            updates=run.updates // 2,
            updates_per_second=run.updates / seconds,
            gradients=len(stale) // 2,
            mean_staleness=fmean(stale),
            max_staleness=max(stale),
        )
    yield ServerSummary(
        **whose(experiment, "server", 0, 3, seconds),
        mode=experiment.mode,
        total_workers=experiment.workers,
        total_training_time_seconds=seconds,
        global_steps_completed=run.updates,
        gradients_processed=len(stale),
        updates_per_second=run.updates / seconds,
        mean_step_seconds=seconds / run.updates,
        average_gradient_staleness=fmean(stale),
        average_gradient_staleness_all_training=fmean(stale_together),
        gradients_all_training=len(stale_together),
        updates_all_training=run.updates_all_training,
        all_training_seconds=run.all_training_seconds,
        staleness_histogram=dict(Counter(stale)),
        apply_seconds=run.updates * 0.0006,
        barrier_wait_histogram=dict(Counter(bin_of(wait) for mine in run.waits for wait in mine)),
        parameters_sha256="5e" * 32,
    )


def bin_of(wait: float) -> float:
    """A millisecond, or twice, four times … as much."""
    return 0.001 * 2 ** max(0, ceil(log2(wait / 0.001))) if wait else 0.001


def _worker_records(
    experiment: Experiment, run: Gradients, rank: int, samples: int
) -> Iterator[MetricRecord]:
    random = Random(f"accuracy {experiment.name} {experiment.seed} {rank}")
    epochs, numbers = experiment.training.epochs, count(1)
    per_epoch = len(run.draws[rank]) // epochs
    share = TEST_SAMPLES // experiment.workers + (rank < TEST_SAMPLES % experiment.workers)
    handicap = 0.01 * (experiment.workers - 1) * (1.6 if experiment.mode is Mode.ASYNC else 1)
    yield _started(experiment, "worker", rank, samples)
    for epoch in range(1, epochs + 1):
        window = slice((epoch - 1) * per_epoch, epoch * per_epoch)
        draws, waits = sum(run.draws[rank][window]), sum(run.waits[rank][window])
        error = 0.62 ** (2.2 * epoch) + 0.025 + handicap / epoch + random.uniform(-0.006, 0.006)
        yield WorkerEpoch(
            **whose(experiment, "worker", rank, next(numbers), run.finished_at(rank, epoch * per_epoch)),
            epoch=epoch,
            epoch_seconds=draws + waits + per_epoch * ROUND_TRIP,
            steps=per_epoch,
            samples=samples,
            samples_per_second=samples / (draws + waits + per_epoch * ROUND_TRIP),
            compute_seconds=draws,
            push_pull_seconds=per_epoch * ROUND_TRIP,
            serialize_seconds=per_epoch * SERIALIZE,
            transfer_seconds=per_epoch * (ROUND_TRIP - SERIALIZE),
            waiting_seconds=waits,
            evaluation_seconds=TEST_TIME,
            loss=2.2 * error,
            test_correct=round(share * (1 - min(0.9, error))),
            test_samples=share,
            version=epoch * per_epoch,
        )
    draws, waits = sum(run.draws[rank]), sum(run.waits[rank])
    yield WorkerSummary(
        **whose(experiment, "worker", rank, next(numbers), run.finished_at(rank, len(run.draws[rank]))),
        training_seconds=draws + waits + epochs * (per_epoch * ROUND_TRIP + TEST_TIME),
        epochs=epochs,
        steps=epochs * per_epoch,
        samples=epochs * samples,
        compute_seconds=draws,
        emulated_seconds=draws,
        push_pull_seconds=epochs * per_epoch * ROUND_TRIP,
        serialize_seconds=epochs * per_epoch * SERIALIZE,
        transfer_seconds=epochs * per_epoch * (ROUND_TRIP - SERIALIZE),
        transport="tls",
        waiting_seconds=waits,
        evaluation_seconds=epochs * TEST_TIME,
        sent_bytes=epochs * per_epoch * 220_264,
        received_bytes=epochs * per_epoch * 220_264,
    )
