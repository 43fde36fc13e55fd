"""What runs the containers of tasks: our own task engine (as processes), or a real Docker engine.

Both look alike to the emulator: a Docker Engine API. Used by the supervisor.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from local.processes import await_announcement, spawn, stop

SELF_NAME = "lockstep-emulator"
"""The container that the task engine answers for in the emulator's place."""


class TaskEngine(Protocol):
    """Where the emulator's ECS has its containers run."""

    docker_host: str
    """URL of the Docker Engine API; known once it is ready."""
    host_name: str
    """What the emulator takes for its own container's name."""
    processes: list[subprocess.Popen[bytes]]
    """Those whose death ends the embedded cloud."""

    def await_ready(self) -> None:
        """Return when tasks can be run. Raises ProcessFailed."""

    def provide_image(self, assembly_cache: Path, progress: Callable[[str], None]) -> None:
        """See to it that the task definitions' image can be run."""

    def stop(self) -> None:
        """End it, and every task that it runs."""


@dataclass
class ProcessEngine:
    """Tasks as processes, forked from a parent that has imported the runtime already."""

    state: Path
    docker_host: str = ""
    host_name: str = SELF_NAME
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start warming up; `await_ready` waits for the end of it."""
        command = [sys.executable, "-m", "local.engine", "--announce", str(self._announcement)]
        command += ["--entry", "runtime.__main__:main", "--preload", "runtime.server,runtime.worker"]
        command += ["--self-name", SELF_NAME]
        self.processes.append(spawn(command, log=self._log))

    def await_ready(self) -> None:
        """Wait for the engine's announcement, and learn its port from it."""
        announced = await_announcement(self._announcement, self.processes[0], self._log, patience_seconds=120)
        self.docker_host = f"tcp://127.0.0.1:{announced['port']}"

    def provide_image(self, assembly_cache: Path, progress: Callable[[str], None]) -> None:
        """Every image is the runtime of this checkout."""

    def stop(self) -> None:
        """End the engine; its containers go with it."""
        for process in self.processes:
            stop(process)

    @property
    def _announcement(self) -> Path:
        return self.state / "engine.json"

    @property
    def _log(self) -> Path:
        return self.state / "engine.log"


def start_engine(kind: str, state: Path) -> TaskEngine:
    """The engine of that kind, started. Raises ProcessFailed where it cannot be."""
    if kind == "docker":
        raise NotImplementedError
    engine = ProcessEngine(state)
    engine.start()
    return engine
