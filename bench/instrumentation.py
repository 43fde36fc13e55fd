"""What the instrumentation costs: the same steps with and without it, lap by lap in turn, and from the bottom up.

Runs in the bench's main process; its lower part in the children of a round. They are turned while they run: two laps
that follow each other have the same processes, memory and caches, and differ by what was turned.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console

from bench.case import SIZES, Case, Variant
from bench.costs import SUMS, cost_of_step, measured_costs
from bench.harness import median_interval, pilot_updates, rounded, shuffled
from bench.machine import machine
from bench.processes import Processes
from bench.substitution import Instrumentation, Measuring, turn_by_epoch
from bench.systems.lockstep import Lockstep
from bench.training import run_main, train
from bench.workload import WORKLOADS, Workload
from contract.catalogue import images_of
from contract.exchange import Transport
from contract.model_sizes import size_of
from runtime.dataset import load_dataset
from runtime.sharding import Sharding

SIZES_MEASURED: Final = ("62k", "1M")
TRANSPORTS: Final[tuple[Transport, ...]] = ("shared-memory", "tcp")
WORKLOAD: Final = "digits-cnn"
PUSH_PULL: Final = "push-pull"
TRAINING: Final = f"{WORKLOADS[WORKLOAD].model} on {WORKLOADS[WORKLOAD].dataset}"
TRAINING_TRANSPORT: Final = "shared-memory"
"""What tasks on one host choose."""

MEASURED: Final = (
    *((PUSH_PULL, SIZES[size], transport) for size in SIZES_MEASURED for transport in TRANSPORTS),
    (
        TRAINING,
        size_of(WORKLOADS[WORKLOAD].dataset, WORKLOADS[WORKLOAD].model).parameters,
        TRAINING_TRANSPORT,
    ),
)
"""What has a row: workload, parameters, transport."""

LAP_SECONDS: Final = 0.05
TIMEOUT_SECONDS = 240.0


@dataclass(frozen=True)
class InstrumentationRow:
    """What the instrumentation costs one workload."""

    workload: str
    transport: str
    parameters: int
    workers: int
    laps: int
    """Pairs of laps, one with and one without."""
    step_seconds: float
    """With it; median of the laps."""
    off_over_on: float
    """Steps a second without it, to those with it; median of the pairs."""
    off_over_on_interval: tuple[float, float]
    """Of that median; 95 %."""
    counts: dict[str, float]
    """What is done in a step, by all processes."""
    nanoseconds: dict[str, float]
    """What each of that takes."""
    cost_seconds: float
    """Of a step, from the bottom up, as if nothing of it ran beside anything else."""
    cost_share: float
    """Of the step."""


@dataclass(frozen=True)
class Laps:
    """What was measured of one workload; seconds and counts are those of a step."""

    pairs: Sequence[tuple[float, float]]
    """With and without."""
    counts: Mapping[str, float]


def plan_of(pairs: int) -> list[Measuring]:
    """On and off by pairs: in half of them either comes first. A lap in which is counted comes last.

    Which half is drawn: what comes round in step with the laps would else fall on one of them alone.
    """
    plan: list[Measuring] = []
    for off_first in shuffled([number % 2 for number in range(pairs)], seed=pairs):
        pair = [Measuring.ON, Measuring.OFF]
        plan += reversed(pair) if off_first else pair
    return [*plan, Measuring.COUNTED]


def pairs_of(plan: Sequence[Measuring], seconds: Sequence[float]) -> list[tuple[float, float]]:
    """The laps' times by pairs, with before without."""
    laps = list(zip(plan, seconds, strict=True))[:-1]
    pairs = []
    for one, other in zip(laps[::2], laps[1::2], strict=True):
        found = dict([one, other])
        pairs.append((found[Measuring.ON], found[Measuring.OFF]))
    return pairs


def row_of(
    laps: Laps, costs: Mapping[str, float], *, workload: str, transport: str, parameters: int, workers: int
) -> InstrumentationRow:
    """The figures of one workload; `costs`: seconds of each thing that was counted."""
    ratios = [measured / plain for measured, plain in laps.pairs]
    step, cost = median(measured for measured, _ in laps.pairs), cost_of_step(laps.counts, costs)
    lower, upper = median_interval(ratios)
    return InstrumentationRow(
        workload=workload,
        transport=transport,
        parameters=parameters,
        workers=workers,
        laps=len(laps.pairs),
        step_seconds=rounded(step),
        off_over_on=rounded(median(ratios)),
        off_over_on_interval=(rounded(lower), rounded(upper)),
        counts={name: rounded(count) for name, count in laps.counts.items() if count},
        nanoseconds={name: rounded(1e9 * costs[name]) for name, count in laps.counts.items() if count},
        cost_seconds=rounded(cost),
        cost_share=rounded(cost / step),
    )


def measure(rounds: int, console: Console) -> dict[str, Any]:
    """Measure all workloads, `rounds` pairs of laps each; returns what is written down. Raises RoundFailed."""
    rows = []
    for name in SIZES_MEASURED:
        for transport in TRANSPORTS:
            with console.status(f"instrumentation: push-pull, {name}, {transport}"):
                laps = push_pull_laps(Lockstep(transport), SIZES[name], rounds)
            rows.append(
                row_of(
                    laps,
                    measured_costs(workers=1, gradients=1, waited_seconds=0.0),
                    workload=PUSH_PULL,
                    transport=transport,
                    parameters=SIZES[name],
                    workers=1,
                )
            )
            _say(rows[-1], console)
    with console.status(f"instrumentation: training {WORKLOAD}"):
        rows.append(training_row(WORKLOADS[WORKLOAD], max(rounds // 2, 3)))
    _say(rows[-1], console)
    return {
        "machine": machine(),
        "settings": {"laps": rounds, "lap_seconds": LAP_SECONDS},
        "rows": [asdict(row) for row in rows],
    }


def _say(row: InstrumentationRow, console: Console) -> None:
    lower, upper = row.off_over_on_interval
    console.print(
        f"  {row.workload}, {row.parameters:,} parameters, {row.transport}: without {row.off_over_on:.4f}"
        f" ({lower:.4f} to {upper:.4f}) times as fast; {row.cost_seconds * 1e6:.2f} µs of a step of"
        f" {row.step_seconds * 1e6:.0f} µs: {row.cost_share:.2%}"
    )


def push_pull_laps(system: Lockstep, parameters: int, pairs: int) -> Laps:
    """One worker's laps. Raises RoundFailed."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        pilot_case = _case(parameters, pilot_updates(parameters), Path(folder))
        pilot = system.run_round(pilot_case, TIMEOUT_SECONDS)
    batch = max(round(pilot.updates_per_second * LAP_SECONDS), 2)
    plan = plan_of(pairs)
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder,
        Processes(Path(folder), TIMEOUT_SECONDS, tuned=True) as processes,
    ):
        case = _case(parameters, batch * len(plan), Path(folder))
        server = processes.start("server", _serve, system, case)
        worker = processes.start("worker", _work, system, case, processes.receive(server), batch)
        seconds = []
        for measuring in plan:
            for child in (server, worker):
                child.pipe.send(measuring)
                processes.receive(child)
            seconds.append(processes.receive(worker) / batch)
        counts: Counter[str] = Counter()
        for child in (server, worker):
            child.pipe.send(Measuring.ON)
            counts += Counter(processes.receive(child))
    return Laps(pairs_of(plan, seconds), {name: count / batch for name, count in counts.items()})


def _case(parameters: int, updates: int, folder: Path) -> Case:
    return Case(parameters, 1, Variant("tuned"), warm_up=2, updates=updates, folder=folder)


def _serve(pipe: "Connection[Any, Any]", system: Lockstep, case: Case) -> None:
    instrumentation = Instrumentation()
    with system.serve(case) as address:
        pipe.send(address)
        while isinstance(measuring := pipe.recv(), Measuring):
            _turn(instrumentation, measuring, pipe)


def _work(pipe: "Connection[Any, Any]", system: Lockstep, case: Case, address: str, batch: int) -> None:
    instrumentation = Instrumentation()
    with system.connect(case, 0, address) as update:
        for _ in range(case.warm_up):
            update()
        for _ in range(case.updates // batch):
            _turn(instrumentation, pipe.recv(), pipe)
            began = time.monotonic()
            for _ in range(batch):
                update()
            pipe.send(time.monotonic() - began)
        _turn(instrumentation, pipe.recv(), pipe)
    pipe.recv()


def _turn(instrumentation: Instrumentation, measuring: Measuring, pipe: "Connection[Any, Any]") -> None:
    """Do as told, and say what was counted before."""
    counts = instrumentation.counts()
    instrumentation.turn(measuring)
    pipe.send(counts)


def training_row(workload: Workload, pairs: int) -> InstrumentationRow:
    """Epochs of a whole training in sync mode, with and without in turn. Raises RoundFailed."""
    images = images_of(workload.dataset, workload.model)
    samples = len(load_dataset(workload.dataset, images, "").train)
    steps = Sharding(samples, workload.workers, workload.batch_size, workload.seed).steps_per_epoch
    # A first pair meets cold memory and is not counted.
    plan = plan_of(pairs + 1)
    environment = workload.environment().model_copy(update={"epochs": len(plan)})
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        trained, said = train(environment, Path(folder), _run_turning, plan, steps)
    seconds = [max(epoch.seconds for epoch in ranks) / steps for ranks in zip(*trained.epochs, strict=True)]
    counts = sum((Counter(counted) for counted in said), Counter[str]())
    per_step = {name: count / steps for name, count in counts.items()} | {SUMS: float(workload.workers)}
    return row_of(
        Laps(pairs_of(plan, seconds)[1:], per_step),
        measured_costs(
            workers=workload.workers, gradients=workload.workers, waited_seconds=median(seconds) / 2
        ),
        workload=f"{workload.model} on {workload.dataset}",
        transport="shared-memory",
        parameters=trained.parameters,
        workers=workload.workers,
    )


def _run_turning(
    pipe: "Connection[Any, Any]",
    role: str,
    environ: dict[str, str],
    plan: Sequence[Measuring],
    steps_per_epoch: int,
) -> None:
    instrumentation = Instrumentation()
    turn_by_epoch(instrumentation, plan, steps_per_epoch)
    code = run_main(role, environ)
    pipe.send((code, instrumentation.counts()))
    pipe.recv()
