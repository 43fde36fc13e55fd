"""Whole training: seconds per epoch of Lockstep in sync mode and of PyTorch DDP, run by run in turn.

Runs in the bench's main process.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench import ddp
from bench.case import BOTH_MALLOCS, RoundFailed, Variant
from bench.harness import Contestant, goes_on, share_of_time, shuffled, spread_of
from bench.machine import machine
from bench.processes import Processes
from bench.substitution import set_synthetic_samples
from bench.training import run_task, train
from bench.workload import WORKLOADS, Run, Workload, run_of, same_training
from contract.catalogue import images_of
from contract.exchange import Transport
from runtime.model import build_model

LOCKSTEP: Final[Mapping[str, Transport]] = {
    "Lockstep sync (shared-memory)": "shared-memory",
    "Lockstep sync (tcp)": "tcp",
}
DDP: Final = "PyTorch DDP (Gloo)"
CONTESTANTS: Final = [
    *(Contestant(name, Variant("tuned")) for name in LOCKSTEP),
    *(Contestant(DDP, variant) for variant in BOTH_MALLOCS),
]
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class EpochRow:
    """A system's figures for one workload: those of its fastest variant."""

    workload: str
    system: str
    parameters: int
    dataset: str
    workers: int
    batch_size: int
    epochs: int
    steps: int
    """Of one worker in one epoch."""
    variant: str
    rounds: int
    epoch_seconds: float
    epoch_seconds_quartiles: tuple[float, float]
    ratio_to_ddp: float
    last_loss: float


def measure(names: Sequence[str], rounds: int, minutes: float, console: Console) -> dict[str, Any]:
    """Measure the workloads of these names; returns what is written down. Raises RoundFailed."""
    deadline = time.monotonic() + 60 * minutes
    rows: list[EpochRow] = []
    for number, name in enumerate(names):
        until = share_of_time(time.monotonic(), deadline, len(names) - number)
        workload = WORKLOADS[name]
        console.print(f"[bold]whole training: {name}[/], {workload.workers} workers")
        found = rows_of(name, workload, _runs(workload, workload.rounds or rounds, until, console))
        rows += found
        for row in found:
            console.print(
                f"  {row.system}: {row.epoch_seconds:.4g} s an epoch in {row.rounds} runs,"
                f" {row.ratio_to_ddp:.2f} of DDP's; {row.variant}"
            )
    return {
        "machine": machine(),
        "settings": {"rounds_at_most": rounds, "minutes": minutes},
        "rows": [asdict(row) for row in rows],
    }


def rows_of(name: str, workload: Workload, runs: Mapping[Contestant, Sequence[Run]]) -> list[EpochRow]:
    """One row per system. Raises RoundFailed if they did not train alike: then the times compare nothing."""
    reference = next(iter(runs.values()))[0]
    for contestant, found in runs.items():
        for run in found:
            if not same_training(reference, run):
                raise RoundFailed(
                    f"{contestant.system} did not train as the others: losses {run.losses} in {run.steps}"
                    f" steps an epoch; expected {reference.losses} in {reference.steps}"
                )
    spreads = {who: spread_of([run.epoch_seconds for run in found]) for who, found in runs.items()}
    best = {
        system: min((who for who in spreads if who.system == system), key=lambda who: spreads[who].median)
        for system in dict.fromkeys(who.system for who in spreads)
    }
    parameters = parameters_of(workload)
    return [
        EpochRow(
            workload=name,
            system=system,
            parameters=parameters,
            dataset=workload.dataset.value,
            workers=workload.workers,
            batch_size=workload.batch_size,
            epochs=workload.epochs,
            steps=runs[who][-1].steps,
            variant=str(who.variant),
            rounds=len(runs[who]),
            epoch_seconds=spreads[who].median,
            epoch_seconds_quartiles=(spreads[who].lower, spreads[who].upper),
            ratio_to_ddp=spreads[who].median / spreads[best[DDP]].median,
            last_loss=runs[who][-1].losses[-1],
        )
        for system, who in best.items()
    ]


def parameters_of(workload: Workload) -> int:
    """Of its model."""
    model = build_model(workload.model, images_of(workload.dataset, workload.model), workload.seed)
    return sum(part.numel() for part in model.parameters())


def _runs(workload: Workload, rounds: int, until: float, console: Console) -> dict[Contestant, list[Run]]:
    runs: dict[Contestant, list[Run]] = {contestant: [] for contestant in CONTESTANTS}
    done = 0
    with console.status("") as status:
        while goes_on(done, rounds, in_time=time.monotonic() < until):
            for contestant in shuffled(CONTESTANTS, seed=done):
                status.update(f"round {done + 1} of at most {rounds}: {contestant.system}")
                with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
                    runs[contestant].append(train_as(contestant, workload, Path(folder)))
            done += 1
    return runs


def train_as(contestant: Contestant, workload: Workload, folder: Path) -> Run:
    """One run. Raises RoundFailed."""
    if contestant.system == DDP:
        return train_ddp(workload, contestant.variant, folder)
    return train_lockstep(workload, LOCKSTEP[contestant.system], folder)


def train_ddp(workload: Workload, variant: Variant, folder: Path) -> Run:
    """One run of DDP's. Raises RoundFailed."""
    with Processes(folder, TIMEOUT_SECONDS, tuned=variant.malloc == "tuned") as processes:
        ranks = [
            processes.start(f"rank{rank}", ddp.train, workload, rank, folder / "rendezvous")
            for rank in range(workload.workers)
        ]
        return run_of([processes.receive(rank) for rank in ranks])


def train_lockstep(workload: Workload, transport: Transport, folder: Path) -> Run:
    """One run of Lockstep's, whose tasks tune malloc themselves. Raises RoundFailed."""
    environment = workload.environment().model_copy(update={"transport": transport})
    trained, _ = train(environment, folder, _run_task, workload.samples)
    return run_of(trained.epochs)


def _run_task(pipe: "Connection[Any, Any]", role: str, environ: dict[str, str], samples: int | None) -> None:
    if samples:
        set_synthetic_samples(samples)
    run_task(pipe, role, environ)
