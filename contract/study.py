"""Study: what a user asks for, as written in a study document (JSON).

Read by the plan_study function and by the command line; knows nothing of how a study is run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from contract.aggregation import Aggregation, Mode, keys_problems, missing_keys, variant, workers_problem
from contract.compute import Compute, compute_conflicts, straggler_problems
from contract.document import MAX_WORKERS, Document, OnceEach
from contract.errors import StudyRefused
from contract.fargate import size_problem
from contract.problems import problems_of
from contract.training import Training, training_conflicts

MAX_EXPERIMENTS = 100
"""Experiments of one study: what all of them are started with stays below the 256 KiB of a state's output."""

MAX_HISTORY_EVENTS = 25_000
"""Events that Step Functions keeps of one execution; one more, and it fails.

Source: Step Functions Developer Guide, service quotas.
"""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


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


class Matrix(Document):
    """Every mode with every number of workers."""

    mode: Annotated[list[ModeField], OnceEach] = Field(default=[Mode.SYNC, Mode.ASYNC])
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
    aggregation: Aggregation = Aggregation()
    """What its mode must be told, where that is not what the study says."""


class Cell(NamedTuple):
    """One experiment of a study: what tells it from the others."""

    name: str
    mode: Mode
    workers: int
    seed: int
    aggregation: Aggregation
    """What the mode is told, and nothing else."""


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
    seeds: Annotated[list[Seed], OnceEach] = Field(default=[0])
    """Seeds that the whole matrix is repeated with."""
    aggregation: Aggregation = Aggregation()
    """What the modes of the study must be told; each key belongs to certain modes, which need it."""
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
            yield from self._explicit_cells(self.experiments)
            return
        several = len(self.seeds) > 1
        for workers in self.matrix.workers or PRESET_WORKERS[self.preset]:
            for seed in self.seeds:
                for mode in self.matrix.mode:
                    name = _classic_name(mode, workers) + (f"_seed{seed}" if several else "")
                    yield Cell(name, mode, workers, seed, self.aggregation.own(mode))

    def _explicit_cells(self, experiments: Iterable[ExplicitExperiment]) -> Iterator[Cell]:
        """What a mode is told stands in the default names where the study tells it several things."""
        told = [(given, self._told(given)) for given in experiments]
        variants: dict[Mode, set[Aggregation]] = {}
        for given, aggregation in told:
            variants.setdefault(given.mode, set()).add(aggregation)
        for given, aggregation in told:
            mode = given.mode
            label = variant(mode, aggregation) if len(variants[mode]) > 1 else mode.value
            name = given.name or f"{_classic_name(label, given.workers)}_seed{given.seed}"
            yield Cell(name, mode, given.workers, given.seed, aggregation)

    def _told(self, given: ExplicitExperiment) -> Aggregation:
        """What an experiment says itself goes before what the study says."""
        own = given.aggregation.model_dump(exclude_none=True)
        return self.aggregation.model_copy(update=own).own(given.mode)


def _classic_name(mode: str, workers: int) -> str:
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
    problems += _aggregation_conflicts(document)
    problems += training_conflicts(document.get("training"))
    problems += compute_conflicts(document.get("compute"))
    problems += _ignored_by_real_compute(document.get("compute"))
    for key, values in (("seeds", document.get("seeds")), *_matrix_lists(document.get("matrix"))):
        if isinstance(values, list):
            problems += [f"{key}: {value!r} stands there more than once" for value in _repeated(values)]
    return problems


def _ignored_by_real_compute(section: object) -> list[str]:
    """Durations in a study whose steps last as long as they do."""
    if not isinstance(section, Mapping) or section.get("mode", "real") != "real":
        return []
    return [
        f"compute.{key}: belongs to mode emulated, not to real; set compute.mode or leave it out"
        for key in ("distribution", "mean_ms")
        if key in section
    ]


def _aggregation_conflicts(document: Mapping[str, Any]) -> list[str]:
    """Keys of `aggregation` that no mode here takes, or that a mode here needs and nobody gave."""
    section, experiments = document.get("aggregation"), document.get("experiments")
    if not isinstance(experiments, list):
        matrix = document.get("matrix")
        given = matrix.get("mode", Matrix().mode) if isinstance(matrix, Mapping) else Matrix().mode
        modes = _modes(given if isinstance(given, list) else [])
        problems = keys_problems(section, modes, "aggregation")
        for mode in modes:
            problems += missing_keys([section], mode, "aggregation.{}".format)
        return list(dict.fromkeys(problems))
    listed = [(i, entry) for i, entry in enumerate(experiments) if isinstance(entry, Mapping)]
    problems = keys_problems(section, _modes(entry.get("mode") for _, entry in listed), "aggregation")
    for i, entry in listed:
        where = f"experiments[{i}].aggregation"
        for mode in _modes([entry.get("mode")]):
            problems += keys_problems(entry.get("aggregation"), [mode], where)
            problems += missing_keys([entry.get("aggregation"), section], mode, f"{where}.{{}}".format)
    return problems


def _modes(given: Iterable[object]) -> list[Mode]:
    """The modes among raw values, each once."""
    known = {mode.value: mode for mode in Mode}
    return list(dict.fromkeys(known[value] for value in given if isinstance(value, str) and value in known))


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
    cells = list(study.cells())
    problems += dict.fromkeys(
        problem
        for cell in cells
        if (problem := workers_problem(cell.mode, cell.aggregation, cell.workers, "aggregation.{}".format))
    )
    problems += straggler_problems(study.compute, min(cell.workers for cell in cells))
    if study.training.optimizer == "adam" and any(cell.mode is Mode.STALENESS_AWARE for cell in cells):
        problems.append("training.optimizer: adam undoes the weights of mode staleness-aware; choose sgd")
    if (events := sum(history_events(cell.workers) for cell in study.cells())) > MAX_HISTORY_EVENTS:
        problems.append(
            f"{where}: too many workers in all: some {events} history events;"
            f" an execution has at most {MAX_HISTORY_EVENTS}: split the study"
        )
    return problems


def history_events(workers: int) -> int:
    """History events that one experiment takes: 44 of its own and 8 a worker, and some for retries."""
    return 60 + 10 * workers
