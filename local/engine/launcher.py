"""The engine's end of the zygote: asks it to fork and signal containers, and hears when one has exited.

Runs in the engine process, on its event loop; must not know container state, names or logs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from local.engine import zygote


class LaunchFailed(RuntimeError):
    """A process could not be started; the message says why."""


class Launcher:
    """One zygote, to be created before the event loop or any thread: what runs is copied into it."""

    def __init__(self, entry: str, preload: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()  # or the copy would write it once more
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._control.close()
            os._exit(zygote.run(theirs, entry, preload))
        theirs.close()
        self._control.setblocking(False)
        self._outbox: deque[tuple[str, bytes, tuple[int, ...]]] = deque()
        self._starting: dict[str, asyncio.Future[int]] = {}
        self._on_exit: Callable[[str, int], None] | None = None
        self._on_lost: Callable[[], None] | None = None

    async def ready(self, on_exit: Callable[[str, int], None], on_lost: Callable[[], None]) -> None:
        """Wait until every module is imported; then report exits (id, exit code) and the zygote's own end.

        Raises `LaunchFailed` with what the imports said.
        """
        loop = asyncio.get_running_loop()
        answer = await loop.sock_recv(self._control, zygote.MAX_MESSAGE_BYTES)
        message = (
            json.loads(answer) if answer else {"op": "failed", "reason": "the warm parent died importing"}
        )
        if message["op"] != "ready":
            raise LaunchFailed(message["reason"])
        self._on_exit, self._on_lost = on_exit, on_lost
        loop.add_reader(self._control, self._hear)

    async def start(
        self, container_id: str, argv: Sequence[str], env: Mapping[str, str], outputs: tuple[int, int]
    ) -> int:
        """Fork a process with `outputs` as its stdout and stderr: its pid. Raises `LaunchFailed`."""
        order = {"op": "fork", "id": container_id, "argv": list(argv), "env": dict(env)}
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._starting[container_id] = forked
        try:
            self._post(order, outputs)
            return await forked
        finally:
            del self._starting[container_id]

    def signal(self, container_id: str, number: int, *, group: bool = False) -> None:
        """Signal a container's main process, or with `group` kill all it has; an exited one is let be."""
        self._post({"op": "signal", "id": container_id, "signal": number, "group": group})

    def _post(self, order: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        message = json.dumps(order).encode()
        if len(message) > zygote.MAX_MESSAGE_BYTES:
            limit = zygote.MAX_MESSAGE_BYTES
            raise LaunchFailed(f"command and environment take {len(message)} bytes, the limit is {limit}")
        self._outbox.append((order["id"], message, descriptors))
        self._flush()

    def _flush(self) -> None:
        """Send what the zygote takes now, the rest when it can: blocking, both could wait for each other."""
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._control)
        while self._outbox:
            container_id, message, descriptors = self._outbox[0]
            try:
                socket.send_fds(self._control, [message], descriptors)
            except BlockingIOError:
                loop.add_writer(self._control, self._flush)
                return
            except OSError as error:
                self._fail_start(container_id, f"the warm parent takes no orders: {error}")
            self._outbox.popleft()

    def _fail_start(self, container_id: str, reason: str) -> None:
        waiting = self._starting.get(container_id)
        if waiting is not None and not waiting.done():
            waiting.set_exception(LaunchFailed(reason))

    def _hear(self) -> None:
        try:
            data = self._control.recv(zygote.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._lose()
            return
        message: dict[str, Any] = json.loads(data)
        container_id: str = message["id"]
        match message["op"]:
            case "forked":
                self._starting[container_id].set_result(message["pid"])
            case "refused":
                self._fail_start(container_id, message["reason"])
            case "exited" if self._on_exit is not None:
                self._on_exit(container_id, message["code"])

    def _lose(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        for container_id in self._starting:
            self._fail_start(container_id, "the warm parent died")
        if self._on_lost is not None:
            self._on_lost()

    def close(self) -> None:
        """End the zygote, and with it whatever container still runs."""
        self._control.close()
        if self._on_exit is None:
            os.kill(
                self._pid, signal.SIGKILL
            )  # still importing: it hears nothing, and has no container to orphan
        os.waitpid(self._pid, 0)
