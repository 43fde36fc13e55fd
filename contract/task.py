"""The environment of a server or worker task: the names that ASL, Dockerfile, runtime and tests share.

Written by plan_study and the state machine, read once by the runtime at start.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.catalogue import Dataset, ModelName
from contract.errors import TaskEnvironmentRefused
from contract.plan import Experiment
from contract.problems import problems_of
from contract.study import MAX_WORKERS, Mode

SERVER_PORT = 8000
"""The port that every parameter server listens on."""


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
    server_port: int = Field(default=SERVER_PORT, ge=0, le=65535)
    dataset: Dataset = Dataset.DIGITS
    data_directory: str = ""
    """Folder or s3://bucket/prefix of a torchvision data set; unused by digits and synthetic."""
    model: ModelName = ModelName.DIGITS_CNN
    augment: bool = False
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=0.04, gt=0)
    momentum: float = Field(default=0.75, ge=0, lt=1)
    compute_mode: Literal["real", "emulated"] = "real"
    compute_distribution: Literal["exponential", "constant"] = "exponential"
    compute_mean_ms: float = Field(default=50, gt=0)
    experiment_timeout_seconds: int = Field(default=3600, ge=1)
    """The server gives up, and says so, when the experiment has not ended by then."""

    parameter_server_address: str = ""
    """host:port of the server; workers only."""
    worker_rank: int = Field(default=0, ge=0, lt=MAX_WORKERS)
    table_name: str = ""
    """DynamoDB table with the rendezvous row; empty where nobody waits for the server's address."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read a process environment; other variables are ignored. Raises TaskEnvironmentRefused."""
        names = {field.upper() for field in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in environ.items() if name in names})
        except ValidationError as error:
            raise TaskEnvironmentRefused(problems_of(error, cls)) from error

    def to_environ(self) -> dict[str, str]:
        """The variables that were set, as strings."""
        return {k: str(v) for k, v in self.model_dump(mode="json", by_alias=True, exclude_unset=True).items()}


def shared_environment(experiment: Experiment) -> TaskEnvironment:
    """What the server and all workers of an experiment have in common."""
    training, compute = experiment.training, experiment.compute
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
        data_directory=training.data or "",
        model=training.model,
        augment=training.augment,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        compute_mode=compute.mode,
        compute_distribution=compute.distribution,
        compute_mean_ms=compute.mean_ms,
        experiment_timeout_seconds=experiment.timeout_seconds,
    )
