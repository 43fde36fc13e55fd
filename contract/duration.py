"""How long the tasks of an experiment will run, told before they do.

Pure. Emulated compute is drawn from seeds: its draws are known before, and are played through the rule of the mode. Of
real compute only what an earlier experiment measured is known; without one, a guess goes through the same rule.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from contract.aggregation import BARRIER_MODES
from contract.catalogue import SAMPLES
from contract.compute import Compute
from contract.draws import draw_seconds
from contract.exchange import Compression
from contract.fargate import CPU_UNITS_OF_A_VCPU
from contract.history import Measured
from contract.model_sizes import ModelSize, size_of
from contract.plan import Experiment
from contract.timeline import last_finish
from contract.training import samples_per_step, steps_per_epoch

DRAWS_AT_MOST: Final = 200_000
"""Of one study: a second of a vCPU, of which PlanStudy has a part. Of longer trainings the beginning is drawn."""

TEST_SHARE_OF_GRADIENT: Final = 1 / 3
"""What a test costs beside a gradient: the way forward, where a gradient takes that and one back, twice as dear."""

SERVER_BYTES_PER_SECOND: Final = 600e6
"""What one server takes in and gives out: 5 Gbit/s, and about what 44.7 MB messages reach over loopback."""

BYTES_OF_PARAMETER: Final[dict[Compression, float]] = {
    "none": 4,
    "fp16": 2,
    "bf16": 2,
    "int8": 1.004,
    "topk": 8,
}
"""On the wire; of topk those that are sent, each with its place."""


@dataclass(frozen=True)
class Overheads:
    """What passes beside training, seconds."""

    provisioning: float
    """From RunTask to the moment from which AWS bills the task."""
    pull: float
    """The image."""
    start: float
    """From the process's start until it listens, or has joined."""
    rendezvous: float
    """From the server's answer to RunTask of the workers."""
    step: float
    """Of a step, beside its computation: messages, and what is done with them."""
    peer: float
    """What each further worker adds to a step behind a barrier."""
    end: float
    """From the end of training to the end of the task."""


FARGATE: Final = Overheads(provisioning=20, pull=30, start=8, rendezvous=3, step=0.005, peer=0.0002, end=5)
"""Not measured: a network interface is attached, 1 GB of image comes from ECR and is unpacked, PyTorch is imported.

docs/aws-unverified.md says how to measure it.
"""

EMBEDDED: Final = Overheads(
    provisioning=0.3, pull=0.0, start=0.5, rendezvous=1.0, step=0.004, peer=0.0008, end=0.7
)
"""Measured in the embedded cloud on 2 cores: tasks are forked, and the state machine looks once a second."""


class Basis(StrEnum):
    """What a duration rests on."""

    DRAWS = "draws"
    """The seeded draws of emulated compute."""
    HISTORY = "history"
    """The last experiment that has completed with the same settings."""
    GUESS = "guess"
    """The size of the model, and how fast one core was seen to be."""


@dataclass(frozen=True)
class Duration:
    """Seconds: of training with its tests, and of each of an experiment's tasks."""

    basis: Basis
    training: float
    server: float
    worker: float


def duration_of(
    experiment: Experiment,
    overheads: Overheads,
    *,
    measured: Measured | None = None,
    draws: int = DRAWS_AT_MOST,
) -> Duration:
    """What to expect of an experiment; `draws`: how many steps may be drawn, of all its workers together.

    Losses are not planned for: injected crashes and workers that Spot takes away come on top.
    """
    emulated = experiment.compute.mode == "emulated"
    if measured is not None and not emulated:
        times = (measured.training_seconds, measured.server_seconds, measured.worker_seconds)
        return Duration(Basis.HISTORY, *times)
    training = training_seconds(experiment, overheads, draws) + testing_seconds(experiment)
    worker = overheads.pull + overheads.start + training + overheads.end
    waiting = overheads.pull + overheads.start + overheads.rendezvous + overheads.provisioning
    return Duration(Basis.DRAWS if emulated else Basis.GUESS, training, waiting + worker, worker)


def training_seconds(experiment: Experiment, overheads: Overheads, draws: int = DRAWS_AT_MOST) -> float:
    """From the first parameters to the last worker's finish, without tests."""
    workers, training = experiment.workers, experiment.training
    steps = training.epochs * steps_per_epoch(SAMPLES[training.dataset].train, workers, training.batch_size)
    drawn = min(steps, max(1, draws // workers))
    gradient, server = _gradient_seconds(experiment), _server_seconds(experiment)
    compute = experiment.compute if experiment.compute.mode == "emulated" else _lasting(gradient)
    exchange = overheads.step + server + _link_seconds(experiment)
    if experiment.mode in BARRIER_MODES:
        exchange += (workers - 1) * (overheads.peer + server)

    def seconds(rank: int, step: int) -> float:
        # A real gradient is computed before the rest of a draw is slept.
        return max(draw_seconds(experiment.seed, rank, step, compute), gradient) + exchange

    finish = last_finish(experiment.mode, experiment.aggregation, workers, drawn, seconds)
    # Without a barrier the server may be what all wait for.
    return max(finish * steps / drawn, steps * workers * server)


def testing_seconds(experiment: Experiment) -> float:
    """Every worker tests its share after each epoch; without a barrier, one of them all of it at the end."""
    tests = SAMPLES[experiment.training.dataset].test
    shares = tests / experiment.workers * experiment.training.epochs
    alone = experiment.mode in BARRIER_MODES or experiment.workers == 1
    return (shares + (0 if alone else tests)) * TEST_SHARE_OF_GRADIENT * _sample_seconds(experiment)


def _lasting(seconds: float) -> Compute:
    return Compute.model_construct(mode="emulated", distribution="constant", mean_ms=seconds * 1000)


def _model(experiment: Experiment) -> ModelSize:
    training = experiment.training
    if training.model is None:
        raise ValueError("a planned experiment names its model")
    return size_of(training.dataset, training.model)


def _sample_seconds(experiment: Experiment) -> float:
    """A gradient of one sample on the worker's vCPUs, as if threads cost nothing."""
    return _model(experiment).core_seconds * CPU_UNITS_OF_A_VCPU / experiment.worker.cpu


def _gradient_seconds(experiment: Experiment) -> float:
    training = experiment.training
    samples = SAMPLES[training.dataset].train
    return samples_per_step(samples, experiment.workers, training.batch_size) * _sample_seconds(experiment)


def _message_bytes(experiment: Experiment) -> float:
    """A gradient, or the parameters that answer it."""
    exchange = experiment.exchange
    sent = exchange.topk_ratio if exchange.compression == "topk" else 1.0
    return _model(experiment).parameters * sent * BYTES_OF_PARAMETER[exchange.compression]


def _server_seconds(experiment: Experiment) -> float:
    """What one gradient and its answer take of the servers' bandwidth."""
    return 2 * _message_bytes(experiment) / SERVER_BYTES_PER_SECOND / experiment.shards


def _link_seconds(experiment: Experiment) -> float:
    """What the injected network adds to a step: bandwidth and latency, there and back."""
    network = experiment.network
    passing = 0.0
    if network.bandwidth_mbit_per_second is not None:
        passing = _message_bytes(experiment) * 8 / (network.bandwidth_mbit_per_second * 1e6)
    return 2 * (passing + network.latency_ms / 1000)
