"""The environment of a server or worker task: the names that ASL, Dockerfile, runtime and tests share.

Written by plan_study and the state machine, read once by the runtime at start.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from contract.aggregation import Aggregation, Mode, missing_keys, shards_problem, workers_problem
from contract.catalogue import Dataset, ModelName
from contract.compute import Compute, Distribution, Straggler, compute_conflicts
from contract.document import MAX_SHARDS, MAX_WORKERS, misplaced
from contract.errors import TaskEnvironmentRefused
from contract.exchange import Compression, Exchange, Transport, exchange_conflicts, transport_problem
from contract.faults import Crash, Faults, OnWorkerLoss, crash_problems, recovery_problems
from contract.metrics import MAX_ATTEMPTS
from contract.network import Network, WorkerNetwork, link_problems
from contract.plan import Experiment
from contract.problems import problems_of
from contract.training import SCHEDULE_RULES, OptimizerName, ScheduleName, Training

SERVER_PORT = 8000
"""The port that every parameter server listens on."""

LOG_STREAM_PREFIX = "lockstep"
"""What the name of every task's log stream begins with."""


def _parsed(value: object) -> object:
    """A list from the environment, or one that is already read."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"must be JSON, not {value[:60]!r}") from None


class TaskEnvironment(BaseModel):
    """Environment variables of a task; a field's alias is its variable (`server_mode` ↔ SERVER_MODE)."""

    model_config = ConfigDict(
        frozen=True, alias_generator=str.upper, populate_by_name=True, allow_inf_nan=False
    )

    study_id: str = "local"
    experiment_name: str = "experiment"
    seed: int = 0
    server_mode: Mode = Mode.SYNC
    total_workers_expected: int = Field(default=1, ge=1, le=MAX_WORKERS)
    aggregation_backup_workers: int | None = Field(default=None, ge=1)
    aggregation_staleness_bound: int | None = Field(default=None, ge=0)
    aggregation_k: int | None = Field(default=None, ge=1)
    aggregation_dc_lambda: float | None = Field(default=None, gt=0)
    server_port: int = Field(default=SERVER_PORT, ge=0, le=65535)
    dataset: Dataset = Dataset.DIGITS
    data_directory: str = ""
    """Folder or s3://bucket/prefix of a torchvision data set; unused by digits and synthetic."""
    model: ModelName = ModelName.DIGITS_CNN
    augment: bool = False
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=0.04, gt=0)
    optimizer: OptimizerName = "sgd"
    momentum: float = Field(default=0.75, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: ScheduleName = "constant"
    decay_epochs: float | None = Field(default=None, gt=0)
    decay_factor: float | None = Field(default=None, gt=0, lt=1)
    warmup_epochs: float = Field(default=0.0, ge=0)
    compute_mode: Literal["real", "emulated"] = "real"
    compute_distribution: Distribution = "exponential"
    compute_mean_ms: float = Field(default=50, gt=0)
    compute_shift_ms: float | None = Field(default=None, gt=0)
    compute_tail_index: float | None = Field(default=None, gt=1)
    compute_stragglers: Annotated[list[Straggler], BeforeValidator(_parsed)] = Field(default=[])
    """In the environment: JSON, as in the study."""
    compression: Compression = "none"
    topk_ratio: float = Field(default=0.01, gt=0, le=0.5)
    transport: Transport = "auto"
    tls: bool | None = None
    network_bandwidth_mbit_per_second: float | None = Field(default=None, gt=0)
    network_latency_ms: float = Field(default=0, ge=0)
    network_workers: Annotated[list[WorkerNetwork], BeforeValidator(_parsed)] = Field(default=[])
    """In the environment: JSON, as in the study."""
    faults_crashes: Annotated[list[Crash], BeforeValidator(_parsed)] = Field(default=[])
    """In the environment: JSON, as in the study."""
    on_worker_loss: OnWorkerLoss = "fail"
    checkpoint_seconds: float | None = Field(default=None, gt=0)
    """From one checkpoint to the next; None: there are no checkpoints."""
    checkpoint_location: str = ""
    """Folder or s3://bucket/prefix of the checkpoints. A deployment may say it, also where a study wants none."""
    shards: int = Field(default=1, ge=1, le=MAX_SHARDS)
    shard_index: int = Field(default=0, ge=0, lt=MAX_SHARDS)
    """Which shard of the parameters a server keeps; servers only."""
    experiment_timeout_seconds: int = Field(default=3600, ge=1)
    """The server gives up, and says so, when the experiment has not ended by then."""

    parameter_server_address: str = ""
    """host:port of the server; workers only."""
    worker_rank: int = Field(default=0, ge=0, lt=MAX_WORKERS)
    worker_attempt: int = Field(default=0, ge=0, lt=MAX_ATTEMPTS)
    """How many times this rank was started before."""
    table_name: str = ""
    """DynamoDB table with the rendezvous row; empty where nobody waits for the server's address."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read a process environment; other variables are ignored. Raises TaskEnvironmentRefused."""
        names = {field.upper() for field in cls.model_fields}
        try:
            environment = cls.model_validate(
                {name: value for name, value in environ.items() if name in names}
            )
        except ValidationError as error:
            raise TaskEnvironmentRefused(problems_of(error, cls)) from error
        if problems := environment._conflicts():
            raise TaskEnvironmentRefused(problems)
        return environment

    def to_environ(self) -> dict[str, str]:
        """The variables that were set, as strings."""
        said = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        return {k: json.dumps(v) if isinstance(v, list) else str(v) for k, v in said.items()}

    @property
    def aggregation(self) -> Aggregation:
        """What the server's mode is told."""
        return Aggregation.model_construct(**self._section("aggregation_"))

    @property
    def compute(self) -> Compute:
        """How long a step's computation lasts."""
        return Compute.model_construct(**self._section("compute_"))

    @property
    def exchange(self) -> Exchange:
        """How gradients and parameters travel."""
        return Exchange.model_construct(**{name: getattr(self, name) for name in Exchange.model_fields})

    @property
    def network(self) -> Network:
        """Conditions that are injected between each worker and the server."""
        return Network.model_construct(**self._section("network_"))

    @property
    def faults(self) -> Faults:
        """What goes wrong on purpose."""
        return Faults.model_construct(**self._section("faults_"))

    def _section(self, prefix: str) -> dict[str, Any]:
        names = (name for name in type(self).model_fields if name.startswith(prefix))
        return {name.removeprefix(prefix): getattr(self, name) for name in names}

    def _conflicts(self) -> list[str]:
        """Variables that others exclude or call for."""
        mode, workers, section = self.server_mode, self.total_workers_expected, self._section("aggregation_")
        problems = missing_keys([section], mode, _variable("aggregation"))
        problems += [workers_problem(mode, self.aggregation, workers, _variable("aggregation"))]
        problems += compute_conflicts(self._section("compute_"), _variable("compute"))
        schedule = {name: getattr(self, name) for name in ("schedule", "decay_epochs", "decay_factor")}
        problems += misplaced(schedule, Training, SCHEDULE_RULES, str.upper)
        # A default that was not said is no mistake.
        said = {name: getattr(self, name) for name in Exchange.model_fields if name in self.model_fields_set}
        problems += exchange_conflicts(said, str.upper)
        problems += [transport_problem(self.exchange, self.network, str.upper)]
        problems += link_problems(self.network, workers, _variable("network"))
        problems += crash_problems(self.faults, workers, self.on_worker_loss, _variable("faults"))
        problems += [shards_problem(mode, self.shards, "SHARDS")]
        checkpoints = self.checkpoint_seconds is not None
        problems += recovery_problems(self.shards, self.on_worker_loss, checkpoints, str.upper)
        if self.shard_index >= self.shards:
            problems.append(f"SHARD_INDEX: {self.shard_index} is none of {self.shards} shards")
        return [problem for problem in problems if problem]


def log_stream(role: str, task_arn: str) -> str:
    """The log stream of a task. Source: Amazon ECS Developer Guide, awslogs-stream-prefix: prefix/container/task id."""
    return f"{LOG_STREAM_PREFIX}/{role}/{task_arn.rpartition('/')[2]}"


def _variable(section: str) -> Callable[[str], str]:
    return lambda key: f"{section}_{key}".upper()


def shared_environment(experiment: Experiment) -> TaskEnvironment:
    """What the server and all workers of an experiment have in common."""
    training = experiment.training
    if training.model is None:
        raise ValueError("a planned experiment names its model")
    return TaskEnvironment(
        study_id=experiment.study_id,
        experiment_name=experiment.name,
        seed=experiment.seed,
        server_mode=experiment.mode,
        total_workers_expected=experiment.workers,
        server_port=SERVER_PORT,
        dataset=training.dataset,
        model=training.model,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        compute_mode=experiment.compute.mode,
        compute_distribution=experiment.compute.distribution,
        compute_mean_ms=experiment.compute.mean_ms,
        experiment_timeout_seconds=experiment.timeout_seconds,
        **_unusual(experiment),
    )


def _unusual(experiment: Experiment) -> dict[str, Any]:
    """What few experiments say. Defaults are left out: ECS takes 8,192 characters of overrides for a task."""
    training, compute, aggregation = experiment.training, experiment.compute, experiment.aggregation
    said = {f"aggregation_{name}": value for name, value in aggregation}
    said |= {f"compute_{name}": getattr(compute, name) for name in ("shift_ms", "tail_index", "stragglers")}
    said |= dict(experiment.exchange) | {f"network_{name}": value for name, value in experiment.network}
    said |= {"faults_crashes": experiment.faults.crashes, "on_worker_loss": experiment.on_worker_loss}
    said |= {"shards": experiment.shards}
    if experiment.checkpoint is not None:
        said |= {
            "checkpoint_seconds": experiment.checkpoint.interval_seconds,
            "checkpoint_location": experiment.checkpoint.location or "",
        }
    names = (
        "augment",
        "optimizer",
        "weight_decay",
        "schedule",
        "decay_epochs",
        "decay_factor",
        "warmup_epochs",
    )
    said |= {"data_directory": training.data or ""} | {name: getattr(training, name) for name in names}
    fields = TaskEnvironment.model_fields
    return {name: value for name, value in said.items() if value != fields[name].default}
