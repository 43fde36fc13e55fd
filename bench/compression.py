"""Compression: real training over a slow link, by codec: seconds per epoch and the accuracy at the end.

Runs in the bench's main process.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console

from bench.harness import goes_on, rounded, shuffled, spread_of
from bench.machine import machine
from bench.training import Trained, train
from bench.workload import Workload, run_of
from contract.catalogue import Dataset, ModelName
from contract.exchange import Compression
from contract.metrics import WorkerEpoch

MBIT_PER_SECOND: Final = 100.0
WORKLOAD: Final = Workload(Dataset.DIGITS, ModelName.MLP, batch_size=16, epochs=10)
TOPK_RATIO: Final = 0.01
CODECS: Final[tuple[Compression, ...]] = get_args(Compression)


@dataclass(frozen=True)
class Outcome:
    """One training run."""

    epoch_seconds: float
    accuracy: float
    """Of the test images after the last epoch, per cent."""
    bytes_per_step: float
    """Both ways, of one worker."""


@dataclass(frozen=True)
class CompressionRow:
    """One codec's figures."""

    compression: str
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


def outcome_of(trained: Trained) -> Outcome:
    """What came of a run. Raises ValueError if it has fewer than two epochs."""
    last: list[WorkerEpoch] = [epochs[-1] for epochs in trained.by_rank]
    correct, tested = sum(epoch.test_correct for epoch in last), sum(epoch.test_samples for epoch in last)
    return Outcome(run_of(trained.epochs).epoch_seconds, 100 * correct / tested, trained.bytes_per_step)


def rows_of(
    outcomes: Mapping[str, Sequence[Outcome]], workload: Workload, parameters: int
) -> list[CompressionRow]:
    """One row per codec; `outcomes`: codec → its runs, seed by seed the same for all, `none` among them."""
    rows = []
    plain = outcomes["none"]
    plain_seconds = spread_of([outcome.epoch_seconds for outcome in plain]).median
    for codec, found in outcomes.items():
        seconds = spread_of([outcome.epoch_seconds for outcome in found])
        differences = [one.accuracy - other.accuracy for one, other in zip(found, plain, strict=True)]
        rows.append(
            CompressionRow(
                compression=codec,
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
                accuracy_difference=rounded(sum(differences) / len(differences)),
                accuracy_differences=(rounded(min(differences)), rounded(max(differences))),
            )
        )
    return rows


def measure(seeds: int, minutes: float, console: Console) -> dict[str, Any]:
    """Train with every codec and at most so many seeds; returns what is written down. Raises RoundFailed."""
    deadline = time.monotonic() + 60 * minutes
    outcomes: dict[str, list[Outcome]] = {codec: [] for codec in CODECS}
    parameters = done = 0
    with console.status("") as status:
        while goes_on(done, seeds, in_time=time.monotonic() < deadline):
            for codec in shuffled(CODECS, seed=done):
                status.update(f"compression: {codec}, seed {done}")
                trained = train_compressed(WORKLOAD, codec, seed=done)
                parameters = trained.parameters
                outcomes[codec].append(outcome_of(trained))
            done += 1
    rows = rows_of(outcomes, WORKLOAD, parameters)
    for row in rows:
        console.print(
            f"  {row.compression}: {row.epoch_seconds:.3g} s an epoch, {row.times_shorter:.1f} times shorter;"
            f" accuracy {row.accuracy:.2f} %, {row.accuracy_difference:+.2f} points; {row.seeds} seeds"
        )
    return {
        "machine": machine(),
        "settings": {"seeds_at_most": seeds, "minutes": minutes, "topk_ratio": TOPK_RATIO},
        "rows": [asdict(row) for row in rows],
    }


def train_compressed(workload: Workload, codec: Compression, seed: int) -> Trained:
    """One run over the slow link. Raises RoundFailed."""
    said: dict[str, Any] = {
        "seed": seed,
        "compression": codec,
        "network_bandwidth_mbit_per_second": MBIT_PER_SECOND,
    }
    if codec == "topk":
        said["topk_ratio"] = TOPK_RATIO
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        trained, _ = train(workload.environment().model_copy(update=said), Path(folder))
    return trained
