"""A TCP proxy between workers and their server, on another address of the loopback, that fails as it is told to."""

import contextlib
import ctypes
import socket
import struct
import threading
from collections.abc import Sequence

HOST = "127.0.0.2"
"""Workers that are told this host reach the ports of 127.0.0.1 through proxies alone."""
ANOTHER_HOST = "127.0.0.3"

SO_ATTACH_FILTER = 26
"""Source: socket(7); Python has no name for it."""
BPF_RETURN = 0x06
"""Of so many bytes of the segment: 0 drops it. Source: linux/bpf_common.h, BPF_RET | BPF_K."""


class Proxy:
    """Forwards one port of an address to the same one of 127.0.0.1. A context manager."""

    def __init__(
        self,
        port: int,
        host: str = HOST,
        *,
        cuts: Sequence[int | None] = (),
        hold_after: int | None = None,
    ) -> None:
        """`cuts`: after how many bytes, of both directions, the first connections are reset; None: never.

        `hold_after`: after so many bytes of all connections nothing passes, until `release`.
        """
        self._target = ("127.0.0.1", port)
        self._cuts = list(cuts)
        self._hold_after = hold_after
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._passed = 0
        self.cut = 0
        """Connections that were reset."""
        self.accepted = 0
        """Connections that there ever were."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, port))
        self._start(self._listen)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def swallow(self) -> None:
        """Drop all that comes on present connections unacknowledged, as a wire that was cut; new ones are as before.

        A socket's filter is asked for each segment before TCP sees it.
        """
        drop = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
        for each in self._sockets:
            each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(drop)))

    def release(self) -> None:
        """Let everything pass."""
        self._released.set()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]  # a method of ours
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            far = socket.create_connection(self._target)
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [near, far]
            pair = _Pair(near, far, self._cuts.pop(0) if self._cuts else None)
            self._start(self._forward, pair, near, far)
            self._start(self._forward, pair, far, near)

    def _forward(self, pair: "_Pair", source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    passes = pair.book(len(data))
                    self._passed += passes
                    held = self._hold_after is not None and self._passed > self._hold_after
                    self.cut += passes < len(data)
                if held:
                    self._released.wait()
                target.sendall(data[:passes])
                if passes < len(data):
                    pair.reset()
                    return
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class _Pair:
    """Both ends of a connection."""

    def __init__(self, near: socket.socket, far: socket.socket, budget: int | None) -> None:
        self._ends = (near, far)
        self._budget = budget

    def book(self, n_bytes: int) -> int:
        """How many of so many bytes may pass before the connection is cut."""
        if self._budget is None:
            return n_bytes
        passes = min(n_bytes, self._budget)
        self._budget -= passes
        return passes

    def reset(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                # What is under way is lost, as when a machine on the way goes.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
