"""A server's data plane on loopback, its state in this process, and workers that connect to it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contract.aggregation import Aggregation, Mode
from runtime.compression import codec_for
from runtime.data_connection import DataConnection, Exchanged, Payloads, Wire
from runtime.data_server import DataServer
from runtime.feedback import ErrorFeedback
from runtime.frames import ConnectionClosed, Outgoing, Stream
from runtime.link import Link
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.shared_memory import OwnVectors
from runtime.state import ServerState
from runtime.trust import Identity
from runtime.wire.parameter_server_pb2 import (
    BLOCK,
    HELLO,
    PUSH,
    REFUSED,
    WELCOME,
    Hello,
    Push,
    Refused,
    Sender,
)
from tests.unit.local_worker import enter

PATIENCE = 60.0
STUDY, EXPERIMENT = "study", "experiment"
TOPK_RATIO = 0.3


def sender(rank: int) -> Sender:
    return Sender(study=STUDY, experiment=EXPERIMENT, rank=rank)


def wire_of(length: int, compression: Any = "none", *, shared: bool = False) -> Wire:
    codec, unlimited = codec_for(compression, TOPK_RATIO), Link(None, 0.0)
    vectors = OwnVectors(length) if shared else None
    return Wire(length, codec, ErrorFeedback(length, codec), up=unlimited, down=unlimited, vectors=vectors)


class DataPlane:
    """A server that trains with some workers."""

    def __init__(
        self,
        mode: Mode,
        *,
        length: int,
        workers: int,
        steps: int = 1000,
        compression: Any = "none",
        tls: bool = False,
        survives_loss: bool = False,
        learning_rate: float = 1.0,
        **told: Any,
    ) -> None:
        self.length, self.compression = length, compression
        codec = codec_for(compression, TOPK_RATIO)
        self.state = ServerState(
            workers=workers,
            parameters=torch.zeros(length),
            optimizer=partial(MomentumSGD, learning_rate=learning_rate, momentum=0.0),
            policy=policy_for(mode, workers, Aggregation(**told)),
            survives_loss=survives_loss,
            codec=codec,
        )
        for rank in range(workers):
            enter(self.state, rank, steps)
        identity = Identity.make("127.0.0.1", tls=tls)
        self.trust = identity.trust
        self.server = DataServer(
            self.state, identity, codec, host="127.0.0.1", port=0, study=STUDY, experiment=EXPERIMENT
        )
        self.address = ("127.0.0.1", self.server.port)
        self._open: list[DataConnection | Stream] = []

    def worker(self, rank: int, attempt: int = 0, wire: Wire | None = None) -> DataConnection:
        wire = wire or wire_of(self.length, self.compression)
        connection = DataConnection(self.address, sender(rank), self.trust, wire, attempt)
        self._open.append(connection)
        return connection

    def stream(self) -> Stream:
        """A connection on which nothing was said."""
        stream = Stream(self.trust.wrap(socket.create_connection(self.address, timeout=PATIENCE)))
        self._open.append(stream)
        return stream

    def hello(self, rank: int, *, down: bool, attempt: int = 0) -> Hello:
        return Hello(sender=sender(rank), token=self.trust.token, attempt=attempt, down=down)

    def raw_pair(self, rank: int, attempt: int = 0) -> tuple[Stream, Stream]:
        """Both connections of a worker that then says what it likes: up, down."""
        down, up = self.stream(), self.stream()
        for stream, is_down in ((down, True), (up, False)):
            stream.send(Outgoing.of(HELLO, self.hello(rank, down=is_down, attempt=attempt)))
            frame = stream.receive()
            assert frame.kind == WELCOME
            stream.receive_into(memoryview(bytearray(frame.length)))
        return up, down

    def push_of(self, step: int = 0, version: int = 0, **said: Any) -> Outgoing:
        told = {"compression": self.compression, "length": self.length} | said
        return Outgoing.of(PUSH, Push(step=step, version=version, **told))

    def blocks_of(self, gradient: Tensor) -> list[Outgoing]:
        """Without compression."""
        blocks = self.state.aggregator.blocks
        return [Outgoing(BLOCK, gradient[b].numpy().tobytes(), i) for i, b in enumerate(blocks)]

    def close(self) -> None:
        for each in self._open:
            each.hang_up()
        self.server.close()


@contextmanager
def data_plane(mode: Mode = Mode.ASYNC, **told: Any) -> Iterator[DataPlane]:
    plane = DataPlane(mode, **told)
    try:
        yield plane
    finally:
        plane.close()


def push_pull(
    connection: DataConnection,
    wire: Wire,
    gradient: Tensor,
    into: Tensor,
    *,
    step: int,
    version: int,
    repeats: int = 0,
) -> Exchanged:
    payloads = Payloads(gradient, wire.feedback)
    return connection.push_pull(payloads, into, step=step, version=version, repeats=repeats)


def refusal(stream: Stream) -> str:
    """What the server says before it hangs up."""
    while (frame := stream.receive()).kind != REFUSED:
        stream.receive_into(memoryview(bytearray(frame.length)))
    return stream.receive_message(frame, Refused()).reason


def is_closed(stream: Stream) -> bool:
    stream.set_timeout(PATIENCE)
    try:
        stream.receive()
    except ConnectionClosed:
        return True
    return False
