"""The server's end of the data plane: let workers' connections in, by pairs, and start a session for each pair.

Runs in the parameter server; knows nothing of what a session says, or of gRPC.
"""

import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Final

from runtime.compression import Codec
from runtime.frames import ConnectionClosed, Outgoing, Stream, WireRefused, name_of
from runtime.membership import Rejection
from runtime.session import Session
from runtime.shared_memory import SharedVectors, accept
from runtime.state import ServerState, TrainingEnded
from runtime.trust import Identity
from runtime.wire.parameter_server_pb2 import HELLO, REFUSED, WELCOME, Hello, Refused, Welcome

HELLO_SECONDS: Final = 10.0
"""How long a new connection may take to say whose it is."""

MAX_ARRIVALS: Final = 64
"""New connections that are let in at a time. One more takes the place of the oldest: strangers that say nothing,
or a byte now and then, hold no more threads than that, and keep no worker out."""

FULL_SECONDS: Final = 0.1
"""How long to wait where the process has no descriptor left for a connection."""


class DataServer:
    """Takes the connections of one experiment's workers."""

    def __init__(
        self,
        state: ServerState,
        identity: Identity,
        codec: Codec,
        *,
        host: str,
        port: int,
        study: str,
        experiment: str,
    ) -> None:
        """Listen on `host`:`port`; 0 for a free one. Raises OSError if it is taken."""
        self._state = state
        self._identity = identity
        self._context = identity.ssl_context()
        self._codec = codec
        self._experiment = (study, experiment)
        self._lock = threading.Lock()
        self._downs: dict[int, tuple[int, Stream, SharedVectors | None]] = {}
        self._sessions: dict[int, Session] = {}
        self._past_received = self._past_sent = 0
        self._arriving: deque[Stream] = deque()
        self._closing = threading.Event()
        self._listener = socket.create_server((host, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        """Where it listens; 0 was asked for any."""
        threading.Thread(target=self._listen, name="data-listener", daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and close those that are there."""
        self._closing.set()
        # shutdown, too: close alone would leave the thread in accept.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ranks = set(self._sessions) | set(self._downs)
            arriving = list(self._arriving)
        for stream in arriving:
            stream.hang_up()
        for rank in ranks:
            self.hang_up(rank)

    @property
    def received_bytes(self) -> int:
        """From all workers so far."""
        with self._lock:
            return self._past_received + sum(s.received_bytes for s in self._sessions.values())

    @property
    def sent_bytes(self) -> int:
        """To all workers so far."""
        with self._lock:
            return self._past_sent + sum(s.sent_bytes for s in self._sessions.values())

    def hang_up(self, rank: int) -> None:
        """Close the connections of a worker that is gone."""
        with self._lock:
            session = self._sessions.pop(rank, None)
            down = self._downs.pop(rank, None)
            if session is not None:
                self._past_received += session.received_bytes
                self._past_sent += session.sent_bytes
        if session is not None:
            session.hang_up()
        if down is not None:
            down[1].hang_up()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Whatever is wrong with this one, others will come.
                self._closing.wait(FULL_SECONDS)
                continue
            with suppress(OSError):  # it may be gone already
                stream = self._stream(connection)
                self._make_room(stream)
                threading.Thread(target=self._receive, args=(stream,), name="data", daemon=True).start()

    def _stream(self, connection: socket.socket) -> Stream:
        connection.settimeout(HELLO_SECONDS)
        if self._context is None:
            return Stream(connection)
        # Hands are shaken in a thread of its own: the peer may take its time.
        return Stream(self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False))

    def _make_room(self, stream: Stream) -> None:
        with self._lock:
            self._arriving.append(stream)
            oldest = self._arriving.popleft() if len(self._arriving) > MAX_ARRIVALS else None
        if oldest is not None:
            oldest.hang_up()

    def _receive(self, stream: Stream) -> None:
        """Let a connection in; the thread of one that carries gradients then serves them."""
        session = None
        try:
            stream.shake_hands()
            session = self._pair(stream, self._hello(stream))
        except (Rejection, WireRefused) as error:
            self._refuse(stream, str(error))
        except (ConnectionClosed, TrainingEnded):
            stream.hang_up()
        finally:
            with self._lock, suppress(ValueError):  # the oldest have been removed
                self._arriving.remove(stream)
        if session is not None:
            session.run()

    def _refuse(self, stream: Stream, reason: str) -> None:
        with suppress(ConnectionClosed):
            stream.send(Outgoing.of(REFUSED, Refused(reason=reason)))
        stream.hang_up()

    def _pair(self, stream: Stream, hello: Hello) -> Session | None:
        """Keep a connection down until the one up comes, which makes a session of both."""
        rank = hello.sender.rank
        if hello.down:
            offered = hello.HasField("shared_memory")
            shared = accept(hello.shared_memory, self._state.length) if offered else None
            with self._lock:
                before = self._downs.get(rank)
                self._downs[rank] = (hello.attempt, stream, shared)
            if before is not None:
                before[1].hang_up()
            self._welcome(stream, shared)
            return None
        with self._lock:
            attempt, down, shared = self._downs.get(rank, (None, None, None))
            if down is None or attempt != hello.attempt:
                raise WireRefused(f"worker {rank}: no connection down with attempt {hello.attempt}")
            del self._downs[rank]
        self.hang_up(rank)
        session = Session(self._state, self._codec, rank=rank, up=stream, down=down, shared=shared)
        with self._lock:
            self._sessions[rank] = session
        self._welcome(stream, shared)
        return session

    def _welcome(self, stream: Stream, shared: SharedVectors | None) -> None:
        stream.set_timeout(None)
        stream.send(Outgoing.of(WELCOME, Welcome(shared_memory=shared is not None)))

    def _hello(self, stream: Stream) -> Hello:
        """Whose the connection is. Raises WireRefused for a stranger, Rejection for a worker that does not train."""
        frame = stream.receive()
        if frame.kind != HELLO:
            raise WireRefused(f"{name_of(frame.kind)}; expected HELLO")
        hello = stream.receive_message(frame, Hello())
        if not self._identity.admits(hello.token):
            raise WireRefused("the token is not that of this experiment")
        sender = hello.sender
        if (sender.study, sender.experiment) != self._experiment:
            raise WireRefused(
                f"sender of {sender.study}/{sender.experiment}; expected {'/'.join(self._experiment)}"
            )
        self._state.check_training(sender.rank)
        return hello
