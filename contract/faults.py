"""Faults: the crashes that a study injects, and whether training goes on when a worker is lost.

Pure. The worker makes its own crash; the server alone says what the loss of a worker means.
"""

from collections.abc import Callable
from typing import Final, Literal

from pydantic import Field

from contract.document import Document

OnWorkerLoss = Literal["fail", "continue"]

MAX_CRASHES: Final = 32
"""Crashes of one experiment: with all else that a task is told they stay below what ECS takes."""


class Crash(Document):
    """The process of a worker dies, without a word, before it pushes a step."""

    rank: int = Field(ge=0)
    """Which worker."""
    step: int = Field(ge=0, le=1_000_000_000)
    """Before which of its steps, counted 0, 1, 2 … over all epochs."""
    restart_after_seconds: float | None = Field(default=None, ge=0, le=3600)
    """After how long it starts anew and rejoins under its rank. Default: it stays away."""


class Faults(Document):
    """What goes wrong on purpose."""

    crashes: list[Crash] = Field(default=[], max_length=MAX_CRASHES)
    """Workers that crash, and when."""


def crash_problems(
    faults: Faults,
    workers: int,
    on_worker_loss: OnWorkerLoss,
    name: Callable[[str], str] = "faults.{}".format,
) -> list[str]:
    """Crashes that an experiment of `workers` workers cannot have; `name` says what the key is called."""
    problems = []
    for i, crash in enumerate(faults.crashes):
        where, earlier = f"{name('crashes')}[{i}]", faults.crashes[:i]
        if crash.rank >= workers:
            problems.append(f"{where}.rank: {crash.rank} is no rank of {workers} workers")
        if any((crash.rank, crash.step) == (other.rank, other.step) for other in earlier):
            problems.append(
                f"{where}: the crash of rank {crash.rank} at step {crash.step} stands there more than once"
            )
        if any(
            other.rank == crash.rank and other.step < crash.step and other.restart_after_seconds is None
            for other in faults.crashes
        ):
            problems.append(
                f"{where}: rank {crash.rank} stays away after an earlier crash; leave this one out"
            )
        if on_worker_loss == "fail" and crash.restart_after_seconds is not None:
            problems.append(
                f"{where}.restart_after_seconds: training has failed by then;"
                " set on_worker_loss to continue or leave it out"
            )
    return problems


def recovery_problems(
    shards: int, on_worker_loss: OnWorkerLoss, checkpoints: bool, name: Callable[[str], str] = "{}".format
) -> list[str]:
    """Why an experiment over several servers cannot go on after a loss; `name` says what a key is called.

    Of the step during which a peer is lost, some servers have the gradient and others do not.
    """
    wanted = {"on_worker_loss": on_worker_loss == "continue", "checkpoint": checkpoints}
    return [
        f"{name(key)}: with several servers a loss ends the experiment; leave it out or set {name('shards')} to 1"
        for key, given in wanted.items()
        if given and shards > 1
    ]
