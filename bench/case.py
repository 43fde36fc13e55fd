"""What is measured: the question that every system is asked, and the answer it gives.

Pure, standard library only: one peer answers from a Python of its own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

SIZES = {"62k": 62_006, "1M": 1_000_000, "11.2M": 11_173_962}
"""Parameters of a small CNN, of a middling one, and of resnet18 with a stem for small images."""

WORKERS = (1, 4, 16)
"""Numbers of them that everything is measured with."""

LEARNING_RATE = 2.0**-10
"""A power of two: with gradients of ones, fp32 parameters say exactly how many of them were applied."""

PAYLOAD_BYTES_PER_PARAMETER = 8
"""fp32, once each way."""


class RoundFailed(Exception):
    """A system did not finish its round; the message says why."""


@dataclass(frozen=True)
class Variant:
    """One way to run a system; of all its variants the fastest counts."""

    malloc: str = "default"
    """`default`, or `tuned` as the runtime's."""
    option: str = ""
    """A setting of the system's own."""

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.option, f"{self.malloc} malloc"]))


BOTH_MALLOCS = (Variant("default"), Variant("tuned"))


@dataclass(frozen=True)
class Case:
    """One round's question: so many workers, each pushing so many gradients of such a length."""

    parameters: int
    workers: int
    variant: Variant
    warm_up: int
    """Updates of each worker before the clock starts."""
    updates: int
    """Updates of each worker that are timed."""
    folder: Path
    """Of this round alone; deleted after it."""

    @property
    def steps(self) -> int:
        """Updates of each worker, timed or not."""
        return self.warm_up + self.updates

    @property
    def expected_parameter(self) -> float:
        """What every parameter is at the end, having begun at zero with gradients of ones."""
        return self.parameter_after(self.steps)

    def parameter_after(self, updates: int) -> float:
        """The same, after so many updates of each worker."""
        return -LEARNING_RATE * self.workers * updates


@dataclass(frozen=True)
class Sample:
    """One round's answer."""

    updates: int
    """Of all workers, while the clock ran."""
    seconds: float
    """From the first worker's start to the last one's end."""
    loopback_bytes: int
    """What the kernel's loopback interface carried meanwhile: it shows whether a transport is TCP at all."""
    server_cpu_seconds: float | None
    """Of the server's process meanwhile; None where there is no server."""
    server_peak_bytes: int | None
    """Most memory that the server's process ever took, less what it took idle; None where there is no server."""

    @property
    def updates_per_second(self) -> float:
        """Gradients pushed, applied and answered per second, over all workers."""
        return self.updates / self.seconds


class System(ABC):
    """A parameter server, or what is compared to one."""

    name: str
    transport: str
    variants: tuple[Variant, ...] = BOTH_MALLOCS
    has_server: bool = True
    applies: bool = True
    """Whether gradients are applied, so that the parameters can be checked after each round."""
    slow_start: bool = False
    """Starting it takes so long that it has fewer rounds than others."""

    @property
    def label(self) -> str:
        """Name and transport."""
        return f"{self.name} ({self.transport})"

    def missing(self) -> str | None:
        """Why the system cannot run here, or None if it can."""
        return None

    @abstractmethod
    def run_round(self, case: Case, timeout_seconds: float) -> Sample:
        """Start everything, warm up, measure, stop everything. Raises RoundFailed."""

    def run_laps(self, case: Case, laps: int, timeout_seconds: float) -> list[Sample]:
        """A round; of what starts slowly the timed part, `laps` times over. Raises RoundFailed."""
        del laps
        return [self.run_round(case, timeout_seconds)]
