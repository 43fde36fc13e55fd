"""Study: what a user asks for, as written in a study document (JSON).

Read by the plan_study function and by the command line; knows nothing of how a study is run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contract.catalogue import Dataset, ModelName, catalogue_problems
from contract.errors import StudyRefused
from contract.fargate import size_problem
from contract.problems import problems_of

MAX_WORKERS = 32
"""Largest number of workers of one experiment."""

MAX_EXPERIMENTS = 100
"""Experiments of one study: what all of them are started with stays below the 256 KiB of a state's output."""

MAX_HISTORY_EVENTS = 25_000
"""Events that Step Functions keeps of one execution; one more, and it fails.

Source: Step Functions Developer Guide, service quotas.
"""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"

DATA_PATTERN = r"^(/|s3://[a-z0-9.-]{3,63}(/|$))[^\x00-\x1f]*$"
"""An absolute folder, or a bucket with or without a prefix."""


class Mode(StrEnum):
    """How the parameter server aggregates gradients."""

    SYNC = "sync"
    """Average of all N gradients, one barrier per step."""

    ASYNC = "async"
    """Each gradient is applied on arrival."""


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

# JSON has no enums: their members are read from strings although documents are strict.
ModeField = Annotated[Mode, Field(strict=False)]
Workers = Annotated[int, Field(ge=1, le=MAX_WORKERS)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
OnceEach = Field(min_length=1, json_schema_extra={"uniqueItems": True})


class Document(BaseModel):
    """A part of the study document: unknown keys are refused, numbers are no strings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Matrix(Document):
    """Every mode with every number of workers."""

    mode: Annotated[list[ModeField], OnceEach] = [Mode.SYNC, Mode.ASYNC]
    """Ways to aggregate gradients."""
    workers: Annotated[list[Workers], OnceEach] | None = None
    """Numbers of workers. Default: those of the preset."""


class ExplicitExperiment(Document):
    """One experiment, where a matrix would be too many."""

    name: Name | None = None
    """Default: made of mode, workers and seed."""
    mode: ModeField
    """How the parameter server aggregates gradients."""
    workers: Workers
    """Number of workers."""
    seed: Seed = 0
    """Seed of the first parameters, the order of samples and the emulated durations."""


class Cell(NamedTuple):
    """One experiment of a study: what tells it from the others."""

    name: str
    mode: Mode
    workers: int
    seed: int


class Training(Document):
    """What every worker does; the same for all experiments of a study."""

    dataset: Annotated[Dataset, Field(strict=False)] = Dataset.DIGITS
    """What is learned."""
    model: Annotated[ModelName, Field(strict=False)] | None = None
    """What learns it. Default: the first model that fits the dataset."""
    data: Annotated[str, Field(pattern=DATA_PATTERN, max_length=256)] | None = None
    """Where a torchvision dataset lies: a folder that every worker sees, or s3://bucket/prefix."""
    augment: bool = False
    """Whether training images are shifted by up to 4 pixels and mirrored at random; cifar10 and cifar100."""
    epochs: int = Field(default=5, ge=1, le=1000)
    """How often each worker goes through its shard of the training set."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Samples per worker and step."""
    learning_rate: float = Field(default=0.04, gt=0, le=100)
    """Step size of SGD, the same for every mode and number of workers."""
    momentum: float = Field(default=0.75, ge=0, lt=1)
    """Momentum of SGD, kept by the parameter server."""


class Compute(Document):
    """How long a step's computation lasts: as long as it does (real), or as a seeded draw says (emulated)."""

    mode: Literal["real", "emulated"] = "real"
    """Real: as long as it takes. Emulated: gradients are real, a step lasts as long as a seeded draw says."""
    distribution: Literal["exponential", "constant"] = "exponential"
    """What emulated durations are drawn from."""
    mean_ms: float = Field(default=50, gt=0, le=600_000)
    """Mean of the emulated duration of a step's computation, milliseconds."""


class TaskSize(Document):
    """CPU units (1024 = one vCPU) and MiB of memory of a task."""

    cpu: int
    """CPU units; 1024 are one vCPU."""
    memory: int
    """MiB; Fargate takes certain sizes with each number of CPU units."""

    @model_validator(mode="after")
    def fits_fargate(self) -> Self:
        """Refuse pairs that Fargate does not run."""
        if problem := size_problem(self.cpu, self.memory):
            raise ValueError(problem)
        return self


class Study(Document):
    """A whole study. `{}` is valid: sync against async with 4 workers on the handwritten digits."""

    schema_location: Annotated[str, Field(alias="$schema", exclude=True)] = ""
    """For editors; docs/study.schema.json."""
    name: Name = "study"
    """What the report calls it."""
    preset: Annotated[Preset, Field(strict=False)] = Preset.QUICK
    """Numbers of workers where the matrix names none: quick 4; recommended 2, 4, 8; full 1 to 32."""
    matrix: Matrix = Matrix()
    """Every mode with every number of workers, once per seed."""
    experiments: Annotated[list[ExplicitExperiment], Field(min_length=1)] | None = None
    """Single experiments, instead of preset, matrix and seeds."""
    seeds: Annotated[list[Seed], OnceEach] = [0]
    """Seeds that the whole matrix is repeated with."""
    training: Training = Training()
    """What every worker does."""
    compute: Compute = Compute()
    """How long a step's computation lasts."""
    server: TaskSize = TaskSize(cpu=1024, memory=2048)
    """Size of the parameter server's task."""
    worker: TaskSize = TaskSize(cpu=1024, memory=2048)
    """Size of each worker's task."""
    max_parallel_experiments: int = Field(default=2, ge=1, le=40)
    """How many experiments run at a time."""
    tolerated_failures: int = Field(default=0, ge=0)
    """How many experiments may fail in a study that counts as completed."""
    experiment_timeout_seconds: int = Field(default=3600, ge=30, le=86400)
    """After this long the server gives an experiment up."""

    @property
    def experiment_count(self) -> int:
        """How many cells there are, told without making them: a refused study may ask for billions."""
        if self.experiments is not None:
            return len(self.experiments)
        workers = self.matrix.workers or PRESET_WORKERS[self.preset]
        return len(self.matrix.mode) * len(workers) * len(self.seeds)

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
    problems += _training_conflicts(document.get("training", {}))
    for key, values in (("seeds", document.get("seeds")), *_matrix_lists(document.get("matrix"))):
        if isinstance(values, list):
            problems += [f"{key}: {value!r} stands there more than once" for value in _repeated(values)]
    return problems


def _training_conflicts(training: object) -> list[str]:
    """Data set, model, data and augmentation that do not go together; wrong values are left to validation."""
    if not isinstance(training, Mapping):
        return []
    dataset, model = training.get("dataset", Dataset.DIGITS), training.get("model")
    if dataset not in list(Dataset):
        return []
    problems = catalogue_problems(
        Dataset(dataset),
        ModelName(model) if model in list(ModelName) else None,
        data=training.get("data"),
        augment=training.get("augment") is True,
    )
    return [f"training.{field}: {problem}" for field, problem in problems.items()]


def _repeated(values: Iterable[object]) -> list[str | int]:
    """What is there more than once; values that no list of ours takes are left to validation."""
    counts = Counter(value for value in values if type(value) in {int, str})
    return [value for value, count in counts.items() if count > 1 and isinstance(value, str | int)]


def _matrix_lists(matrix: object) -> list[tuple[str, object]]:
    if not isinstance(matrix, Mapping):
        return []
    return [(f"matrix.{key}", matrix.get(key)) for key in ("mode", "workers")]


def _unfit(study: Study) -> list[str]:
    """What only the expanded study shows."""
    where = "matrix" if study.experiments is None else "experiments"
    if (count := study.experiment_count) > MAX_EXPERIMENTS:
        return [f"{where}: {count} experiments; a study has at most {MAX_EXPERIMENTS}: split it"]
    problems = []
    if study.experiments is not None:
        problems += [
            f"experiments: the name '{name}' is used more than once; give each its own 'name'"
            for name in _repeated(cell.name for cell in study.cells())
        ]
    if (events := sum(history_events(cell.workers) for cell in study.cells())) > MAX_HISTORY_EVENTS:
        problems.append(
            f"{where}: too many workers in all: some {events} history events;"
            f" an execution has at most {MAX_HISTORY_EVENTS}: split the study"
        )
    return problems


def history_events(workers: int) -> int:
    """History events that one experiment takes: 44 of its own and 8 a worker, and some for retries."""
    return 60 + 10 * workers
