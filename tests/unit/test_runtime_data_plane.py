"""Both ends of the data plane over real sockets: what is exchanged, what is refused, what a broken connection costs."""

import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contract.aggregation import Mode
from contract.errors import TrainingFailed
from runtime.compression import codec_for
from runtime.data_connection import DataConnection, Payloads
from runtime.frames import ConnectionClosed, Outgoing, name_of
from runtime.session import Session
from runtime.trust import Trust
from runtime.wire.parameter_server_pb2 import ANSWER, BLOCK, HELLO, PULL, PUSH, Push, Sender, SharedMemory
from tests.unit.data_plane import (
    EXPERIMENT,
    PATIENCE,
    STUDY,
    TOPK_RATIO,
    DataPlane,
    data_plane,
    is_closed,
    push_pull,
    refusal,
    sender,
    wire_of,
)
from tests.unit.local_worker import blocks_of_length

BLOCK_LENGTH = 8
LENGTH = 20
"""Two blocks, and a shorter one."""
LOSSY = ["fp16", "bf16", "int8", "topk"]


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with blocks_of_length(BLOCK_LENGTH):
        yield


def gradient_of(rank: int, step: int, length: int = LENGTH) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(100 * rank + step))


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


def train(
    plane: DataPlane, rank: int, steps: int, *, shared: bool = False, seen: list[Tensor] | None = None
) -> Tensor:
    """One worker over its connection; returns the parameters that it ends with."""
    wire = wire_of(plane.length, plane.compression, shared=shared)
    connection = plane.worker(rank, wire=wire)
    assert connection.shares_memory == shared
    parameters = wire.vectors.parameters if wire.vectors else torch.empty(plane.length)
    version = connection.pull(parameters).version
    for step in range(steps):
        exchanged = push_pull(
            connection,
            wire,
            gradient_of(rank, step, plane.length),
            parameters,
            step=step,
            version=version,
        )
        version = exchanged.version
        if seen is not None:
            seen.append(parameters.clone())
    return parameters


def train_all(plane: DataPlane, workers: int, steps: int, *, shared: bool = False) -> list[Tensor]:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(train, plane, rank, steps, shared=shared) for rank in range(workers)]
        return [future.result(PATIENCE) for future in futures]


@pytest.mark.parametrize("length", [1, BLOCK_LENGTH, LENGTH])
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC], ids=str)
def test_what_workers_push_is_what_all_of_them_go_on_with(mode: Mode, tls: bool, length: int) -> None:
    with data_plane(mode, length=length, workers=3, tls=tls) as plane:
        held = train_all(plane, 3, steps=4)
        scale = 1 / 3 if mode is Mode.SYNC else 1
        expected = -scale * sum(gradient_of(rank, step, length) for rank in range(3) for step in range(4))
        server = plane.state.aggregator.parameters
        assert torch.allclose(server, expected, atol=1e-5)
        if mode is Mode.SYNC:
            assert all(same_bits(parameters, server) for parameters in held)
        assert plane.server.received_bytes > 3 * 4 * 4 * length
        assert plane.server.sent_bytes > 3 * 5 * 4 * length


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC], ids=str)
def test_through_shared_memory_the_bits_are_the_same_and_no_block_passes(mode: Mode) -> None:
    outcomes = []
    for shared in (False, True):
        with data_plane(mode, length=LENGTH, workers=1) as plane:
            train(plane, 0, steps=5, shared=shared)
            outcomes.append(plane.state.aggregator.parameters)
            received = plane.server.received_bytes
    assert torch.equal(*outcomes)
    assert received < 5 * 4 * LENGTH


def test_a_tls_connection_is_used_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a thread that is still in OpenSSL when what it sent has reached the worker already
    real, first, together = ssl.SSLSocket.send, list[ssl.SSLSocket](), threading.Event()
    first_left = threading.Event()

    def slow(sock: ssl.SSLSocket, *given: Any) -> int:
        if sock in first and not first_left.is_set():
            together.set()
        sent = real(sock, *given)
        if sock.server_side and not first:
            first.append(sock)
            together.wait(1)
            first_left.set()
        return sent

    monkeypatch.setattr(ssl.SSLSocket, "send", slow)
    # When the worker goes on as soon as it may
    with data_plane(length=LENGTH, workers=1, tls=True) as plane:
        plane.worker(0).pull(torch.empty(LENGTH))
    # Then no other thread sends on that connection before the first has left
    assert not together.is_set()


def test_sync_training_over_shared_memory_is_that_over_sockets() -> None:
    outcomes = []
    for shared in (False, True):
        with data_plane(Mode.SYNC, length=LENGTH, workers=3) as plane:
            held = train_all(plane, 3, steps=5, shared=shared)
            assert all(same_bits(parameters, plane.state.aggregator.parameters) for parameters in held)
            outcomes.append(held[0].clone())
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("compression", LOSSY)
@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC], ids=str)
def test_with_compression_a_worker_holds_what_the_server_thinks_it_holds(
    mode: Mode, compression: str
) -> None:
    with data_plane(mode, length=LENGTH, workers=3, compression=compression, learning_rate=0.1) as plane:
        held = train_all(plane, 3, steps=15)
        for rank, parameters in enumerate(held):
            assert same_bits(parameters, plane.state.copies.held[rank])
        if mode is Mode.SYNC:
            assert all(same_bits(parameters, held[0]) for parameters in held)


@pytest.mark.parametrize("compression", LOSSY)
def test_in_sync_mode_a_difference_is_encoded_once_for_all(compression: str) -> None:
    with data_plane(Mode.SYNC, length=LENGTH, workers=3, compression=compression) as plane:
        encoded: list[int] = []
        codec = plane.state.copies._replicas[0]._codec
        for replica in plane.state.copies._replicas.values():
            replica._codec = Counting(codec, encoded)
        train_all(plane, 3, steps=4)
        # Once for the first pull of each block, whoever it is, and once for each version
        assert len(encoded) == 3 * (1 + 4)


class Counting:
    """A codec that notes what it encodes; the rest is another one's."""

    def __init__(self, codec: Any, encoded: list[int]) -> None:
        self._codec, self._encoded = codec, encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, values: Tensor) -> memoryview:
        self._encoded.append(len(values))
        payload: memoryview = self._codec.encode(values)
        return payload


# Who is let in.


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"token": "guessed"}, "the token is not that of this experiment"),
        ({"token": ""}, "the token is not that of this experiment"),
        (
            {"sender": Sender(study=STUDY, experiment="other")},
            "sender of study/other; expected study/experiment",
        ),
        (
            {"sender": Sender(study="other", experiment=EXPERIMENT)},
            "sender of other/experiment; expected study/experiment",
        ),
        ({"sender": sender(7)}, "rank 7 has not joined; expected Join first"),
        ({"down": False}, "worker 0: no connection down with attempt 0"),
    ],
)
def test_a_stranger_is_told_why_and_turned_away(wrong: dict[str, Any], reason: str) -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        hello = plane.hello(0, down=True)
        for name, value in wrong.items():
            if name == "sender":
                hello.sender.CopyFrom(value)
            else:
                setattr(hello, name, value)
        stream = plane.stream()
        stream.send(Outgoing.of(HELLO, hello))
        assert refusal(stream) == reason
        assert is_closed(stream)


def test_an_attempt_has_two_connections() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        plane.raw_pair(0, attempt=1)
        down, up = plane.stream(), plane.stream()
        down.send(Outgoing.of(HELLO, plane.hello(0, down=True, attempt=2)))
        assert down.receive().kind != HELLO
        up.send(Outgoing.of(HELLO, plane.hello(0, down=False, attempt=3)))
        assert refusal(up) == "worker 0: no connection down with attempt 3"


def test_who_does_not_say_hello_is_turned_away() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        stream = plane.stream()
        stream.send(Outgoing(PULL))
        assert refusal(stream) == "PULL; expected HELLO"


def test_a_long_hello_is_refused_unread() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        stream = plane.stream()
        stream._socket.sendall((HELLO).to_bytes(4, "little") + bytes(4) + (2**32 - 1).to_bytes(4, "little"))
        assert refusal(stream) == "a message of 4294967295 bytes; expected at most 65536"


def test_a_worker_without_the_certificate_is_not_let_in() -> None:
    with data_plane(length=LENGTH, workers=1, tls=True) as plane:
        trust = Trust(token=plane.trust.token)
        with pytest.raises(ConnectionClosed):
            DataConnection(plane.address, sender(0), trust, wire_of(LENGTH), 0)


def test_a_worker_of_another_experiment_says_what_the_server_said() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        other = Sender(study=STUDY, experiment="other")
        with pytest.raises(TrainingFailed, match="refused by the server: sender of study/other; expected"):
            DataConnection(plane.address, other, plane.trust, wire_of(LENGTH), 0)


def test_a_server_that_is_not_there_is_a_closed_connection() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        pass
    with pytest.raises(ConnectionClosed, match=r"no connection to 127\.0\.0\.1"):
        DataConnection(plane.address, sender(0), plane.trust, wire_of(LENGTH), 0)


def test_who_must_share_memory_with_a_server_that_cannot_fails() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        wire = replace(wire_of(LENGTH, shared=True), must_share=True)
        assert wire.vectors is not None
        wire.vectors.offer.CopyFrom(SharedMemory(process=wire.vectors.offer.process, descriptor=2**31))
        with pytest.raises(TrainingFailed, match="the server cannot share memory"):
            plane.worker(0, wire=wire)
        # And who need not goes on over the sockets
        connection = plane.worker(0, wire=replace(wire, must_share=False))
        assert not connection.shares_memory


# What is refused of a push.


def bad_block(index: int, *, length: int | None = None, place: int | None = None) -> list[Outgoing]:
    """The blocks up to `index`, and that one with another length or in another place."""
    sizes = [BLOCK_LENGTH, BLOCK_LENGTH, LENGTH - 2 * BLOCK_LENGTH]
    frames = [Outgoing(BLOCK, bytes(4 * size), i) for i, size in enumerate(sizes[:index])]
    size = 4 * sizes[index] if length is None else length
    return [*frames, Outgoing(BLOCK, bytes(size), index if place is None else place)]


NAN = torch.full((BLOCK_LENGTH,), float("nan")).numpy().tobytes()


@pytest.mark.parametrize("survives_loss", [False, True])
@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (bad_block(0, length=31), "step 0: gradient refused: block 0 of 31 bytes; expected 32"),
        (bad_block(2, length=32), "step 0: gradient refused: block 2 of 32 bytes; expected 16"),
        (bad_block(1, length=2**20), "step 0: gradient refused: block 1 of 1048576 bytes; expected 32"),
        (bad_block(1, place=2), "step 0: gradient refused: BLOCK 2; expected BLOCK 1"),
        (bad_block(1, place=0), "step 0: gradient refused: BLOCK 0; expected BLOCK 1"),
        ([Outgoing(PULL)], "step 0: gradient refused: PULL 0; expected BLOCK 0"),
        ([Outgoing(99)], "step 0: gradient refused: frame of kind 99 0; expected BLOCK 0"),
        (
            [Outgoing(BLOCK, NAN, 0)],
            "step 0: gradient refused: 8 of 8 values are NaN or infinite; lower the learning rate",
        ),
    ],
)
def test_a_gradient_that_cannot_be_is_refused(
    frames: list[Outgoing], reason: str, survives_loss: bool
) -> None:
    with data_plane(length=LENGTH, workers=1, survives_loss=survives_loss) as plane:
        up, down = plane.raw_pair(0)
        with suppress(ConnectionClosed):  # the server does not wait for the rest of what it refuses
            up.send(plane.push_of(), *frames)
        assert refusal(down) == f"worker 0, {reason}"
        assert is_closed(down)
        ending = plane.state.ending
        assert (ending is None) == survives_loss
        assert ending is None or ending.reason == f"worker 0, {reason}"


@pytest.mark.parametrize(
    ("push", "reason"),
    [
        ({"length": 21}, "worker 0, step 0: 21 elements; expected 20: both sides need the same model"),
        ({"length": 2**64 - 1}, r"worker 0, step 0: 18446744073709551615 elements; expected 20"),
        ({"compression": "int8"}, "worker 0, step 0: compression is 'int8'; expected none"),
        ({"compression": ""}, "worker 0, step 0: compression is ''; expected none"),
        ({"step": 3}, "worker 0: step 3 of 1000 steps; expected step 0"),
        ({"step": 2**63}, "worker 0: step 9223372036854775808 of 1000 steps; expected step 0"),
        ({"version": 5}, "worker 0, step 0: version 5 is not there yet; expected at most 0"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_a_block_of_it_is_read(
    push: dict[str, Any], reason: str
) -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        up, down = plane.raw_pair(0)
        up.send(plane.push_of(**push))
        assert refusal(down).startswith(reason)
        assert not plane.state.aggregator.parameters.any()
        assert plane.state.version == 0


def test_what_is_neither_push_nor_pull_is_refused() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        up, down = plane.raw_pair(0)
        up.send(Outgoing(ANSWER))
        assert refusal(down) == "ANSWER; expected PUSH or PULL"


@pytest.mark.parametrize("kind", [PULL, PUSH])
def test_who_asks_again_before_it_has_its_answer_is_refused(kind: int) -> None:
    """Answers that nobody takes would queue up without end."""
    with data_plane(Mode.SYNC, length=LENGTH, workers=2) as plane:
        up, down = plane.raw_pair(0)
        # Given a gradient that waits for the other worker's
        up.send(plane.push_of(), *plane.blocks_of(torch.ones(LENGTH)))
        up.send(Outgoing(PULL) if kind == PULL else plane.push_of())
        assert refusal(down) == f"{name_of(kind)} before all of the answer before had left"


def test_an_update_that_is_complete_keeps_nobody_who_follows_it() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        wire, parameters = wire_of(LENGTH), torch.empty(LENGTH)
        connection = plane.worker(0, 0, wire)
        push_pull(connection, wire, torch.ones(LENGTH), parameters, step=0, version=0)
        latest = plane.state._rounds._latest
        assert latest is not None
        kept = len(latest._followers)
        for _ in range(20):
            connection.pull(parameters)
        assert len(latest._followers) == kept


def test_a_push_that_cannot_be_read_is_refused() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        up, down = plane.raw_pair(0)
        up.send(Outgoing(PUSH, b"\xff\xff\xff"))
        assert refusal(down).startswith("PUSH cannot be read")


@pytest.mark.parametrize("compression", LOSSY)
def test_a_compressed_block_that_is_too_long_is_refused_unread(compression: str) -> None:
    with data_plane(length=LENGTH, workers=1, compression=compression) as plane:
        up, down = plane.raw_pair(0)
        most = codec_for(compression, TOPK_RATIO).max_bytes(BLOCK_LENGTH)  # type: ignore[arg-type]  # a parameter
        up.send(plane.push_of(), Outgoing(BLOCK, bytes(most + 1)))
        assert refusal(down).endswith(f"block 0 of {most + 1} bytes; expected at most {most}")


@pytest.mark.parametrize("length", [BLOCK_LENGTH, LENGTH, 50 * BLOCK_LENGTH], ids=["one", "some", "many"])
@pytest.mark.parametrize("shared", [False, True], ids=["tcp", "shared"])
@pytest.mark.parametrize("survives_loss", [False, True])
def test_a_worker_whose_gradient_is_refused_says_what_the_server_said(
    length: int, shared: bool, survives_loss: bool
) -> None:
    with data_plane(length=length, workers=1, survives_loss=survives_loss) as plane:
        wire = wire_of(length, shared=shared)
        connection = plane.worker(0, wire=wire)
        gradient = torch.zeros(length)
        gradient[3] = float("inf")
        with pytest.raises(
            TrainingFailed, match="refused by the server: worker 0, step 0: gradient refused: 1 of"
        ):
            push_pull(connection, wire, gradient, torch.zeros(length), step=0, version=0)


@pytest.mark.parametrize("length", [BLOCK_LENGTH, 50 * BLOCK_LENGTH], ids=["one", "many"])
def test_a_worker_that_compresses_otherwise_says_what_the_server_said(length: int) -> None:
    """Although it goes on sending after the server has hung up, and learns of that first."""
    with data_plane(length=length, workers=1) as plane:
        wire = wire_of(length, "fp16")
        connection = plane.worker(0, wire=wire)
        with pytest.raises(TrainingFailed, match="compression is 'fp16'; expected none"):
            push_pull(connection, wire, torch.ones(length), torch.zeros(length), step=0, version=0)


@settings(deadline=None, max_examples=60)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        # Such as begin well
        st.builds(
            lambda kind, block, length, rest: struct.pack("<III", kind, block, length) + rest,
            st.integers(0, 8),
            st.integers(0, 4),
            st.integers(0, 100),
            st.binary(max_size=200),
        ),
    ),
    after_hello=st.booleans(),
)
def test_whatever_bytes_come_the_server_serves_its_workers(data: bytes, after_hello: bool) -> None:
    with data_plane(length=LENGTH, workers=2, survives_loss=True) as plane:
        stream = plane.raw_pair(1)[0] if after_hello else plane.stream()
        stream._socket.sendall(data)
        stream.hang_up()
        train(plane, 0, steps=1)
        assert torch.equal(plane.state.aggregator.parameters, -gradient_of(0, 0))


# Connections that break.


def test_the_later_one_of_two_workers_of_a_rank_is_served() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        wire = wire_of(LENGTH)
        first, second = plane.worker(0, 0, wire), plane.worker(0, 1, wire)
        parameters = torch.empty(LENGTH)
        with pytest.raises(ConnectionClosed):
            first.pull(parameters)
        exchanged = push_pull(second, wire, torch.ones(LENGTH), parameters, step=0, version=0)
        assert exchanged.version == 1
        assert parameters.tolist() == [-1.0] * LENGTH


def test_a_connection_down_that_is_replaced_before_it_was_used_is_closed() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        first = plane.stream()
        first.send(Outgoing.of(HELLO, plane.hello(0, down=True)))
        first.receive_into(memoryview(bytearray(first.receive().length)))
        plane.worker(0)
        assert is_closed(first)


def sent_bytes_of(plane: DataPlane, gradient: Tensor) -> bytes:
    """All that passes up for the first push, as one piece."""
    frames = [plane.push_of(), *plane.blocks_of(gradient)]
    heads = [(f.kind, f.block, len(f.payload)) for f in frames]
    return b"".join(
        b"".join(number.to_bytes(4, "little") for number in head) + bytes(frame.payload)
        for head, frame in zip(heads, frames, strict=True)
    )


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC, Mode.SSP], ids=str)
@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_a_push_that_is_cut_anywhere_and_made_again_counts_once(mode: Mode, cuts: list[float]) -> None:
    told = {"staleness_bound": 5} if mode is Mode.SSP else {}
    with data_plane(mode, length=LENGTH, workers=2, **told) as plane:
        gradient = torch.arange(1.0, LENGTH + 1)
        whole = sent_bytes_of(plane, gradient)
        for attempt, cut in enumerate(cuts):
            up, _ = plane.raw_pair(0, attempt)
            up._socket.sendall(whole[: int(cut * len(whole))])
            up.hang_up()
        wire, parameters = wire_of(LENGTH), torch.empty(LENGTH)
        connection = plane.worker(0, len(cuts), wire)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: train(plane, 1, 1))
            exchanged = push_pull(
                connection, wire, gradient, parameters, step=0, version=0, repeats=len(cuts)
            )
            other.result(PATIENCE)
        total = gradient + gradient_of(1, 0)
        expected = -total / 2 if mode is Mode.SYNC else -total
        assert torch.allclose(plane.state.aggregator.parameters, expected)
        assert exchanged.version == (1 if mode is Mode.SYNC else exchanged.version)
        assert plane.state.summary()["gradients_processed"] == 2


@pytest.mark.parametrize("compression", ["none", "topk"])
@settings(deadline=None, max_examples=25)
@given(taken=st.integers(0, 3))
def test_an_answer_that_is_cut_anywhere_comes_whole_when_the_push_is_made_again(
    compression: str, taken: int
) -> None:
    with data_plane(length=LENGTH, workers=1, compression=compression) as plane:
        wire = wire_of(LENGTH, compression)
        payloads = Payloads(gradient_of(0, 0), wire.feedback)
        up, down = plane.raw_pair(0)
        blocks = [Outgoing(BLOCK, payload, index) for index, payload in enumerate(payloads)]
        up.send(plane.push_of(), *blocks)
        # Given the worker got some blocks of the answer, and perhaps the rest was never sent
        for _ in range(taken):
            down.receive_into(memoryview(bytearray(down.receive().length)))
        down.hang_up()
        up.hang_up()
        connection = plane.worker(0, 1, wire)
        parameters = torch.full((LENGTH,), 99.0)
        exchanged = connection.push_pull(payloads, parameters, step=0, version=0, repeats=1)
        assert exchanged.version == 1
        assert same_bits(parameters, plane.state.aggregator.parameters)
        assert plane.state.summary()["gradients_processed"] == 1
        if compression != "none":
            assert same_bits(parameters, plane.state.copies.held[0])
        # And the next differences start from there
        version = 1
        for step in range(1, 4):
            exchanged = push_pull(
                connection, wire, gradient_of(0, step), parameters, step=step, version=version
            )
            version = exchanged.version
            if compression != "none":
                assert same_bits(parameters, plane.state.copies.held[0])


@pytest.mark.parametrize("compression", LOSSY)
def test_in_sync_mode_a_whole_answer_is_the_copy_that_all_others_hold(compression: str) -> None:
    with data_plane(Mode.SYNC, length=LENGTH, workers=2, compression=compression) as plane:
        wires = [wire_of(LENGTH, compression) for _ in range(2)]
        connections = [plane.worker(rank, 0, wire) for rank, wire in enumerate(wires)]
        held = [torch.empty(LENGTH) for _ in range(2)]
        for connection, parameters in zip(connections, held, strict=True):
            connection.pull(parameters)
        with ThreadPoolExecutor(2) as pool:
            for step in range(6):
                # Worker 1 pushes each odd step twice, as if it had never heard
                repeats = step % 2
                futures = [
                    pool.submit(
                        push_pull,
                        connections[rank],
                        wires[rank],
                        gradient_of(rank, step),
                        held[rank],
                        step=step,
                        version=step,
                        repeats=repeats * rank,
                    )
                    for rank in range(2)
                ]
                for future in futures:
                    assert future.result(PATIENCE).version == step + 1
                assert same_bits(held[0], held[1])
                assert same_bits(held[0], plane.state.copies.held[0])


class Slow:
    """A codec whose next encoding waits until it is let go."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, values: Tensor) -> memoryview:
        if not self.reached.is_set():
            self.reached.set()
            self.go_on.wait(PATIENCE)
        payload: memoryview = self._codec.encode(values)
        return payload


def test_what_an_old_connection_still_encodes_does_not_change_what_the_new_one_sent() -> None:
    """Else the server would think that the worker holds what it was never sent, for ever."""
    with data_plane(length=LENGTH, workers=1, compression="topk") as plane:
        wire = wire_of(LENGTH, "topk")
        payloads = Payloads(gradient_of(0, 0), wire.feedback)
        slow = Slow(plane.state.copies._replicas[0]._codec)
        plane.state.copies._replicas[0]._codec = slow  # type: ignore[assignment]  # the rest is the codec's
        up, _ = plane.raw_pair(0)
        up.send(plane.push_of(), Outgoing(BLOCK, next(iter(payloads)), 0))
        assert slow.reached.wait(PATIENCE)
        old = plane.server._sessions[0]
        # Given the old connection's thread is about to answer when the worker comes by another one
        parameters = torch.empty(LENGTH)
        with ThreadPoolExecutor(1) as pool:

            def again() -> None:
                connection = plane.worker(0, 1, wire)
                connection.push_pull(payloads, parameters, step=0, version=0, repeats=1)

            future = pool.submit(again)
            pause = threading.Event()
            while plane.server._sessions.get(0) is old:
                pause.wait(0.005)
            # Time for the new connection to answer first, if it may
            pause.wait(0.05)
            slow.go_on.set()
            future.result(PATIENCE)
        assert same_bits(parameters, plane.state.copies.held[0])


def test_a_push_that_an_old_connection_still_begins_does_not_take_the_answer_from_the_new_one() -> None:
    """Else the worker would wait for it until the experiment's time is over."""
    reached, go_on, threads = threading.Event(), threading.Event(), []
    checked = Session._checked

    def slowly_at_first(session: Session, push: Push) -> Push:
        if not reached.is_set():
            threads.append(threading.current_thread())
            reached.set()
            go_on.wait(PATIENCE)
        return checked(session, push)

    with (
        patch.object(Session, "_checked", slowly_at_first),
        ThreadPoolExecutor(1) as pool,
        data_plane(Mode.SYNC, length=LENGTH, workers=2) as plane,
    ):
        # Given the old connection's thread has received a push, and begins it when the worker has come again
        plane.raw_pair(0)[0].send(plane.push_of())
        assert reached.wait(PATIENCE)
        wire, parameters = wire_of(LENGTH), torch.empty(LENGTH)
        connection = plane.worker(0, 1, wire)
        waiting = pool.submit(
            push_pull, connection, wire, torch.ones(LENGTH), parameters, step=0, version=0, repeats=1
        )
        pause = threading.Event()
        while not plane.state._rounds._waiting:
            assert not waiting.done()
            pause.wait(0.005)
        go_on.set()
        threads[0].join(PATIENCE)
        # When the other worker's push comes, it is answered
        train(plane, 1, 1)
        assert waiting.result(PATIENCE).version == 1


@pytest.mark.parametrize("how", [DataConnection.hang_up, lambda connection: connection._up.hang_up()])
def test_who_waits_for_an_answer_when_the_connection_closes_is_told(
    how: Callable[[DataConnection], None],
) -> None:
    with data_plane(Mode.SYNC, length=LENGTH, workers=2) as plane, ThreadPoolExecutor(1) as pool:
        wire = wire_of(LENGTH)
        connection = plane.worker(0, 0, wire)
        waiting = pool.submit(
            push_pull, connection, wire, torch.ones(LENGTH), torch.empty(LENGTH), step=0, version=0
        )
        pause = threading.Event()
        while not plane.state._rounds._waiting:
            assert not waiting.done()
            pause.wait(0.005)
        how(connection)
        with pytest.raises(ConnectionClosed):
            waiting.result(PATIENCE)


def test_a_closed_server_closes_all_connections_and_its_bytes_stay_counted() -> None:
    with data_plane(length=LENGTH, workers=1) as plane:
        wire = wire_of(LENGTH)
        connection = plane.worker(0, 0, wire)
        connection.pull(torch.empty(LENGTH))
        received, sent = connection.sent_bytes, connection.received_bytes
        pause = threading.Event()
        while plane.server.sent_bytes < sent:
            pause.wait(0.005)
        plane.server.close()
        with pytest.raises(ConnectionClosed):
            connection.pull(torch.empty(LENGTH))
        assert (plane.server.received_bytes, plane.server.sent_bytes) == (received, sent)
