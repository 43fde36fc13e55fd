"""Compute: how long a step's computation lasts, as a study document says it.

Pure. The draws are in `contract.draws`; their moments stand here, where the laws of the report find them too.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Final, Literal

from pydantic import Field

from contract.document import Belonging, Document, misplaced

Distribution = Literal["constant", "exponential", "shifted-exponential", "pareto"]


class Straggler(Document):
    """A worker that is slow all the time."""

    rank: int = Field(ge=0)
    """Which worker."""
    slowdown: float = Field(ge=1, le=1000)
    """How many times as long each of its steps takes."""


class Compute(Document):
    """How long a step's computation lasts: as long as it does (real), or as a seeded draw says (emulated).

    With mean m = mean_ms, shift c = shift_ms, tail index a = tail_index, in milliseconds:

    distribution          P(X > x)                              mean   standard deviation
    constant              1 for x < m                           m      0
    exponential           exp(-x/m)                             m      m
    shifted-exponential   exp(-(x-c)/(m-c)) for x ≥ c           m      m - c
    pareto                (x0/x)^a for x ≥ x0 = m(a-1)/a        m      m / √(a(a-2)); infinite for a ≤ 2

    Sources: Dutta et al. 2018 (arXiv:1803.01113) compare these for stragglers.
    """

    mode: Literal["real", "emulated"] = "real"
    """Real: as long as it takes. Emulated: gradients are real, a step lasts as long as a seeded draw says."""
    distribution: Distribution = "exponential"
    """What emulated durations are drawn from."""
    mean_ms: float = Field(default=50, gt=0, le=600_000)
    """Mean of the emulated duration of a step's computation, milliseconds."""
    shift_ms: float | None = Field(default=None, gt=0, le=600_000)
    """Shifted exponential: the least that a step takes, milliseconds; below the mean."""
    tail_index: float | None = Field(default=None, gt=1, le=100)
    """Pareto: the smaller, the longer the tail; the mean stays."""
    stragglers: list[Straggler] = Field(default=[])
    """Workers whose emulated steps take longer than everybody else's."""

    def slowdown(self, rank: int) -> float:
        """How many times as long the steps of a worker take."""
        return next((slow.slowdown for slow in self.stragglers if slow.rank == rank), 1.0)

    @property
    def deviation_ms(self) -> float | None:
        """Standard deviation of the draws of a worker that is no straggler; None where it is infinite."""
        match self.distribution:
            case "constant":
                return 0.0
            case "exponential":
                return self.mean_ms
            case "shifted-exponential":
                return self.mean_ms - (self.shift_ms or 0.0)
            case "pareto":
                a = self.tail_index or 0.0
                return self.mean_ms / sqrt(a * (a - 2)) if a > 2 else None


COMPUTE_RULES: Final = (
    Belonging("shift_ms", "distribution", ("shifted-exponential",), needed=True),
    Belonging("tail_index", "distribution", ("pareto",), needed=True),
)


def compute_conflicts(section: object, name: Callable[[str], str] = "compute.{}".format) -> list[str]:
    """Keys of the raw section that exclude each other, or that others call for; `name` says what they are called."""
    problems = misplaced(section, Compute, COMPUTE_RULES, name)
    if isinstance(section, Mapping):
        if section.get("stragglers") and section.get("mode", "real") == "real":
            problems.append(
                f"{name('stragglers')}: belongs to mode emulated, not to real;"
                f" set {name('mode')} or leave it out"
            )
        mean, shift = section.get("mean_ms", Compute().mean_ms), section.get("shift_ms")
        numbers = isinstance(mean, int | float) and isinstance(shift, int | float)
        if numbers and section.get("distribution") == "shifted-exponential" and shift >= mean:
            problems.append(
                f"{name('shift_ms')}: {shift} must be less than the mean, {name('mean_ms')} = {mean}"
            )
    return problems


def ignored_by_real_compute(section: object) -> list[str]:
    """Keys of the raw section that say how long steps last, in a study whose steps last as long as they do."""
    if not isinstance(section, Mapping) or section.get("mode", "real") != "real":
        return []
    return [
        f"compute.{key}: belongs to mode emulated, not to real; set compute.mode or leave it out"
        for key in ("distribution", "mean_ms")
        if key in section
    ]


def straggler_problems(compute: Compute, workers: int) -> list[str]:
    """Stragglers that an experiment of `workers` workers does not have, or has twice."""
    ranks = [straggler.rank for straggler in compute.stragglers]
    return [
        f"compute.stragglers[{i}].rank: {rank} "
        + ("stands there more than once" if rank in ranks[:i] else f"is no rank of {workers} workers")
        for i, rank in enumerate(ranks)
        if rank in ranks[:i] or rank >= workers
    ]
