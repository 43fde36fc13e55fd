"""Parts: what Lockstep's server does in an update that a raw round trip does not, each part alone, in a loop.

Runs in the bench's main process, and measures in a child that is set up as a server is.
"""

import tempfile
import timeit
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from bench.case import LEARNING_RATE, SIZES
from bench.harness import rounded
from bench.machine import machine
from bench.processes import Processes
from runtime.blocks import blocks_of
from runtime.optimizer import MomentumSGD
from runtime.parameters import count_non_finite, memory_of

REPEATS: Final = 9
REPEAT_SECONDS: Final = 0.05
TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class PartsRow:
    """Seconds of an update of so many parameters, block by block; the least of REPEATS."""

    parameters: int
    check_seconds: float
    """Looking for values that are not finite in the gradient."""
    apply_seconds: float
    """SGD without momentum, as push-pull has it."""
    copy_seconds: float
    """Copying the parameters, as what a socket does not take at once is copied under the block's lock."""


def measure(sizes: Sequence[str], console: Console) -> dict[str, Any]:
    """Measure these sizes; returns what is written down. Raises RoundFailed."""
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder,
        Processes(Path(folder), TIMEOUT_SECONDS, tuned=True) as processes,
    ):
        child = processes.start("parts", _measure, [SIZES[size] for size in sizes])
        rows: list[PartsRow] = processes.receive(child)
    for row in rows:
        console.print(
            f"  {row.parameters:,} parameters: check {row.check_seconds * 1e3:.3g} ms,"
            f" apply {row.apply_seconds * 1e3:.3g} ms, copy {row.copy_seconds * 1e3:.3g} ms"
        )
    return {"machine": machine(), "rows": [asdict(row) for row in rows]}


def row_of(parameters: int) -> PartsRow:
    """Measure one size in this process."""
    vector, gradient = torch.zeros(parameters), torch.ones(parameters)
    blocks = blocks_of(parameters)
    optimizers = [MomentumSGD(vector[block], learning_rate=LEARNING_RATE, momentum=0.0) for block in blocks]
    return PartsRow(
        parameters=parameters,
        check_seconds=_seconds(count_non_finite, [(gradient[block],) for block in blocks]),
        apply_seconds=_seconds(
            lambda optimizer, part: optimizer.step(part),
            [(optimizer, gradient[block]) for optimizer, block in zip(optimizers, blocks, strict=True)],
        ),
        copy_seconds=_seconds(bytes, [(memory_of(vector[block]),) for block in blocks]),
    )


def _measure(pipe: "Connection[Any, Any]", sizes: Sequence[int]) -> None:
    pipe.send([row_of(size) for size in sizes])
    pipe.recv()


def _seconds(call: Callable[..., object], blocks: Sequence[tuple[Any, ...]]) -> float:
    """Of calls with all blocks' arguments, one after the other; what else the machine does only adds to it."""

    def once() -> None:
        for arguments in blocks:
            call(*arguments)

    number, took = timeit.Timer(once).autorange()
    fewer = max(round(number * REPEAT_SECONDS / took), 1)
    return rounded(min(timeit.repeat(once, number=fewer, repeat=REPEATS)) / fewer)
