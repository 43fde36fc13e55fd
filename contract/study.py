"""Study: what a user asks for, as written in a study document (JSON).

Read by the plan_study function and by the command line; knows nothing of how a study is run.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contract.errors import StudyRefused
from contract.problems import problems_of

MAX_WORKERS = 32
"""Largest number of workers of one experiment."""

MAX_EXPERIMENTS = 100
"""Experiments of one study: 100 × 32 workers stay below the 25,000 history events of one execution."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class Mode(StrEnum):
    """How the parameter server aggregates gradients."""

    SYNC = "sync"
    """Average of all N gradients, one barrier per step."""

    ASYNC = "async"
    """Each gradient is applied on arrival."""


class Dataset(StrEnum):
    """What is learned."""

    DIGITS = "digits"
    SYNTHETIC = "synthetic"
    CIFAR10 = "cifar10"


class ModelName(StrEnum):
    """What learns it."""

    DIGITS_CNN = "digits-cnn"
    CIFAR_CNN = "cifar-cnn"


class Preset(StrEnum):
    """The priorities of the classic matrix, sync and async each."""

    QUICK = "quick"
    RECOMMENDED = "recommended"
    FULL = "full"


PRESET_WORKERS: Mapping[Preset, tuple[int, ...]] = {
    Preset.QUICK: (4,),
    Preset.RECOMMENDED: (2, 4, 8),
    Preset.FULL: (1, 2, 4, 8, 16, 32),
}

MODELS_FOR: Mapping[Dataset, tuple[ModelName, ...]] = {
    Dataset.DIGITS: (ModelName.DIGITS_CNN,),
    Dataset.SYNTHETIC: (ModelName.DIGITS_CNN, ModelName.CIFAR_CNN),
    Dataset.CIFAR10: (ModelName.CIFAR_CNN,),
}
"""Models that fit a dataset's images; the first is the default."""

FARGATE_MEMORY: Mapping[int, range] = {
    256: range(512, 2048 + 1, 512),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}
"""CPU units → memory sizes in MiB that Fargate runs on Linux.

Source: Amazon ECS Developer Guide, "Fargate task definition considerations", task CPU and memory.
"""

# JSON has no enums: their members are read from strings although documents are strict.
ModeField = Annotated[Mode, Field(strict=False)]
Workers = Annotated[int, Field(ge=1, le=MAX_WORKERS)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Document(BaseModel):
    """A part of the study document: unknown keys are refused, numbers are no strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Matrix(Document):
    """Every mode with every number of workers."""

    mode: Annotated[list[ModeField], Field(min_length=1)] = [Mode.SYNC, Mode.ASYNC]
    workers: Annotated[list[Workers], Field(min_length=1)] | None = None
    """Default: those of the preset."""


class ExplicitExperiment(Document):
    """One experiment, where a matrix would be too many."""

    name: Name | None = None
    mode: ModeField
    workers: Workers
    seed: Seed = 0


class Cell(NamedTuple):
    """One experiment of a study: what tells it from the others."""

    name: str
    mode: Mode
    workers: int
    seed: int


class Training(Document):
    """What every worker does; the same for all experiments of a study."""

    dataset: Annotated[Dataset, Field(strict=False)] = Dataset.DIGITS
    model: Annotated[ModelName, Field(strict=False)] | None = None
    """Default: the first model that fits the dataset."""
    epochs: int = Field(default=5, ge=1, le=1000)
    batch_size: int = Field(default=16, ge=1, le=65536, description="samples per worker and step")
    learning_rate: float = Field(default=0.05, gt=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Compute(Document):
    """How long a step's computation lasts: as long as it does (real), or as a seeded draw says (emulated)."""

    mode: Literal["real", "emulated"] = "real"
    distribution: Literal["exponential", "constant"] = "exponential"
    mean_ms: float = Field(
        default=50, gt=0, le=600_000, description="mean duration of a step's computation, ms"
    )


class TaskSize(Document):
    """CPU units (1024 = one vCPU) and MiB of memory of a task."""

    cpu: int
    memory: int

    @model_validator(mode="after")
    def fits_fargate(self) -> Self:
        """Refuse pairs that Fargate does not run."""
        if self.cpu not in FARGATE_MEMORY:
            raise ValueError(
                f"cpu {self.cpu} is no Fargate size; choose {', '.join(map(str, FARGATE_MEMORY))}"
            )
        sizes = FARGATE_MEMORY[self.cpu]
        if self.memory not in sizes:
            raise ValueError(
                f"memory {self.memory} does not go with cpu {self.cpu};"
                f" choose {sizes.start} to {sizes[-1]} MiB in steps of {sizes.step}"
            )
        return self


class Study(Document):
    """A whole study. `{}` is valid: sync against async with 4 workers on the handwritten digits."""

    name: Name = "study"
    preset: Annotated[Preset, Field(strict=False)] = Preset.QUICK
    matrix: Matrix = Matrix()
    experiments: Annotated[list[ExplicitExperiment], Field(min_length=1)] | None = None
    """Instead of a matrix."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    training: Training = Training()
    compute: Compute = Compute()
    server: TaskSize = TaskSize(cpu=1024, memory=2048)
    worker: TaskSize = TaskSize(cpu=1024, memory=2048)
    max_parallel_experiments: int = Field(default=2, ge=1, le=40)
    tolerated_failures: int = Field(default=0, ge=0)
    experiment_timeout_seconds: int = Field(default=3600, ge=30, le=86400)

    def cells(self) -> Iterator[Cell]:
        """The experiments: explicit ones as written; a matrix by workers, then seeds, modes side by side."""
        if self.experiments is not None:
            for given in self.experiments:
                name = given.name or f"{_classic_name(given.mode, given.workers)}_seed{given.seed}"
                yield Cell(name, given.mode, given.workers, given.seed)
            return
        several = len(self.seeds) > 1
        for workers in self.matrix.workers or PRESET_WORKERS[self.preset]:
            for seed in self.seeds:
                for mode in self.matrix.mode:
                    name = _classic_name(mode, workers)
                    yield Cell(f"{name}_seed{seed}" if several else name, mode, workers, seed)


def _classic_name(mode: Mode, workers: int) -> str:
    return f"{mode}_{workers}worker{'s' if workers > 1 else ''}"


def parse_study(document: object) -> Study:
    """Read a study document.

    Raises StudyRefused with every problem at once: wrong fields and fields that do not go together.
    """
    problems: list[str] = []
    study: Study | None = None
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        problems += problems_of(error, Study)
    if isinstance(document, Mapping):
        problems += _conflicts(document)
    if study is not None:
        problems += _unfit(study)
    if problems or study is None:
        raise StudyRefused(problems)
    return study


def _conflicts(document: Mapping[str, Any]) -> list[str]:
    """Keys that exclude each other. Reads the raw document, so that it is told beside the wrong fields."""
    problems = []
    if document.get("experiments") is not None:
        problems += [
            f"{key}: does not go with 'experiments'; give one or the other"
            for key in ("preset", "matrix", "seeds")
            if key in document
        ]
    training = document.get("training")
    if isinstance(training, Mapping):
        dataset, model = training.get("dataset", Dataset.DIGITS), training.get("model")
        if dataset in list(Dataset) and model in list(ModelName):
            fitting = MODELS_FOR[Dataset(dataset)]
            if model not in fitting:
                problems.append(
                    f"training.model: {model} does not fit {dataset}; choose {', '.join(fitting)}"
                )
    for key, values in (("seeds", document.get("seeds")), *_matrix_lists(document.get("matrix"))):
        if isinstance(values, list):
            repeated = sorted({repr(value) for value in values if values.count(value) > 1})
            problems += [f"{key}: {value} stands there more than once" for value in repeated]
    return problems


def _matrix_lists(matrix: object) -> list[tuple[str, object]]:
    if not isinstance(matrix, Mapping):
        return []
    return [(f"matrix.{key}", matrix.get(key)) for key in ("mode", "workers")]


def _unfit(study: Study) -> list[str]:
    """What only the expanded study shows."""
    names = [cell.name for cell in study.cells()]
    problems = [
        f"experiments: the name '{name}' is used more than once; give each its own 'name'"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if len(names) > MAX_EXPERIMENTS:
        problems.append(f"matrix: {len(names)} experiments; a study has at most {MAX_EXPERIMENTS}: split it")
    return problems
