"""The engine's containers: what each was asked to be, what became of it, and every way to change that.

Runs in the engine process; knows Docker's rules (names, states, exit codes), must not know its HTTP or JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from local.engine.addresses import AddressPool
from local.engine.launcher import Launcher
from local.engine.logs import Line, LineSplitter, LogBuffer, Stream
from local.engine.polling import PollPacer
from local.engine.zygote import SIGNAL_EXIT_BASE

log = logging.getLogger("task-engine")

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")  # Docker's own rule for container names
_READ_BYTES = 1 << 16
# An exited container's pipes hold at most this (the kernel's limit for unprivileged users); what comes after
# it is from a process that left the container's group, and nobody waits for that.
_DRAIN_BYTES = 1 << 20
KILLED = SIGNAL_EXIT_BASE + signal.SIGKILL


class NotFound(LookupError):
    """No container has this name or id."""


class Conflict(Exception):
    """The container's state, or another one's name, does not allow this."""


class NotModified(Exception):
    """The container is already as asked for."""


class InvalidRequest(ValueError):
    """What was asked for is no container this engine can make."""


@dataclass(eq=False)
class Container:
    """One container. `status` goes created → running → exited, and `removed` is set when it is forgotten."""

    id: str
    name: str
    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    address: str
    created: datetime
    status: Literal["created", "running", "exited"] = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    logs: LogBuffer = field(default_factory=LogBuffer)
    pacer: PollPacer = field(default_factory=PollPacer)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    removed: asyncio.Event = field(default_factory=asyncio.Event)


class Output:
    """The reading end of one pipe of a running container, pumped into its log line by line."""

    def __init__(self, stream: Stream, logs: LogBuffer) -> None:
        self._stream, self._logs = stream, logs
        self._splitter = LineSplitter()
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._open = True
        asyncio.get_running_loop().add_reader(self._read_end, self._pump)

    def _pump(self) -> int:
        """Take in what one read gives; returns how many bytes that were, 0 when there is nothing (more)."""
        try:
            data = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._shut()
        for text in self._splitter.feed(data):
            self._logs.append(Line(self._stream, text))
        return len(data)

    def drain(self) -> None:
        """Take in all that the exited process left in the pipe, and let go of it."""
        taken = 0
        while self._open and taken < _DRAIN_BYTES and (count := self._pump()):
            taken += count
        self._shut()
        for text in self._splitter.flush():
            self._logs.append(Line(self._stream, text))

    def _shut(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._read_end)
            os.close(self._read_end)


class Engine:
    """All containers of one engine, and the only one who changes them."""

    def __init__(
        self, launcher: Launcher, addresses: AddressPool, base_environment: Mapping[str, str]
    ) -> None:
        self._launcher, self._addresses = launcher, addresses
        self._base_environment = base_environment
        self._containers: dict[str, Container] = {}
        self._outputs: dict[str, tuple[Output, Output]] = {}
        self._starts: dict[str, asyncio.Task[None]] = {}

    def find(self, reference: str) -> Container:
        """The container with this id, name or unambiguous beginning of an id. Raises `NotFound`."""
        if reference in self._containers:
            return self._containers[reference]
        name = reference.removeprefix("/")
        matches = [c for c in self._containers.values() if c.name == name]
        matches = matches or [c for c in self._containers.values() if c.id.startswith(reference)]
        if len(matches) != 1 or not reference:
            raise NotFound(f"No such container: {reference}")
        return matches[0]

    def select(self, accept: Callable[[Container], bool]) -> Iterable[Container]:
        """The containers that `accept` says yes to, newest first."""
        return [c for c in reversed(self._containers.values()) if accept(c)]

    def create(
        self,
        *,
        name: str | None,
        image: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> Container:
        """A new container with an address of its own, not started. Raises `Conflict` and `InvalidRequest`."""
        container_id = secrets.token_hex(32)
        name = name or f"task-{container_id[:12]}"
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"Invalid container name ({name}), only {NAME.pattern} are allowed")
        for other in self._containers.values():
            if other.name == name:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container "{other.id}". '
                    "You have to remove (or rename) that container to be able to reuse that name."
                )
        container = Container(
            id=container_id,
            name=name,
            image=image,
            command=tuple(command),
            environment=dict(environment),
            labels=dict(labels),
            address=self._addresses.take(),
            created=datetime.now(UTC),
        )
        self._containers[container_id] = container
        return container

    async def start(self, container: Container) -> None:
        """Fork its process. Raises `NotModified` (it runs), `Conflict` (it has run) and `LaunchFailed`."""
        if container.status == "running":
            raise NotModified(f"Container {container.name} is already running")
        if container.status == "exited":
            # Nothing needs a second run here, and its log, exit code and metrics would be mixed with the
            # first's.
            raise Conflict(f"Container {container.name} has run already: create a new one")
        if container.id not in self._starts:
            self._starts[container.id] = asyncio.create_task(self._launch(container))
        # Shielded, because the process is forked even if the client that asked for it leaves meanwhile.
        await asyncio.shield(self._starts[container.id])

    async def _launch(self, container: Container) -> None:
        outputs = (Output(Stream.STDOUT, container.logs), Output(Stream.STDERR, container.logs))
        own = {"TASK_ADDRESS": container.address, "HOSTNAME": container.id[:12]}
        environment = {
            **self._base_environment,
            **own,
            **container.environment,
            "TASK_ADDRESS": container.address,
        }
        ends = (outputs[0].write_end, outputs[1].write_end)
        try:
            container.pid = await self._launcher.start(container.id, container.command, environment, ends)
        except Exception as error:
            container.error = str(error)
            for output in outputs:
                output.drain()
            raise
        else:
            container.status, container.started = "running", datetime.now(UTC)
            self._outputs[container.id] = outputs
            log.info("started %s at %s (pid %d)", container.name, container.address, container.pid)
        finally:
            del self._starts[container.id]
            for end in ends:
                os.close(end)

    def process_exited(self, container_id: str, code: int) -> None:
        """Its process and all that it had started are dead: complete the log, then tell who waits."""
        container = self._containers[container_id]
        for output in self._outputs.pop(container_id):
            output.drain()
        container.logs.close()
        container.status, container.exit_code, container.pid = "exited", code, 0
        container.finished = datetime.now(UTC)
        container.exited.set()
        container.pacer.release()
        seconds = (container.finished - (container.started or container.created)).total_seconds()
        log.info("exited %s at %s: code %d after %.1f s", container.name, container.address, code, seconds)

    def zygote_lost(self) -> None:
        """The warm parent is dead, and its containers with it (they asked the kernel for that)."""
        for container_id in list(self._outputs):
            self.process_exited(container_id, KILLED)

    def kill(self, container: Container, number: int = signal.SIGKILL) -> None:
        """Signal the main process; SIGKILL takes the container's other processes too. Raises `Conflict`."""
        if container.status != "running":
            raise Conflict(f"Cannot kill container: {container.name}: container is not running")
        self._launcher.signal(container.id, number, group=number == signal.SIGKILL)

    async def stop(self, container: Container, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after `grace_seconds`; returns when it has exited. Raises `NotModified`."""
        if container.status != "running":
            raise NotModified(f"Container {container.name} is not running")
        self.kill(container, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(container.exited.wait(), grace_seconds)
            return
        self.kill(container)
        await container.exited.wait()

    async def remove(self, container: Container, *, force: bool) -> None:
        """Forget it and free its name and address. Raises `Conflict` if it runs and `force` is not given."""
        if container.status == "running":
            if not force:
                raise Conflict(
                    f'cannot remove container "/{container.name}": container is running: '
                    "stop the container before removing or force remove"
                )
            self.kill(container)
            await container.exited.wait()
        if self._containers.pop(container.id, None) is not None:  # two may have asked at once
            self._addresses.give_back(container.address)
            container.logs.close()
            container.removed.set()

    async def close(self, grace_seconds: float) -> None:
        """Stop every container, all at once, then the zygote; give the subnets back."""
        with contextlib.suppress(Exception):
            await asyncio.gather(*self._starts.values())
        running = [c for c in self._containers.values() if c.status == "running"]
        await asyncio.gather(*(self.stop(c, grace_seconds) for c in running), return_exceptions=True)
        self._launcher.close()
        self._addresses.close()
