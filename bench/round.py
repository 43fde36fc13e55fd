"""One round of a system whose server and workers are processes of this Python.

The main process times them and reads what the server costs; how they talk is the system's own.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

from bench import measure
from bench.case import Case, RoundFailed, Sample, System
from bench.processes import Child, Processes

Update = Callable[[], Tensor]
"""Push a gradient of ones, have it applied, return the parameters (flat, fp32)."""


class ProcessSystem(System):
    """A system made of one server process and one process per worker."""

    tolerance: float = 1e-5
    """Relative, of the parameters at the end of a round."""

    @abstractmethod
    def serve(self, case: Case) -> AbstractContextManager[str]:
        """Serve parameters that begin at zero, within the context; gives the address. Runs in the server's process."""

    @abstractmethod
    def connect(self, case: Case, rank: int, address: str) -> AbstractContextManager[Update]:
        """Connect within the context; gives what makes one update. Runs in a worker's process."""

    def expected_parameter(self, case: Case) -> float:
        """What every parameter is after a round of this system."""
        return case.expected_parameter

    def run_round(self, case: Case, timeout_seconds: float) -> Sample:
        """Start everything, warm up, measure, stop everything. Raises RoundFailed."""
        with warm(self, case, timeout_seconds) as crew:
            carried, spent = measure.loopback_bytes(), measure.cpu_seconds(crew.server.pid)
            laps = crew.run()
            spent = measure.cpu_seconds(crew.server.pid) - spent
            carried = measure.loopback_bytes() - carried
            memory = measure.read_memory(crew.server.pid)
        return Sample(
            updates=case.workers * case.updates,
            seconds=max(lap.ended for lap in laps) - min(lap.began for lap in laps),
            loopback_bytes=carried,
            server_cpu_seconds=spent if self.has_server else None,
            server_peak_bytes=measure.peak_above_idle(crew.idle, memory) if self.has_server else None,
        )


@dataclass(frozen=True)
class _Listening:
    """A server's first message."""

    address: str
    idle: measure.Memory
    idle_shares: measure.Shares


@dataclass(frozen=True)
class Lap:
    """A worker's figures; times on the monotonic clock, which all processes share."""

    began: float
    ended: float
    first: float
    last: float
    """The first and the last parameter at the end."""


@dataclass(frozen=True)
class Crew:
    """A server and workers that have warmed up."""

    system: ProcessSystem
    case: Case
    processes: Processes
    server: Child
    idle: measure.Memory
    """The server's process before it held anything."""
    idle_shares: measure.Shares
    workers: list[Child]

    def run(self) -> list[Lap]:
        """Have every worker make its updates. Raises RoundFailed, also if the parameters are then wrong."""
        for worker in self.workers:
            worker.pipe.send("go")
        laps: list[Lap] = [self.processes.receive(worker) for worker in self.workers]
        if self.system.applies:
            _check(laps, self.system.expected_parameter(self.case), self.system.tolerance)
        return laps


@contextmanager
def warm(system: ProcessSystem, case: Case, timeout_seconds: float) -> Iterator[Crew]:
    """Start a server and workers, which warm up; stops them. Raises RoundFailed."""
    with Processes(case.folder, timeout_seconds, tuned=case.variant.malloc == "tuned") as processes:
        server = processes.start("server", _serve, system, case)
        listening: _Listening = processes.receive(server)
        workers = [
            processes.start(f"worker{rank}", _work, system, case, rank, listening.address)
            for rank in range(case.workers)
        ]
        for worker in workers:
            processes.receive(worker)
        yield Crew(system, case, processes, server, listening.idle, listening.idle_shares, workers)


def _check(laps: list[Lap], expected: float, tolerance: float) -> None:
    """Raise RoundFailed unless the worker that was answered last has all gradients in its parameters."""
    for found in (min(lap.first for lap in laps), min(lap.last for lap in laps)):
        if not math.isclose(found, expected, rel_tol=tolerance):
            raise RoundFailed(f"wrong parameters: {found} after all updates; expected {expected}")


def _serve(pipe: "Connection[Any, Any]", system: ProcessSystem, case: Case) -> None:
    idle, idle_shares = measure.read_memory(), measure.read_shares()
    with system.serve(case) as address:
        pipe.send(_Listening(address, idle, idle_shares))
        pipe.recv()


def _work(pipe: "Connection[Any, Any]", system: ProcessSystem, case: Case, rank: int, address: str) -> None:
    with system.connect(case, rank, address) as update:
        for _ in range(case.warm_up):
            update()
        pipe.send("warm")
        pipe.recv()
        began = time.monotonic()
        for _ in range(case.updates):
            parameters = update()
        ended = time.monotonic()
        pipe.send(Lap(began, ended, float(parameters[0]), float(parameters[-1])))
        pipe.recv()
