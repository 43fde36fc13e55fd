"""Study: what a user asks for, as written in a study document (JSON).

Read by the plan_study function and by the command line; knows nothing of how a study is run.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from contract.aggregation import (
    DEFAULT_MODES,
    Aggregation,
    Mode,
    aggregation_conflicts,
    shards_problem,
    variant,
    workers_problem,
)
from contract.checkpoint import Checkpointing
from contract.compute import Compute, compute_conflicts, ignored_by_real_compute, straggler_problems
from contract.document import MAX_SHARDS, MAX_WORKERS, Document, OnceEach
from contract.errors import StudyRefused
from contract.exchange import Exchange, exchange_conflicts, transport_problem
from contract.fargate import size_problem
from contract.faults import Faults, OnWorkerLoss, crash_problems, recovery_problems
from contract.limits import (
    AROUND_SECONDS,
    ENDING_SECONDS,
    JUDGING_SECONDS,
    LAUNCH_SECONDS,
    PREPARING_SECONDS,
)
from contract.memory import server_memory_problem
from contract.network import Network, link_problems
from contract.problems import problems_of
from contract.training import Training, training_conflicts

MAX_EXPERIMENTS = 100
"""Experiments of one study: what all of them are started with stays below the 256 KiB of a state's output."""

MAX_STUDY_SECONDS = 14 * 86_400
"""How long a study may take, as the state machine says too; docs/scale.md has the reason."""

MAX_STUDY_ID_CHARACTERS = 80
"""Source: Step Functions API Reference, StartExecution, name."""

_STUDY_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_STUDY_ID_CHARACTERS - 1}}}")

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

    mode: Annotated[list[ModeField], OnceEach] = Field(default=[*DEFAULT_MODES])
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
    exchange: Exchange | None = None
    """How gradients and parameters travel; in place of all that the study says of it."""
    network: Network | None = None
    """Injected conditions; in place of all that the study says of them."""


class Cell(NamedTuple):
    """One experiment of a study: what tells it from the others."""

    name: str
    mode: Mode
    workers: int
    seed: int
    aggregation: Aggregation
    """What the mode is told, and nothing else."""
    exchange: Exchange
    network: Network


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


class WorkerSize(TaskSize):
    """Size of a worker's task, and what capacity it runs on."""

    spot: bool = False
    """Fargate Spot: cheaper, and AWS may take a worker away, which is then started again. Servers never are."""


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
    exchange: Exchange = Exchange()
    """How gradients and parameters travel between workers and server."""
    network: Network = Network()
    """Conditions that are injected between each worker and the server."""
    faults: Faults = Faults()
    """What goes wrong on purpose."""
    on_worker_loss: OnWorkerLoss | None = None
    """Whether an experiment fails when a worker is lost, or goes on without it. Default: go on with Spot, else fail."""
    checkpoint: Checkpointing | None = None
    """From what a restarted server resumes. Default: no checkpoints."""
    shards: int = Field(default=1, ge=1, le=MAX_SHARDS)
    """Over how many server tasks the parameters are spread."""
    server: TaskSize = TaskSize(cpu=1024, memory=2048)
    """Size of the parameter server's task."""
    worker: WorkerSize = WorkerSize(cpu=1024, memory=2048)
    """Size and capacity of each worker's task."""
    max_parallel_experiments: int = Field(default=2, ge=1, le=40)
    """How many experiments run at a time."""
    tolerated_failures: int = Field(default=0, ge=0)
    """How many experiments may fail in a study that counts as completed."""
    experiment_timeout_seconds: int = Field(default=3600, ge=30, le=86400)
    """After this long the server gives an experiment up."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    """Refuse the study where its estimated cost in US dollars is higher. Default: no bound."""
    dry_run: bool = False
    """Plan and price the study, and start nothing."""

    @property
    def loss_rule(self) -> OnWorkerLoss:
        """What the loss of a worker means: as the study says, or as its workers' capacity asks for."""
        return self.on_worker_loss or ("continue" if self.worker.spot else "fail")

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
                    own = self.aggregation.own(mode)
                    yield Cell(name, mode, workers, seed, own, self.exchange, self.network)

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
            exchange, network = given.exchange or self.exchange, given.network or self.network
            yield Cell(name, mode, given.workers, given.seed, aggregation, exchange, network)

    def _told(self, given: ExplicitExperiment) -> Aggregation:
        """What an experiment says itself goes before what the study says."""
        own = given.aggregation.model_dump(exclude_none=True)
        return self.aggregation.model_copy(update=own).own(given.mode)


def _classic_name(mode: str, workers: int) -> str:
    return f"{mode}_{workers}worker{'s' if workers > 1 else ''}"


def check_study_id(study_id: str) -> None:
    """Raise StudyRefused where an execution's name is no study's id.

    Step Functions takes names that ECS refuses as a tag's value, and others that are awkward in a path.
    """
    if not _STUDY_ID.fullmatch(study_id):
        raise StudyRefused(
            [
                f"execution name: {study_id!r} cannot be a study's; start it under one of 1 to"
                f" {MAX_STUDY_ID_CHARACTERS} characters A-Z a-z 0-9 . _ -, the first a letter or a digit"
            ]
        )


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
    problems += aggregation_conflicts(document)
    problems += training_conflicts(document.get("training"))
    problems += compute_conflicts(document.get("compute"))
    problems += ignored_by_real_compute(document.get("compute"))
    problems += exchange_conflicts(document.get("exchange"))
    for i, entry in enumerate(_experiments(document)):
        problems += exchange_conflicts(entry.get("exchange"), f"experiments[{i}].exchange.{{}}".format)
    for key, values in (("seeds", document.get("seeds")), *_matrix_lists(document.get("matrix"))):
        if isinstance(values, list):
            problems += [f"{key}: {value!r} stands there more than once" for value in _repeated(values)]
    return problems


def _experiments(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The raw explicit experiments; what is none is left to validation."""
    listed = document.get("experiments")
    for entry in listed if isinstance(listed, list) else ():
        yield entry if isinstance(entry, Mapping) else {}


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
    problems += dict.fromkeys(problem for cell in cells for problem in _cell_problems(study, cell) if problem)
    fewest = min(cell.workers for cell in cells)
    problems += straggler_problems(study.compute, fewest)
    problems += crash_problems(study.faults, fewest, study.loss_rule)
    problems += recovery_problems(study.shards, study.on_worker_loss or "fail", study.checkpoint is not None)
    problems += _spot_problems(study)
    if study.training.optimizer == "adam" and any(cell.mode is Mode.STALENESS_AWARE for cell in cells):
        problems.append("training.optimizer: adam undoes the weights of mode staleness-aware; choose sgd")
    problems += duration_problems(
        len(cells),
        study.experiment_timeout_seconds,
        study.max_parallel_experiments,
        "raise max_parallel_experiments",
    )
    return problems


def duration_problems(experiments: int, timeout_seconds: int, at_a_time: int, way_out: str) -> list[str]:
    """Why a study could run out of time, were everything in it to take as long as it may, once.

    `way_out`: what lets more experiments run at a time.
    """
    rounds = -(-experiments // at_a_time)
    one = LAUNCH_SECONDS + timeout_seconds + ENDING_SECONDS + JUDGING_SECONDS
    if (seconds := PREPARING_SECONDS + rounds * one + AROUND_SECONDS) <= MAX_STUDY_SECONDS:
        return []
    return [
        f"experiment_timeout_seconds: {experiments} experiments of {timeout_seconds:,} s, {at_a_time} at a time,"
        f" may take {seconds:,} s; a study has {MAX_STUDY_SECONDS:,} s: lower it, {way_out}, or split the study"
    ]


def _spot_problems(study: Study) -> list[str]:
    """Why workers that AWS may take away cannot have what the study says of losses."""
    if not study.worker.spot:
        return []
    problems = []
    if study.on_worker_loss == "fail":
        problems.append(
            "on_worker_loss: fail does not go with worker.spot, where AWS may take a worker at any time;"
            " set it to continue, or leave one of them out"
        )
    if study.shards > 1:
        problems.append(
            "worker.spot: with several servers the loss of a worker ends the experiment;"
            " leave it out or set shards to 1"
        )
    return problems


def _cell_problems(study: Study, cell: Cell) -> Iterator[str]:
    """What does not go together in one experiment; empty lines among them."""
    yield workers_problem(cell.mode, cell.aggregation, cell.workers, "aggregation.{}".format)
    yield shards_problem(cell.mode, study.shards, "shards")
    yield transport_problem(cell.exchange, cell.network, "exchange.{}".format)
    yield from link_problems(cell.network, cell.workers)
    yield server_memory_problem(
        study.training,
        cell.exchange,
        cell.mode,
        workers=cell.workers,
        shards=study.shards,
        memory_mib=study.server.memory,
    )
