"""Frames over real sockets: whatever comes is parsed or refused, in whatever pieces, and nobody makes us allocate."""

import socket
import ssl
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.frames import MAX_MESSAGE_BYTES, ConnectionClosed, Outgoing, Stream, WireRefused, name_of
from runtime.trust import Identity
from runtime.wire.parameter_server_pb2 import (
    ANSWER,
    BLOCK,
    HELLO,
    PUSH,
    Answer,
    FrameKind,
    Hello,
    Push,
    Sender,
)

PATIENCE = 60.0
IDENTITY = Identity.make("127.0.0.1", tls=True)


@contextmanager
def pair(*, tls: bool = False, buffer_bytes: int | None = None) -> Iterator[tuple[Stream, Stream]]:
    first, second = socket.socketpair()
    for each in (first, second):
        each.settimeout(PATIENCE)
        if buffer_bytes is not None:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    if tls:
        context = IDENTITY.ssl_context()
        assert context is not None
        with ThreadPoolExecutor(1) as pool:
            server = pool.submit(context.wrap_socket, second, server_side=True)
            first, second = IDENTITY.trust.wrap(first), server.result(PATIENCE)
    streams = Stream(first), Stream(second)
    try:
        yield streams
    finally:
        for stream in streams:
            stream.hang_up()


FRAMES = st.lists(
    st.builds(Outgoing, st.integers(0, 2**32 - 1), st.binary(max_size=3000), st.integers(0, 2**32 - 1)),
    max_size=6,
)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@settings(deadline=None, max_examples=40)
@given(groups=st.lists(FRAMES, min_size=1, max_size=3))
def test_what_is_sent_is_what_is_received(tls: bool, groups: list[list[Outgoing]]) -> None:
    with pair(tls=tls, buffer_bytes=4096) as (sender, receiver), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [sender.send(*group) for group in groups])
        for frame in [frame for group in groups for frame in group]:
            head = receiver.receive()
            assert head == (frame.kind, frame.block, len(frame.payload))
            payload = bytearray(head.length)
            receiver.receive_into(memoryview(payload))
            assert payload == frame.payload
        sending.result(PATIENCE)
        assert sender.sent_bytes == receiver.received_bytes


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [1, 16 * 1024, 5_000_003])
def test_large_frames_pass_in_as_many_pieces_as_the_kernel_likes(tls: bool, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with pair(tls=tls, buffer_bytes=8192) as (sender, receiver), ThreadPoolExecutor(1) as pool:
        frames = [Outgoing(BLOCK, payload, 3), Outgoing.of(ANSWER, Answer(version=7))]
        sending = pool.submit(sender.send, *frames)
        assert receiver.receive() == (BLOCK, 3, size)
        received = bytearray(size)
        receiver.receive_into(memoryview(received))
        assert received == payload
        assert receiver.receive_message(receiver.receive(), Answer()).version == 7
        sending.result(PATIENCE)


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_a_message_or_refused_or_the_end(data: bytes, cuts: list[int]) -> None:
    with pair() as (sender, receiver):
        bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for start, end in pairwise(bounds):
            sender._socket.sendall(data[start:end])
        sender.hang_up()
        tracemalloc.start()
        try:
            while True:
                receiver.receive_message(receiver.receive(), Push())
        except (WireRefused, ConnectionClosed):
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * MAX_MESSAGE_BYTES


@settings(deadline=None)
@given(kind=st.integers(0, 2**32 - 1), length=st.integers(MAX_MESSAGE_BYTES + 1, 2**32 - 1))
def test_a_message_that_is_too_long_is_refused_before_anything_is_allocated(kind: int, length: int) -> None:
    with pair() as (sender, receiver):
        sender._socket.sendall(struct.pack("<III", kind, 0, length))
        frame = receiver.receive()
        tracemalloc.start()
        with pytest.raises(WireRefused, match=f"a message of {length} bytes; expected at most 65536"):
            receiver.receive_message(frame, Push())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10_000


@settings(deadline=None)
@given(
    step=st.integers(0, 2**64 - 1),
    study=st.text(max_size=50),
    rank=st.integers(0, 2**32 - 1),
    cut=st.floats(0, 1, exclude_max=True),
)
def test_a_message_that_is_cut_off_is_the_end_of_the_connection(
    step: int, study: str, rank: int, cut: float
) -> None:
    for kind, message in [
        (PUSH, Push(step=step, length=1)),
        (HELLO, Hello(sender=Sender(study=study, rank=rank), attempt=1)),
    ]:
        frame = Outgoing.of(kind, message)
        whole = struct.pack("<III", kind, 0, len(frame.payload)) + frame.payload
        with pair() as (sender, receiver):
            sender._socket.sendall(whole)
            assert receiver.receive_message(receiver.receive(), type(message)()) == message
            sender._socket.sendall(whole[: int(cut * len(whole))])
            sender.hang_up()
            with pytest.raises(ConnectionClosed):
                receiver.receive_message(receiver.receive(), type(message)())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_bytes_count_as_received_when_they_are(tls: bool) -> None:
    with pair(tls=tls) as (sender, receiver):
        sender._socket.sendall(struct.pack("<III", BLOCK, 0, 1000) + bytes(10))
        assert receiver.receive().length == 1000
        assert receiver.received_bytes == 12
        sender.hang_up()
        with pytest.raises(ConnectionClosed):
            receiver.receive_into(memoryview(bytearray(1000)))
        assert receiver.received_bytes == 22


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("whose", ["own", "peer"])
def test_who_waits_is_told_when_either_side_hangs_up(tls: bool, whose: str) -> None:
    with pair(tls=tls) as (first, second), ThreadPoolExecutor(1) as pool:
        first.set_timeout(None)
        began = threading.Event()

        def wait() -> None:
            began.set()
            first.receive()

        waiting = pool.submit(wait)
        began.wait(PATIENCE)
        (first if whose == "own" else second).hang_up()
        with pytest.raises(ConnectionClosed):
            waiting.result(PATIENCE)
        with pytest.raises(ConnectionClosed):
            first.send(Outgoing(BLOCK, bytes(10_000_000)))


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize(
    "use",
    [
        Stream.receive,
        lambda stream: stream.send(Outgoing(HELLO)),
        lambda stream: stream.set_timeout(None),
    ],
    ids=["receive", "send", "set_timeout"],
)
def test_whatever_is_done_with_what_was_hung_up_says_that_it_is_closed(
    use: Callable[[Stream], Any], tls: bool
) -> None:
    with pair(tls=tls) as (stream, _):
        stream.hang_up()
        with pytest.raises(ConnectionClosed):
            use(stream)


READ, HANDSHAKE = ssl.SSLSocket.read, ssl.SSLSocket.do_handshake


def send_once_it_was_seen_that_it_is_open(sock: Any, data: memoryview) -> Any:
    """The last line of ssl's own."""
    return sock._sslobj.write(data)


@pytest.mark.parametrize(
    ("name", "step", "use"),
    [
        ("read", READ, Stream.receive),
        ("do_handshake", HANDSHAKE, Stream.shake_hands),
        ("send", send_once_it_was_seen_that_it_is_open, lambda stream: stream.send(Outgoing(HELLO))),
    ],
    ids=["receive", "shake hands", "send"],
)
def test_who_hangs_up_in_the_middle_of_what_ssl_does_closes_the_connection_and_no_more(
    name: str, step: Callable[..., Any], use: Callable[[Stream], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair(tls=True) as (stream, _):

        def interrupted(*given: Any) -> Any:
            stream.hang_up()  # as another thread may at any time
            return step(*given)

        monkeypatch.setattr(ssl.SSLSocket, name, interrupted)
        with pytest.raises(ConnectionClosed):
            use(stream)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_who_finishes_receiving_gets_what_has_come_and_no_more(tls: bool) -> None:
    with pair(tls=tls) as (sender, receiver):
        sender.send(Outgoing(BLOCK, b"1234", 1), Outgoing(BLOCK, b"5678", 2))
        receiver.finish_receiving()
        for index, expected in ((1, b"1234"), (2, b"5678")):
            assert receiver.receive() == (BLOCK, index, 4)
            payload = bytearray(4)
            receiver.receive_into(memoryview(payload))
            assert payload == expected
        receiver.set_timeout(None)
        with pytest.raises(ConnectionClosed):
            receiver.receive()


def test_who_neither_sends_nor_closes_is_given_up_after_a_while() -> None:
    with pair() as (_, receiver):
        receiver.set_timeout(0.01)
        with pytest.raises(ConnectionClosed, match="timed out"):
            receiver.receive()


def test_every_kind_of_frame_has_a_name() -> None:
    assert [name_of(kind) for kind in FrameKind.values()] == FrameKind.keys()
    assert name_of(99) == "frame of kind 99"
