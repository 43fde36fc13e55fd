"""Memory: what the server's process takes with many workers and a large model, and that steps add nothing to it.

Runs in the bench's main process.
"""

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console

from bench import measure as kernel
from bench.case import SIZES, Case, Variant
from bench.harness import rounded
from bench.machine import machine
from bench.round import warm
from bench.systems.lockstep import Lockstep
from contract.aggregation import Mode
from contract.exchange import Compression, Transport

SIZES_MEASURED: Final = ("1M", "11.2M")
WORKERS: Final = 16
MODES: Final = (Mode.ASYNC, Mode.SYNC)
COMPRESSED: Final[Compression] = "fp16"
"""Any codec has the server keep what the workers hold; this one takes the least time."""

WAYS: Final[tuple[tuple[Transport, Compression], ...]] = (
    ("tcp", "none"),
    ("shared-memory", "none"),
    ("tcp", COMPRESSED),
)
MOMENTUM: Final = 0.75
LONGER: Final = 3
"""Times as many steps: what queued up in some of them would show."""
SAMPLE_SECONDS: Final = 0.1
TIMEOUT_SECONDS = 400.0
"""Of a round, whose 12 steps of 16 workers take half a minute with compression where two cores do nothing else."""


@dataclass(frozen=True)
class Peaks:
    """Most that the server's process took in a round, beyond what it had idle; bytes."""

    resident: int
    """As the kernel kept it (VmHWM): all pages, whoever else has them mapped."""
    private: int
    """Its own pages; the highest of many readings."""
    proportional: int
    """Those, and its part of the pages that it shares with workers: half of them; the highest of many readings."""


@dataclass(frozen=True)
class MemoryRow:
    """Figures of one mode and way to travel; sizes in models, of 4 bytes a parameter."""

    mode: str
    transport: str
    compression: str
    parameters: int
    workers: int
    steps: int
    """Of each worker, in the shorter round."""
    resident: float
    private: float
    proportional: float
    longer_steps: int
    longer_resident: float
    longer_private: float


def row_of(
    short: Peaks,
    long: Peaks,
    *,
    mode: Mode,
    transport: str,
    compression: str,
    parameters: int,
    workers: int,
    steps: int,
) -> MemoryRow:
    """`long`: of a round of LONGER times the `steps`."""
    model = 4 * parameters
    return MemoryRow(
        mode=mode.value,
        transport=transport,
        compression=compression,
        parameters=parameters,
        workers=workers,
        steps=steps,
        resident=rounded(short.resident / model),
        private=rounded(short.private / model),
        proportional=rounded(short.proportional / model),
        longer_steps=LONGER * steps,
        longer_resident=rounded(long.resident / model),
        longer_private=rounded(long.private / model),
    )


def measure(sizes: Sequence[str], counts: Sequence[int], steps: int, console: Console) -> dict[str, Any]:
    """Measure both modes in all WAYS; returns what is written down. Raises RoundFailed.

    `steps`: of each of so many workers, in the shorter round; 2 or more.
    """
    rows: list[MemoryRow] = []
    for size, workers, mode, (transport, compression) in product(sizes, counts, MODES, WAYS):
        system = Lockstep(transport, mode=mode, momentum=MOMENTUM, compression=compression)
        way = f"{mode}, {transport}, {compression}"
        with console.status(f"memory: {size} parameters, {workers} workers, {way}"):
            short, long = (
                peaks_of(system, SIZES[size], workers, updates) for updates in (steps, LONGER * steps)
            )
        row = row_of(
            short,
            long,
            mode=mode,
            transport=transport,
            compression=compression,
            parameters=SIZES[size],
            workers=workers,
            steps=steps,
        )
        rows.append(row)
        console.print(
            f"  {way}: {row.resident:.2f} models resident, {row.private:.2f} private;"
            f" after {LONGER} times the steps {row.longer_resident:.2f} and {row.longer_private:.2f}"
        )
    return {
        "machine": machine(),
        "settings": {"momentum": MOMENTUM, "sample_seconds": SAMPLE_SECONDS},
        "rows": [asdict(row) for row in rows],
    }


def peaks_of(system: Lockstep, parameters: int, workers: int, steps: int) -> Peaks:
    """One round. Raises RoundFailed."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        case = Case(parameters, workers, Variant("tuned"), 1, steps - 1, Path(folder))
        with warm(system, case, TIMEOUT_SECONDS) as crew:
            with _Watch(crew.server.pid) as watch:
                crew.run()
            resident = kernel.peak_above_idle(crew.idle, kernel.read_memory(crew.server.pid))
    idle = crew.idle_shares
    return Peaks(
        resident=resident,
        private=max(reading.anonymous for reading in watch.readings) - idle.anonymous,
        proportional=max(reading.anonymous + reading.shared for reading in watch.readings)
        - idle.anonymous
        - idle.shared,
    )


class _Watch:
    """Reads a process's memory while it works: the kernel keeps no peak of what is its own."""

    def __init__(self, pid: int) -> None:
        self.readings: Sequence[kernel.Shares] = [kernel.read_shares(pid)]
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self.readings = [*self.readings, kernel.read_shares(self._pid)]

    def _read(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            try:
                self.readings = [*self.readings, kernel.read_shares(self._pid)]
            except OSError:
                return  # it is gone; the round says so
