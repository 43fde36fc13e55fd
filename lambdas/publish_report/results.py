"""The shapes of the report: what came out of a study, and the result of one experiment.

Plain values, used by every part of the report; knows no AWS SDK and no plotting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.aggregation import Aggregation, Mode
from contract.checkpoint import Checkpointing
from contract.compute import Compute
from contract.exchange import Exchange
from contract.faults import Faults, OnWorkerLoss
from contract.forecast import Forecast
from contract.metrics import MetricRecord, Role
from contract.network import Network
from contract.plan import Experiment
from contract.table import Status
from contract.training import Training
from lambdas.verdict import TaskOutcome


@dataclass(frozen=True, kw_only=True)
class ExperimentOutcome:
    """One planned experiment and all that was heard of it."""

    experiment: Experiment
    status: Status
    cause: str = ""
    """Why it did not complete; empty where it did, or where nobody knows."""
    tasks: Sequence[TaskOutcome] = ()
    """How its tasks ended, as far as ECS told."""
    records: Sequence[MetricRecord] = ()
    """In any order, any of them missing or there several times."""


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """A study that has ended, as far as it came."""

    study_id: str
    name: str
    document: Mapping[str, Any]
    """The study document as it was given."""
    status: Status
    cause: str = ""
    """Why it was aborted."""
    started_at: datetime
    ended_at: datetime
    warnings: Sequence[str] = ()
    experiments: Sequence[ExperimentOutcome] = ()
    """In the order of the plan."""
    forecast: Forecast | None = None
    """What was expected of it; None of studies from before there were estimates."""


class Shape(BaseModel):
    """A part of a result file. None is JSON's null: not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerMetrics(Shape):
    """What the parameter server measured."""

    mode: Mode
    total_workers: int
    total_training_time_seconds: float | None
    """From the release of the first parameters to the last worker's finish."""
    global_steps_completed: int | None
    gradients_processed: int | None
    dropped_gradients: int | None
    """Those that came too late to count."""
    repeated_pushes: int | None
    """Pushes of a step that had been pushed before: answered, not applied."""
    updates_per_second: float | None
    mean_step_seconds: float | None
    """Mean time between updates over the whole run; in sync mode the duration of a step."""
    apply_seconds: float | None
    """Time spent adding gradients up and in the optimizer."""
    lock_seconds: float | None
    """Time that threads waited for locks, summed over them."""
    sent_bytes: int | None
    received_bytes: int | None
    barrier_wait_histogram: dict[float, int] | None
    """Upper bound of a bin in seconds → number of gradients that were held so long before their worker went on."""
    lost_workers: list[int] | None
    """Ranks in the order of their loss; one that was lost twice stands there twice."""
    rejoined_workers: list[int] | None
    lost_steps: int | None
    """Steps that were never pushed, because their worker was away."""
    checkpoints_written: int | None
    checkpoint_seconds: float | None
    resumed_from_version: int | None
    """Version of the checkpoint that the last server began with; None where it began anew."""
    parameters_sha256: str | None
    """SHA-256 of the final parameters: two sync experiments that share it trained alike, bit for bit.

    Of several servers: of their digests, in the order of the shards.
    """
    last_version_seen: int | None
    """Highest parameter version in any of the server's records: how far an experiment came that failed."""


class AsyncServerMetrics(ServerMetrics):
    """What only a server that applies gradients on newer parameters than their own can measure."""

    average_gradient_staleness: float | None
    """Over the whole run."""
    average_gradient_staleness_all_training: float | None
    """Over the gradients that came while all workers were training."""
    gradients_all_training: int | None
    updates_all_training: int | None
    all_training_seconds: float | None
    """From when every worker had pushed once until one pushed its last; what those updates took."""
    staleness_histogram: dict[int, int] | None
    """Staleness → number of gradients."""


class EpochTimes(Shape):
    """Duration of one epoch over the workers, seconds of training (testing is not in it)."""

    epoch: int
    max_time: float
    avg_time: float
    min_time: float
    workers: int
    """Workers whose record of this epoch arrived."""


class EpochAccuracy(Shape):
    """Test accuracy after one epoch: every worker tests its share of the test set."""

    epoch: int
    test_accuracy_percent: float | None
    test_correct: int
    test_samples: int
    workers: int
    """Workers whose share is in the sum."""
    mean_loss: float | None
    """Training loss, mean over the workers whose loss was finite."""


class WorkerMetrics(Shape):
    """What the workers measured, taken together."""

    num_workers: int
    """Workers of which any record arrived."""
    average_epoch_time_seconds: float | None
    """Mean over all epochs of all workers."""
    final_test_accuracy_percent: float | None
    final_test_correct: int | None
    final_test_samples: int | None
    final_test_source: Literal["final parameters", "shares of an epoch", "shares of finished workers"] | None
    """The last one: a part of the test set, for the others were lost, and nobody was left to test the rest."""
    final_test_epoch: int | None
    """The epoch whose shares make up the figure: the last one that all workers tested, or all that finished."""
    epoch_times_by_epoch: list[EpochTimes]
    accuracy_by_epoch: list[EpochAccuracy]


class TimeSplit(Shape):
    """What the workers' time went to: worker-seconds, and shares that add up to 1 (None: no time at all)."""

    compute_seconds: float
    push_pull_seconds: float
    """Serialize and transfer together."""
    serialize_seconds: float
    transfer_seconds: float
    waiting_seconds: float
    evaluation_seconds: float
    compute_share: float | None
    push_pull_share: float | None
    serialize_share: float | None
    transfer_share: float | None
    waiting_share: float | None
    evaluation_share: float | None


class Traffic(Shape):
    """What travelled between the workers that finished and the server."""

    transports: list[str]
    """What it went through: tcp, tls, shared-memory; several only where workers differed."""
    sent_bytes_per_step: float | None
    """By a worker, for each of its steps; None where a server was restarted, whose connections were not all counted."""
    received_bytes_per_step: float | None


class WorkerResult(Shape):
    """The summary of one worker that finished."""

    rank: int
    training_seconds: float
    epochs: int
    steps: int
    samples: int
    compute_seconds: float
    emulated_seconds: float
    push_pull_seconds: float
    serialize_seconds: float
    transfer_seconds: float
    waiting_seconds: float
    evaluation_seconds: float
    injected_network_seconds: float
    transport: str
    sent_bytes: int
    received_bytes: int
    repeated_pushes: int
    dropped_gradients: int
    cancelled_steps: int


class TaskProvenance(Shape):
    """Where one task ran, and on what."""

    role: Role
    rank: int
    hostname: str
    task_arn: str
    cpu_model: str
    cpu_count: int
    threads: int
    device: str
    python_version: str
    torch_version: str
    grpc_version: str
    parameters: int
    train_samples: int
    test_samples: int


class TaskFailure(Shape):
    """What a task said when it gave up."""

    role: Role
    rank: int
    reason: str
    lost_peer: str
    """The peer whose loss ended it: then the root cause lies there."""


class EmitterRecords(Shape):
    """Records of one role and rank: each attempt numbers them without a gap, and its last one says so."""

    role: Role
    rank: int
    received: int
    expected: int | None
    """None where the final record of an attempt is missing: nobody knows."""
    missing: int
    """Numbers below the highest known one that are not there."""


class ExperimentResult(Shape):
    """experiments/<name>.json: the result of one experiment, complete or not."""

    schema_version: Literal[1] = 1
    study_id: str
    experiment_name: str
    status: Status
    cause: str
    seed: int
    aggregation: Aggregation
    training: Training
    compute: Compute
    exchange: Exchange
    network: Network
    faults: Faults
    on_worker_loss: OnWorkerLoss
    checkpoint: Checkpointing | None
    shards: int
    server_metrics: AsyncServerMetrics | ServerMetrics
    worker_metrics_aggregated: WorkerMetrics
    time_split: TimeSplit | None
    traffic: Traffic | None
    workers: list[WorkerResult]
    failures: list[TaskFailure]
    first_failure: str
    """The task that failed first ("worker 1"); empty where none did, or where nobody knows."""
    task_ends: list[TaskOutcome]
    """The root of the failure first; empty where the experiment completed."""
    provenance: list[TaskProvenance]
    records: list[EmitterRecords]

    @property
    def mode(self) -> Mode:
        """How the server aggregated."""
        return self.server_metrics.mode

    @property
    def total_workers(self) -> int:
        """Workers as planned."""
        return self.server_metrics.total_workers

    @property
    def completed(self) -> bool:
        """Whether its figures may be compared with others."""
        return self.status is Status.COMPLETED

    @property
    def training_seconds(self) -> float | None:
        """Total training time."""
        return self.server_metrics.total_training_time_seconds

    @property
    def epoch_seconds(self) -> float | None:
        """Average epoch time."""
        return self.worker_metrics_aggregated.average_epoch_time_seconds

    @property
    def accuracy_percent(self) -> float | None:
        """Final test accuracy."""
        return self.worker_metrics_aggregated.final_test_accuracy_percent
