"""Blocks: updates per second by the length of the blocks that vectors are cut into, and in one piece.

Runs in the bench's main process. Its figures are why the runtime's blocks are as long as they are.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.case import SIZES, Case, Sample, Variant
from bench.harness import (
    goes_on,
    pilot_updates,
    rounded,
    share_of_time,
    shuffled,
    spread_of,
    updates_each,
    warm_up_of,
)
from bench.machine import machine
from bench.systems.lockstep import Lockstep
from contract.exchange import Transport
from runtime.blocks import blocks_of

LENGTHS: Final = tuple(1 << exponent for exponent in (14, 16, 17, 18, 19, 20, 22))
TRANSPORTS: Final[tuple[Transport, ...]] = ("tcp", "shared-memory")
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class BlocksRow:
    """Updates per second with blocks of one length."""

    transport: str
    parameters: int
    block_length: int
    """Elements."""
    blocks: int
    is_runtimes: bool
    """The length that the runtime itself cuts vectors of this size into."""
    rounds: int
    updates_per_second: float
    updates_per_second_quartiles: tuple[float, float]
    ratio_to_runtimes: float


def lengths_for(parameters: int) -> list[int]:
    """Lengths that cut a vector into two blocks or more, and the vector's own."""
    return [*(length for length in LENGTHS if length < parameters), parameters]


def rows_of(
    rates: Mapping[int, Sequence[float]], *, transport: str, parameters: int, runtimes: int
) -> list[BlocksRow]:
    """Rows of one size and transport; `rates`: length of blocks → updates per second of its rounds.

    `runtimes`: the length that the runtime itself cuts such vectors into.
    """
    spreads = {length: spread_of(found) for length, found in rates.items()}
    return [
        BlocksRow(
            transport=transport,
            parameters=parameters,
            block_length=length,
            blocks=-(-parameters // length),
            is_runtimes=length == runtimes,
            rounds=len(rates[length]),
            updates_per_second=rounded(spread.median),
            updates_per_second_quartiles=(rounded(spread.lower), rounded(spread.upper)),
            ratio_to_runtimes=rounded(spread.median / spreads[runtimes].median),
        )
        for length, spread in spreads.items()
    ]


def measure(
    sizes: Sequence[str], rounds: int, seconds: float, minutes: float, console: Console
) -> dict[str, Any]:
    """Measure these sizes over both transports; returns what is written down. Raises RoundFailed."""
    deadline = time.monotonic() + 60 * minutes
    rows: list[BlocksRow] = []
    configurations = [(SIZES[size], transport) for size in sizes for transport in TRANSPORTS]
    for number, (parameters, transport) in enumerate(configurations):
        until = share_of_time(time.monotonic(), deadline, len(configurations) - number)
        with console.status(f"blocks: {parameters:,} parameters, {transport}"):
            rates = _rates(parameters, transport, rounds, seconds, until)
        found = rows_of(
            rates, transport=transport, parameters=parameters, runtimes=blocks_of(parameters)[0].stop
        )
        rows += found
        best = max(found, key=lambda row: row.updates_per_second)
        console.print(
            f"  {parameters:,} parameters, {transport}: fastest in {best.blocks} blocks of {best.block_length:,},"
            f" {best.ratio_to_runtimes:.2f} times as fast as the runtime's; {best.rounds} rounds"
        )
    return {
        "machine": machine(),
        "settings": {"seconds": seconds, "rounds_at_most": rounds, "minutes": minutes},
        "rows": [asdict(row) for row in rows],
    }


def _rates(
    parameters: int, transport: Transport, rounds: int, seconds: float, until: float
) -> dict[int, list[float]]:
    pilot = _round(Lockstep(transport), parameters, pilot_updates(parameters))
    updates = updates_each(pilot.updates_per_second, 1, seconds)
    rates: dict[int, list[float]] = {length: [] for length in lengths_for(parameters)}
    done = 0
    while goes_on(done, rounds, in_time=time.monotonic() < until):
        for length in shuffled(list(rates), seed=done):
            sample = _round(Lockstep(transport, block_length=length), parameters, updates)
            rates[length].append(sample.updates_per_second)
        done += 1
    return rates


def _round(system: Lockstep, parameters: int, updates: int) -> Sample:
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        case = Case(parameters, 1, Variant("tuned"), warm_up_of(updates), updates, Path(folder))
        return system.run_round(case, TIMEOUT_SECONDS)
