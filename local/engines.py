"""What runs the containers of tasks: our own task engine (as processes), or a real Docker engine.

Both look alike to the emulator: a Docker Engine API. Used by the supervisor.
"""

import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import docker
from docker.errors import DockerException

from local.docker_proxy.sweep import TIMEOUT_SECONDS, remove_containers
from local.docker_proxy.upstream import Upstream, engine_url
from local.emulator import ACCOUNT, REGION
from local.images import BuildSettings, image_assets, provide_images
from local.processes import ProcessFailed, await_announcement, spawn, stop

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

    def provide_images(
        self, uris: Collection[str], asset_manifest: Path, progress: Callable[[str], None]
    ) -> None:
        """See to it that the images that the task definitions name can be run. Raises LockstepError."""

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
        command += ["--entry", "runtime.__main__:main", "--preload", "runtime.server,runtime.worker,boto3"]
        command += ["--self-name", SELF_NAME]
        self.processes.append(spawn(command, log=self._log))

    def await_ready(self) -> None:
        """Wait for the engine's announcement, and learn its port from it."""
        announced = await_announcement(self._announcement, self.processes[0], self._log, patience_seconds=120)
        self.docker_host = f"tcp://127.0.0.1:{announced['port']}"

    def provide_images(
        self, uris: Collection[str], asset_manifest: Path, progress: Callable[[str], None]
    ) -> None:
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


@dataclass
class DockerEngine:
    """Tasks as containers of this machine's Docker engine, which the emulator reaches through our proxy."""

    state: Path
    docker_host: str = ""
    host_name: str = SELF_NAME
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    engine_url: str = field(default_factory=engine_url)
    build_settings: BuildSettings = field(default_factory=BuildSettings.from_environment)

    def start(self) -> None:
        """Look whether the engine will do, and start the proxy. Raises LockstepError."""
        Upstream.parse(self.engine_url)
        try:
            with closing(self._client()) as client:
                problem = unsuitable(client.info())
            if problem:
                raise ProcessFailed(f"the Docker engine at {self.engine_url} cannot run tasks: {problem}")
            remove_containers(self.engine_url, self._cloud)  # of one before it, here, that was killed
        except DockerException as error:
            raise ProcessFailed(
                f"no Docker engine answers at {self.engine_url}; start one (sudo systemctl start docker),"
                f" name it with DOCKER_HOST, or run tasks with --engine process ({_root_cause(error)})"
            ) from error
        command = [sys.executable, "-m", "local.docker_proxy", "--announce", str(self._announcement)]
        command += ["--engine", self.engine_url, "--socket", str(self._socket)]
        command += ["--cloud", self._cloud, "--self-name", SELF_NAME]
        self.processes.append(spawn(command, log=self._log))

    def await_ready(self) -> None:
        """Wait for the proxy's announcement."""
        await_announcement(self._announcement, self.processes[0], self._log, patience_seconds=60)
        self.docker_host = f"unix://{self._socket}"

    def provide_images(
        self, uris: Collection[str], asset_manifest: Path, progress: Callable[[str], None]
    ) -> None:
        """Build what the engine does not have yet. Raises ImageFailed."""
        assets = image_assets(asset_manifest, account=ACCOUNT, region=REGION)
        log = self.state / "image-build.log"
        with closing(self._client()) as client:
            provide_images(client, uris, assets, settings=self.build_settings, log=log, progress=progress)

    def stop(self) -> None:
        """End the proxy, which removes its containers; where it could not, remove them. Raises ProcessFailed."""
        for process in self.processes:
            stop(process, TIMEOUT_SECONDS)
            if process.returncode == 0:
                continue
            try:
                remove_containers(self.engine_url, self._cloud)
            except DockerException as error:
                raise ProcessFailed(f"containers labelled {self._cloud} may be left: {error}") from error

    def _client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.engine_url, timeout=TIMEOUT_SECONDS)

    @property
    def _cloud(self) -> str:
        return str(self.state)

    @property
    def _announcement(self) -> Path:
        return self.state / "engine.json"

    @property
    def _socket(self) -> Path:
        return self.state / "docker.sock"

    @property
    def _log(self) -> Path:
        return self.state / "engine.log"


def unsuitable(info: dict[str, Any]) -> str | None:
    """Why an engine's host network is not this machine's; None where it is. `info`: its answer to /info."""
    if any("name=rootless" in option for option in info.get("SecurityOptions") or []):
        return "it is rootless, and its host network is one of its own; use an engine that runs as root"
    if info.get("OperatingSystem") == "Docker Desktop":
        return "Docker Desktop runs containers in a virtual machine; use an engine of this machine itself"
    if info.get("OSType", "linux") != "linux":
        return f"it runs {info['OSType']} containers, and the image is for linux"
    return None


def _root_cause(error: BaseException) -> str:
    """What the system said: client libraries wrap it several times."""
    while error.__context__ is not None:
        error = error.__context__
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def start_engine(kind: str, state: Path) -> TaskEngine:
    """The engine of that kind, started. Raises LockstepError where it cannot be."""
    engine = DockerEngine(state) if kind == "docker" else ProcessEngine(state)
    engine.start()
    return engine
