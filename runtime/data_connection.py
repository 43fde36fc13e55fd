"""A worker's end of the data plane: send a gradient, receive parameters, both at once.

Runs in the worker; knows nothing of models, or of why a connection closed. Everything here raises ConnectionClosed
where the server hung up, and TrainingFailed where it refused.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, NamedTuple

import torch
from torch import Tensor

from contract.errors import TrainingFailed
from contract.task import TaskEnvironment
from runtime.blocks import blocks_of
from runtime.compression import Codec, PayloadRefused, codec_for
from runtime.feedback import ErrorFeedback, apply_difference
from runtime.frames import ConnectionClosed, Frame, M, Outgoing, Stream, WireRefused, name_of
from runtime.link import Link
from runtime.parameters import count_non_finite, memory_of
from runtime.shared_memory import OwnVectors
from runtime.trust import Trust
from runtime.wire.parameter_server_pb2 import (
    ANSWER,
    BLOCK,
    HELLO,
    PULL,
    PUSH,
    REFUSED,
    WELCOME,
    Answer,
    Hello,
    Push,
    Refused,
    Sender,
    Welcome,
)

CONNECT_SECONDS: Final = 10.0
"""How long a server may take to let a connection in."""


@dataclass(frozen=True)
class Wire:
    """How a worker's vectors travel, the same for all its connections."""

    length: int
    """Of the vectors."""
    codec: Codec
    feedback: ErrorFeedback
    """What the codec left out of gradients so far."""
    up: Link
    down: Link
    vectors: OwnVectors | None = None
    """Memory to share with the server, if it can."""
    must_share: bool = False
    """Nothing may travel."""


def wires_for(environment: TaskEnvironment, lengths: Sequence[int]) -> list[Wire]:
    """How the vectors of a worker travel, to a server for each of `lengths`, over one link.

    Raises TrainingFailed where the worker must share memory and there is none.
    """
    codec = codec_for(environment.compression, environment.topk_ratio)
    own = environment.network.of(environment.worker_rank)
    mbit_per_second = own.bandwidth_mbit_per_second
    bytes_per_second = mbit_per_second * 1e6 / 8 if mbit_per_second else None
    latency_seconds = own.latency_ms / 1000
    # Only what travels can be compressed, or held up; where one worker is held up, the others differ in nothing else.
    may_share = not environment.network.injected and codec.name == "none"
    must_share = environment.transport == "shared-memory"
    up, down = Link(bytes_per_second, latency_seconds), Link(bytes_per_second, latency_seconds)
    return [
        Wire(
            length,
            codec,
            ErrorFeedback(length, codec),
            up,
            down,
            _vectors(length, must_share)
            if must_share or (may_share and environment.transport == "auto")
            else None,
            must_share,
        )
        for length in lengths
    ]


def _vectors(length: int, must_share: bool) -> OwnVectors | None:
    try:
        return OwnVectors(length)
    except OSError as error:
        if must_share:
            raise TrainingFailed(f"there is no room for shared memory: {error}") from error
        return None


class Exchanged(NamedTuple):
    """What came back beside the parameters."""

    version: int
    waited_seconds: float
    """How long the server held the gradient back."""
    dropped: bool
    """The gradient came too late to count."""
    serialize_seconds: float
    """Of this connection: decoding and copying. Of a Connection: looking at the gradient and encoding it, too."""


class DataConnection:
    """A pair of connections to the server, one for each direction."""

    def __init__(
        self, address: tuple[str, int], sender: Sender, trust: Trust, wire: Wire, attempt: int
    ) -> None:
        """Connect to `address`, host and port; `attempt`: how many connections of this worker there were before."""
        self._wire = wire
        self._blocks = blocks_of(wire.length)
        self._serialize_seconds = 0.0
        hello = Hello(sender=sender, token=trust.token, attempt=attempt, down=True)
        if wire.vectors is not None:
            hello.shared_memory.CopyFrom(wire.vectors.offer)
        self._down, welcome = _let_in(address, trust, hello)
        try:
            self._shared = wire.vectors if welcome.shared_memory else None
            if wire.must_share and self._shared is None:
                raise TrainingFailed(
                    "the server cannot share memory: it runs on another host, or in a container"
                )
            hello.ClearField("shared_memory")
            hello.down = False
            self._up, _ = _let_in(address, trust, hello)
        except (ConnectionClosed, TrainingFailed):
            self._down.hang_up()
            raise
        longest = self._blocks[0].stop
        self._payload = memoryview(bytearray(wire.codec.max_bytes(longest)))
        self._scratch = torch.empty(longest)
        self._outgoing: SimpleQueue[Iterable[list[Outgoing]] | None] = SimpleQueue()
        self._sent: SimpleQueue[ConnectionClosed | None] = SimpleQueue()
        if len(self._blocks) > 1:
            threading.Thread(target=self._send_all, name="sender", daemon=True).start()

    @property
    def shares_memory(self) -> bool:
        """Whether vectors need not travel: those of the wire are the server's as well."""
        return self._shared is not None

    @property
    def sent_bytes(self) -> int:
        """To the server."""
        return self._up.sent_bytes + self._down.sent_bytes

    @property
    def received_bytes(self) -> int:
        """From the server."""
        return self._up.received_bytes + self._down.received_bytes

    def hang_up(self) -> None:
        """Close both connections, also for who waits on them."""
        self._outgoing.put(None)
        self._up.hang_up()
        self._down.hang_up()

    def close_if_dead(self) -> None:
        """Close both connections where the network has lost the server: who sends would not find out for minutes.

        Nothing is ever under way to the server on the connection down, and so that one is always probed.
        """
        if self._down.is_dead:
            self.hang_up()

    def pull(self, into: Tensor) -> Exchanged:
        """Write the current parameters to `into` (flat, fp32)."""
        closed = self._send([[Outgoing(PULL)]])
        return self._received(into, closed, whole=True)

    def push_pull(
        self, payloads: "Payloads", into: Tensor, *, step: int, version: int, repeats: int
    ) -> Exchanged:
        """Push a gradient that was computed on `version`; write the parameters to go on with to `into`.

        `repeats`: how often the step was pushed before.
        """
        push = Push(
            step=step,
            version=version,
            compression=self._wire.codec.name,
            length=self._wire.length,
            attempt=repeats,
        )
        if self._shared is not None:
            self._copy(payloads.gradient, self._shared.gradient)
            closed = self._send([[Outgoing.of(PUSH, push)]])
            return self._received(into, closed)
        # Who pushes again may not have got the first answer: it is given the parameters themselves.
        whole = repeats > 0
        frames = _frames(push, payloads)
        if len(self._blocks) == 1:
            return self._received(into, self._send(frames), whole=whole)
        self._outgoing.put(frames)
        exchanged = self._receive(into, whole=whole)
        if (closed := self._sent.get()) is not None:
            raise closed
        return exchanged

    def _send_all(self) -> None:
        """Send gradients while parameters come in."""
        while (frames := self._outgoing.get()) is not None:
            self._sent.put(self._send(frames))

    def _send(self, request: Iterable[list[Outgoing]]) -> ConnectionClosed | None:
        """Send what an answer will be waited for. Returns why it could not be sent.

        Who waits then finds what the server has said before it hung up: most often, why it did.
        """
        self._wire.up.arrive()
        try:
            for frames in request:
                self._wire.up.pass_through(sum(len(frame.payload) for frame in frames))
                self._up.send(*frames)
        except ConnectionClosed as error:
            self._down.finish_receiving()
            return error
        return None

    def _received(self, into: Tensor, closed: ConnectionClosed | None, *, whole: bool = False) -> Exchanged:
        """The answer to what was sent, if it was."""
        exchanged = self._receive(into, whole=whole)
        if closed is not None:
            raise closed
        return exchanged

    def _receive(self, into: Tensor, *, whole: bool = False) -> Exchanged:
        """`whole`: parameters themselves come, not what has changed of them."""
        self._serialize_seconds = 0.0
        missing = 0 if self._shared is not None else len(self._blocks)
        while missing:
            frame = _expect(self._down, BLOCK)
            if frame.block >= len(self._blocks):
                raise TrainingFailed(f"the server sent block {frame.block} of {len(self._blocks)}")
            self._receive_block(frame, into[self._blocks[frame.block]], whole=whole)
            self._wire.down.pass_through(frame.length)
            missing -= 1
        answer = _message(self._down, ANSWER, Answer())
        self._wire.down.arrive()
        if self._shared is not None:
            self._copy(self._shared.parameters, into)
        return Exchanged(answer.version, answer.waited_seconds, answer.dropped, self._serialize_seconds)

    def _copy(self, source: Tensor, target: Tensor) -> None:
        """Copy a vector, unless both are the same memory."""
        if source.data_ptr() != target.data_ptr():
            began = time.monotonic()
            target.copy_(source)
            self._serialize_seconds += time.monotonic() - began

    def _receive_block(self, frame: Frame, block: Tensor, *, whole: bool) -> None:
        codec = self._wire.codec
        raw = whole or codec.name == "none"
        largest = block.numel() * block.element_size() if raw else codec.max_bytes(len(block))
        if frame.length > largest or (raw and frame.length != largest):
            raise TrainingFailed(f"the server sent {frame.length} bytes of a block; expected {largest}")
        if raw:
            self._down.receive_into(memory_of(block))
            return
        payload = self._payload[: frame.length]
        self._down.receive_into(payload)
        began = time.monotonic()
        try:
            apply_difference(codec, payload, block, self._scratch)
        except PayloadRefused as error:
            raise TrainingFailed(f"the server's parameters are refused: {error}") from error
        self._serialize_seconds += time.monotonic() - began


class Payloads:
    """The payloads of one gradient's blocks, each encoded once: a push that is repeated sends the same bytes.

    Any thread may go through them: one of a connection that broke may still do so when another has begun.
    """

    def __init__(self, gradient: Tensor, feedback: ErrorFeedback) -> None:
        """`gradient`: flat, fp32; must not change until it is answered."""
        self.gradient = gradient
        self._feedback = feedback
        self._blocks = blocks_of(gradient.numel())
        self._encoded: list[memoryview] = []
        self._lock = threading.Lock()
        self._void = False
        self.seconds = 0.0
        """Time spent encoding."""

    def __iter__(self) -> Iterator[memoryview]:
        for index, block in enumerate(self._blocks):
            with self._lock:
                if self._void:
                    return
                if index == len(self._encoded):
                    began = time.monotonic()
                    self._encoded.append(self._feedback.encode(block, self.gradient[block]))
                    self.seconds += time.monotonic() - began
                payload = self._encoded[index]
            yield payload

    def take_back(self) -> None:
        """The gradient did not count: what the encoding of it has sent of earlier ones must be sent again."""
        with self._lock:
            self._void = True
            for block, payload in zip(self._blocks, self._encoded, strict=False):
                self._feedback.take_back(block, self.gradient[block], payload)


def push_finite(
    push: Callable[[], Exchanged], gradient: Tensor, where: str, withdraw: Callable[[str], None]
) -> Exchanged:
    """Push a gradient that can be applied; of one that cannot, tell the server, and raise TrainingFailed.

    The server would refuse it too, but block by block: those before would stay applied where others go on. Looking
    at it is part of preparing it: it counts with encoding.
    """
    began = time.monotonic()
    if bad := count_non_finite(gradient):
        reason = (
            f"{where}: gradient refused: {bad} of {gradient.numel()} values are NaN or infinite;"
            " lower the learning rate"
        )
        withdraw(reason)
        raise TrainingFailed(reason)
    looked_seconds = time.monotonic() - began
    exchanged = push()
    return exchanged._replace(serialize_seconds=exchanged.serialize_seconds + looked_seconds)


def _frames(push: Push, payloads: Iterable[memoryview]) -> Iterator[list[Outgoing]]:
    """A push as frames, in groups that are sent together."""
    head = [Outgoing.of(PUSH, push)]
    for index, payload in enumerate(payloads):
        yield [*head, Outgoing(BLOCK, payload, index)]
        head = []


def _let_in(address: tuple[str, int], trust: Trust, hello: Hello) -> tuple[Stream, Welcome]:
    """A connection that the server has let in; what then comes may take its time."""
    with ExitStack() as opened:
        try:
            connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
            opened.callback(connection.close)
            stream = Stream(trust.wrap(connection))
        except OSError as error:
            raise ConnectionClosed(f"no connection to {address[0]}:{address[1]}: {error}") from error
        opened.callback(stream.hang_up)
        stream.send(Outgoing.of(HELLO, hello))
        welcome = _message(stream, WELCOME, Welcome())
        stream.set_timeout(None)
        opened.pop_all()
    return stream, welcome


def _message(stream: Stream, kind: int, message: M) -> M:
    """The message that comes next, if it is of that kind. Raises TrainingFailed as _expect."""
    return _parsed(stream, _expect(stream, kind), message)


def _parsed(stream: Stream, frame: Frame, message: M) -> M:
    try:
        return stream.receive_message(frame, message)
    except WireRefused as error:
        raise TrainingFailed(f"the server's answer is refused: {error}") from error


def _expect(stream: Stream, kind: int) -> Frame:
    """The next frame, if it is of that kind. Raises TrainingFailed with what the server says instead."""
    frame = stream.receive()
    if frame.kind == REFUSED:
        raise TrainingFailed(f"refused by the server: {_parsed(stream, frame, Refused()).reason}")
    if frame.kind != kind:
        raise TrainingFailed(f"the server sent {name_of(frame.kind)}; expected {name_of(kind)}")
    return frame
