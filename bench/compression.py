"""Compression: real training over a slow link, by codec: seconds per epoch and the accuracy at the end.

Runs in the bench's main process.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console

from bench.harness import goes_on, rounded, share_of_time, shuffled, spread_of
from bench.machine import machine
from bench.science.statistics import difference
from bench.training import Trained, train
from bench.workload import WORKLOADS, Workload, run_of
from contract.aggregation import Mode
from contract.catalogue import Dataset, ModelName
from contract.exchange import Compression

MBIT_PER_SECOND: Final = 100.0
TOPK_RATIO: Final = 0.01
CODECS: Final[tuple[Compression, ...]] = get_args(Compression)
MLP: Final = Workload(Dataset.DIGITS, ModelName.MLP, batch_size=16, epochs=10)


@dataclass(frozen=True)
class Setting:
    """What is trained, how gradients are aggregated, and which codecs are set beside none."""

    workload: Workload
    mode: Mode
    codecs: tuple[Compression, ...] = ("none", "int8", "topk")

    def __str__(self) -> str:
        return f"{self.workload.model} on {self.workload.dataset}, {self.mode}"


SETTINGS: Final = (
    Setting(MLP, Mode.SYNC, CODECS),
    Setting(MLP, Mode.ASYNC),
    Setting(replace(WORKLOADS["cifar-cnn"], epochs=3), Mode.SYNC),
)


@dataclass(frozen=True)
class Outcome:
    """One training run."""

    epoch_seconds: float
    accuracy: float
    """Of the final parameters on the test images, per cent."""
    bytes_per_step: float
    """Both ways, of one worker."""


@dataclass(frozen=True)
class CompressionRow:
    """One codec's figures."""

    compression: str
    mode: str
    model: str
    dataset: str
    parameters: int
    workers: int
    epochs: int
    mbit_per_second: float
    seeds: int
    epoch_seconds: float
    epoch_seconds_quartiles: tuple[float, float]
    times_shorter: float
    """Than the epoch without compression."""
    bytes_per_step: float
    accuracy: float
    """Mean over the seeds, per cent."""
    accuracy_difference: float
    """To that without compression, in points; mean over the seeds."""
    accuracy_differences: tuple[float, float]
    """The least and the greatest of the seeds."""
    accuracy_interval: tuple[float, float] | None
    """Of the mean difference: 95 %, Student's t over the seeds; None with one seed."""


def outcome_of(trained: Trained) -> Outcome:
    """What came of a run. Raises ValueError if it has fewer than two epochs."""
    return Outcome(run_of(trained.epochs).epoch_seconds, trained.accuracy, trained.bytes_per_step)


def rows_of(
    outcomes: Mapping[str, Sequence[Outcome]], setting: Setting, parameters: int
) -> list[CompressionRow]:
    """One row per codec; `outcomes`: codec → its runs, seed by seed the same for all, `none` among them."""
    plain = outcomes["none"]
    return [_row(codec, found, plain, setting, parameters) for codec, found in outcomes.items()]


def _row(
    codec: str, found: Sequence[Outcome], plain: Sequence[Outcome], setting: Setting, parameters: int
) -> CompressionRow:
    workload = setting.workload
    seconds = spread_of([outcome.epoch_seconds for outcome in found])
    plain_seconds = spread_of([outcome.epoch_seconds for outcome in plain]).median
    pairs = [(one.accuracy, other.accuracy) for one, other in zip(found, plain, strict=True)]
    differences = [one - other for one, other in pairs]
    estimate = difference(pairs)
    return CompressionRow(
        compression=codec,
        mode=setting.mode.value,
        model=workload.model.value,
        dataset=workload.dataset.value,
        parameters=parameters,
        workers=workload.workers,
        epochs=workload.epochs,
        mbit_per_second=MBIT_PER_SECOND,
        seeds=len(found),
        epoch_seconds=rounded(seconds.median),
        epoch_seconds_quartiles=(rounded(seconds.lower), rounded(seconds.upper)),
        times_shorter=rounded(plain_seconds / seconds.median),
        bytes_per_step=rounded(sum(outcome.bytes_per_step for outcome in found) / len(found)),
        accuracy=rounded(sum(outcome.accuracy for outcome in found) / len(found)),
        accuracy_difference=rounded(estimate["mean"]),
        accuracy_differences=(rounded(min(differences)), rounded(max(differences))),
        accuracy_interval=None
        if estimate["low"] is None
        else (rounded(estimate["low"]), rounded(estimate["high"])),
    )


def measure(seeds: int, minutes: float, console: Console) -> dict[str, Any]:
    """Train all settings with at most so many seeds; returns what is written down. Raises RoundFailed."""
    deadline = time.monotonic() + 60 * minutes
    rows: list[CompressionRow] = []
    for number, setting in enumerate(SETTINGS):
        until = share_of_time(time.monotonic(), deadline, len(SETTINGS) - number)
        console.print(f"[bold]compression: {setting}[/]")
        found = _rows(setting, seeds, until, console)
        for row in found:
            console.print(
                f"  {row.compression}: {row.epoch_seconds:.3g} s an epoch, {row.times_shorter:.1f} times shorter;"
                f" accuracy {row.accuracy:.2f} %, {row.accuracy_difference:+.2f} points; {row.seeds} seeds"
            )
        rows += found
    return {
        "machine": machine(),
        "settings": {"seeds_at_most": seeds, "minutes": minutes, "topk_ratio": TOPK_RATIO},
        "rows": [asdict(row) for row in rows],
    }


def _rows(setting: Setting, seeds: int, until: float, console: Console) -> list[CompressionRow]:
    """Seed after seed, every codec in turn."""
    outcomes: dict[str, list[Outcome]] = {codec: [] for codec in setting.codecs}
    parameters = done = 0
    with console.status("") as status:
        while goes_on(done, seeds, in_time=time.monotonic() < until):
            for codec in shuffled(setting.codecs, seed=done):
                status.update(f"{setting}: {codec}, seed {done}")
                trained = train_compressed(setting.workload, setting.mode, codec, seed=done)
                parameters = trained.parameters
                outcomes[codec].append(outcome_of(trained))
            done += 1
    return rows_of(outcomes, setting, parameters)


def train_compressed(workload: Workload, mode: Mode, codec: Compression, seed: int) -> Trained:
    """One run over the slow link. Raises RoundFailed."""
    said: dict[str, Any] = {
        "seed": seed,
        "server_mode": mode,
        "compression": codec,
        "network_bandwidth_mbit_per_second": MBIT_PER_SECOND,
    }
    if codec == "topk":
        said["topk_ratio"] = TOPK_RATIO
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        trained, _ = train(workload.environment().model_copy(update=said), Path(folder))
    return trained
