"""Frames on a data connection: 12 bytes that say what follows, then its bytes. parameter_server.proto has the rules.

Runs on both sides; knows nothing of what a frame means. The receiver says how long a payload may be, before a
byte of it is read: no peer can make us allocate.
"""

import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from runtime import liveness
from runtime.wire.parameter_server_pb2 import FrameKind

M = TypeVar("M", bound=Message)

_HEAD = struct.Struct("<III")
MAX_MESSAGE_BYTES = 64 * 1024
"""Longest payload that is a message, not a block."""

if sys.byteorder != "little":
    raise ImportError("the wire format is little-endian, and so must this machine be")


class WireRefused(Exception):
    """What came is not what the receiver expects; the message says what came and what was expected."""


class ConnectionClosed(Exception):
    """The peer has gone, or has closed the connection."""


class Frame(NamedTuple):
    """What a frame's first bytes say."""

    kind: int
    block: int
    """Index of the block; 0 for messages."""
    length: int
    """Bytes of payload."""


class Outgoing(NamedTuple):
    """A frame to send."""

    kind: int
    payload: bytes | memoryview = b""
    block: int = 0

    @classmethod
    def of(cls, kind: int, message: Message) -> Self:
        """One with a message in it."""
        return cls(kind, message.SerializeToString())


_FAILED: Final = (OSError, ValueError, AttributeError)
"""What a socket raises that has failed; ssl's the other two, where it looks for parts of it that are gone."""


class Stream:
    """One data connection. One thread may send while another receives, but not on TLS: see docs/decisions.

    Any thread may hang up.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._head = memoryview(bytearray(_HEAD.size))
        self._hung_up = False
        self._sending = threading.Lock()
        self.sent_bytes = self.received_bytes = 0
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            # A frame that waits for the acknowledgement of the one before it would cost 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _probe(sock)

    def send(self, *frames: "Outgoing") -> None:
        """Send frames, together: a small one that follows a large one costs the receiver nothing to wait for.

        Raises ConnectionClosed.
        """
        self.send_rest(self._send(frames, 0))

    def send_at_once(self, *frames: "Outgoing") -> list[bytes | memoryview]:
        """Send what leaves without waiting for the receiver; returns what does not, for `send_rest`.

        Raises ConnectionClosed.
        """
        return self._send(frames, socket.MSG_DONTWAIT)

    def send_rest(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send what is left of frames. Raises ConnectionClosed."""
        try:
            # The peer may have all of it, and another thread something to answer, before the first is out of OpenSSL.
            with self._sending:
                for piece in pieces:
                    self._socket.sendall(piece)
        except _FAILED as error:
            raise self._closed(error) from error

    def _send(self, frames: Sequence["Outgoing"], flags: int) -> list[bytes | memoryview]:
        """In one call and without a copy; returns the pieces, and parts of them, that the kernel did not take."""
        pieces: list[bytes | memoryview] = []
        for kind, payload, block in frames:
            pieces += (_HEAD.pack(kind, block, len(payload)), payload)
            self.sent_bytes += _HEAD.size + len(payload)
        if self._tls:
            return pieces
        try:
            sent = self._socket.sendmsg(pieces, (), flags)
        except BlockingIOError:
            return pieces
        except OSError as error:
            raise ConnectionClosed(str(error)) from error
        rest: list[bytes | memoryview] = []
        for piece in pieces:
            if sent < len(piece):
                rest.append(memoryview(piece)[sent:])
            sent = max(sent - len(piece), 0)
        return rest

    def receive(self) -> Frame:
        """The head of the next frame; its payload must be received next. Raises ConnectionClosed."""
        self.receive_into(self._head)
        return Frame(*_HEAD.unpack(self._head))

    def receive_into(self, payload: memoryview) -> None:
        """Receive as many bytes as `payload` has room for. Raises ConnectionClosed."""
        received, total = 0, len(payload)
        try:
            while received < total:
                rest = payload[received:] if received else payload
                count = (
                    self._socket.recv_into(rest)
                    if self._tls
                    else self._socket.recv_into(rest, 0, socket.MSG_WAITALL)
                )
                if not count or self._hung_up:
                    raise ConnectionClosed("the peer closed the connection")
                received += count
        except _FAILED as error:
            raise self._closed(error) from error
        finally:
            self.received_bytes += received

    def receive_message(self, frame: Frame, message: M) -> M:
        """Fill `message` with a frame's payload. Raises WireRefused, ConnectionClosed."""
        if frame.length > MAX_MESSAGE_BYTES:
            raise WireRefused(f"a message of {frame.length} bytes; expected at most {MAX_MESSAGE_BYTES}")
        payload = bytearray(frame.length)
        self.receive_into(memoryview(payload))
        try:
            message.ParseFromString(bytes(payload))
        except DecodeError as error:
            raise WireRefused(f"{name_of(frame.kind)} cannot be read: {error}") from error
        return message

    def shake_hands(self) -> None:
        """Begin TLS, if that is what is spoken. Raises ConnectionClosed."""
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.do_handshake()
            except _FAILED as error:
                raise self._closed(error) from error

    def set_timeout(self, seconds: float | None) -> None:
        """How long to wait for a peer that neither sends nor receives; None: for ever, until `hang_up`.

        Raises ConnectionClosed.
        """
        try:
            self._socket.settimeout(seconds)
        except _FAILED as error:
            raise self._closed(error) from error

    @property
    def is_dead(self) -> bool:
        """Whether the kernel has given up a peer that answers no probes."""
        poll = select.poll()
        try:
            poll.register(self._socket, 0)
        except ValueError:  # it is closed
            return False
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def finish_receiving(self) -> None:
        """Receive what has come, and then no more: whoever waits for more finds the connection closed."""
        self._shut(socket.SHUT_RD)

    def hang_up(self) -> None:
        """Close the connection, also for threads that send or receive on it."""
        self._hung_up = True
        self._shut(socket.SHUT_RDWR)
        self._socket.close()

    def _closed(self, error: Exception) -> ConnectionClosed:
        """What a failure means. Raises it where it is a mistake of ours."""
        if not isinstance(error, OSError) and not self._hung_up:
            raise error
        return ConnectionClosed(str(error))

    def _shut(self, direction: int) -> None:
        with suppress(OSError):  # the peer may have been faster
            # The socket's own, also on TLS: ssl's would have another thread read on without it.
            socket.socket.shutdown(self._socket, direction)


def _probe(sock: socket.socket) -> None:
    """Have the kernel find out when the peer is gone without a word, and fail whoever receives from it.

    It does not probe while something sent is not acknowledged: who sends must have another connection watched.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, liveness.DATA_PROBE_SECONDS),
        (socket.TCP_KEEPINTVL, liveness.DATA_PROBE_SECONDS),
        (socket.TCP_KEEPCNT, liveness.DATA_PROBES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def name_of(kind: int) -> str:
    """What a kind of frame is called."""
    return FrameKind.Name(kind) if kind in FrameKind.values() else f"frame of kind {kind}"
