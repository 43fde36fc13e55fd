"""Raw TCP: gradient bytes over, parameter bytes back, no arithmetic. The limit of what a TCP transport can do.

Three ways to do it are measured and the fastest counts: one after the other; both ways at once in one thread per side,
where the server answers each byte as the one of the gradient arrives; both ways at once in two threads per side.
"""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import torch

from bench.background import in_background
from bench.case import Case, Variant
from bench.round import ProcessSystem, Update
from runtime.parameters import memory_of


class RawTcp(ProcessSystem):
    """The limit."""

    name = "raw TCP round trip"
    transport = "tcp"
    variants = tuple(Variant(option=option) for option in ("in turn", "duplex", "two threads"))
    applies = False

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """One thread, or two, per worker."""
        with socket.create_server(("127.0.0.1", 0), backlog=case.workers) as listener:
            in_background(partial(_accept, listener, case))
            host, port = listener.getsockname()
            yield f"{host}:{port}"

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """Buffers are made once: memory is no part of this limit."""
        del rank
        host, _, port = address.partition(":")
        gradient, parameters = torch.ones(case.parameters), torch.zeros(case.parameters)
        with socket.create_connection((host, int(port))) as peer:
            exchange = _Exchange(peer, case, echoes=False)

            def update() -> torch.Tensor:
                exchange(memory_of(gradient), memory_of(parameters))
                return parameters

            yield update


def _accept(listener: socket.socket, case: Case) -> None:
    parameters = torch.zeros(case.parameters)
    for _ in range(case.workers):
        peer, _ = listener.accept()
        in_background(partial(_answer, peer, parameters, case))


def _answer(peer: socket.socket, parameters: torch.Tensor, case: Case) -> None:
    gradient = torch.empty(case.parameters)
    exchange = _Exchange(peer, case, echoes=True)
    for _ in range(case.steps):
        exchange(memory_of(parameters), memory_of(gradient))


class _Exchange:
    """One side of a connection: called once an update, with what goes and where to write what comes."""

    def __init__(self, peer: socket.socket, case: Case, *, echoes: bool) -> None:
        """`echoes`: this side sends only once it receives, as a server does."""
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._echoes = echoes
        self._way = {"in turn": self._in_turn, "duplex": self._duplex, "two threads": self._two_threads}[
            case.variant.option
        ]
        if self._way == self._duplex:
            peer.setblocking(False)
            self._poll = select.poll()
        if self._way == self._two_threads:
            self._outbox: SimpleQueue[memoryview] = SimpleQueue()
            self._sent = threading.Semaphore(0)
            in_background(self._send_all)

    def __call__(self, outgoing: memoryview, incoming: memoryview) -> None:
        """Send the one, fill the other."""
        self._way(outgoing, incoming)

    def _in_turn(self, outgoing: memoryview, incoming: memoryview) -> None:
        if not self._echoes:
            self._peer.sendall(outgoing)
        self._fill(incoming, 0)
        if self._echoes:
            self._peer.sendall(outgoing)

    def _duplex(self, outgoing: memoryview, incoming: memoryview) -> None:
        sent = received = 0
        while received < len(incoming) or sent < len(outgoing):
            may_send = received if self._echoes else len(outgoing)
            wanted = select.POLLIN if received < len(incoming) else 0
            self._poll.register(self._peer, wanted | (select.POLLOUT if sent < may_send else 0))
            for _, events in self._poll.poll():
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    received += self._receive(incoming[received:])
                if events & select.POLLOUT:
                    sent += self._peer.send(outgoing[sent:may_send])

    def _two_threads(self, outgoing: memoryview, incoming: memoryview) -> None:
        if self._echoes:
            received = self._receive(incoming)
            self._outbox.put(outgoing)
            self._fill(incoming, received)
        else:
            self._outbox.put(outgoing)
            self._fill(incoming, 0)
        self._sent.acquire()

    def _send_all(self) -> None:
        while True:
            self._peer.sendall(self._outbox.get())
            self._sent.release()

    def _fill(self, incoming: memoryview, received: int) -> None:
        while received < len(incoming):
            received += self._receive(incoming[received:])

    def _receive(self, into: memoryview) -> int:
        count = self._peer.recv_into(into)
        if count == 0:
            raise ConnectionError("the peer hung up")
        return count
