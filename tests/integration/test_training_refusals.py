"""What the server refuses, on both planes: strangers, other models, frames that would spoil the parameters."""

import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from google.protobuf.message import Message
from training_processes import Experiment, experiment

from contract.errors import LockstepError, PeerLost
from contract.metrics import ServerSummary, TaskFailed
from runtime.attendance import Attendance
from runtime.data_server import MAX_ARRIVALS
from runtime.liveness import FAREWELL_SECONDS, LEAVE_SECONDS
from runtime.wire.parameter_server_pb2 import (
    ANSWER,
    BLOCK,
    HELLO,
    PULL,
    PUSH,
    REFUSED,
    WELCOME,
    Answer,
    AttendRequest,
    FinishReply,
    FinishRequest,
    Hello,
    JoinRequest,
    Notice,
    Push,
    ReadyRequest,
    Refused,
    Sender,
    SharedMemory,
    WithdrawRequest,
)
from runtime.wire.parameter_server_pb2_grpc import (
    ParameterServerServicer,
    ParameterServerStub,
    add_ParameterServerServicer_to_server,
)

PARAMETERS = 38_282
ZEROS = bytes(4 * PARAMETERS)
SECONDS = 60.0
TOKEN = "let-me-in"  # noqa: S105 - made up

HEAD = struct.Struct("<III")
"""Of a frame, as parameter_server.proto says: kind, block, payload length."""


class RawConnection:
    """A data connection that sends what a test wants. Written from the protocol, not with the runtime's frames."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=SECONDS)
        self.opened.append(self.socket)

    def send(self, kind: int, payload: bytes = b"", block: int = 0, length: int | None = None) -> None:
        """A frame; `length`: what it claims, rightly by default."""
        self.socket.sendall(HEAD.pack(kind, block, len(payload) if length is None else length) + payload)

    def say(self, kind: int, message: Message) -> None:
        self.send(kind, message.SerializeToString())

    def receive(self) -> tuple[int, bytes]:
        """Kind and payload of a frame."""
        kind, _, length = HEAD.unpack(self._exactly(HEAD.size))
        return kind, self._exactly(length)

    def refusal(self) -> str:
        kind, payload = self.receive()
        assert kind == REFUSED
        return Refused.FromString(payload).reason

    def is_closed(self) -> bool:
        """Wait until the server has closed it, or for SECONDS."""
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def _exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            part = self.socket.recv(count - len(received))
            assert part, "the server closed the connection"
            received += part
        return received


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    """Close all raw connections in the end: until then a refused one stays open as far as its client is concerned."""
    yield
    while RawConnection.opened:
        RawConnection.opened.pop().close()


class Client:
    """A peer that says what a test wants, rather than what a worker would."""

    def __init__(
        self, channel: grpc.Channel, name: str, *, rank: int = 0, study: str = "study", token: str = ""
    ) -> None:
        self.stub = ParameterServerStub(channel)
        self.sender = Sender(study=study, experiment=name, rank=rank)
        self.token = token
        self.data_port = 0
        self._metadata = (("lockstep-token", token),) if token else ()

    @property
    def calls(self) -> list[Callable[[], Any]]:
        """Every call that there is."""
        return [
            self.join,
            lambda: next(self._attend()),
            self.ready,
            lambda: self._call("Withdraw", WithdrawRequest(sender=self.sender, reason="none")),
            self.finish,
        ]

    def join(self) -> None:
        self.data_port = self._call("Join", JoinRequest(sender=self.sender)).data_port

    def attend(self) -> Iterator[Notice]:
        notices = self._attend()
        assert next(notices).WhichOneof("notice") == "heartbeat"
        return notices

    def ready(self, parameters: int = PARAMETERS, steps: int = 5) -> None:
        self._call("Ready", ReadyRequest(sender=self.sender, parameters=parameters, steps=steps))

    def finish(self, tested_version: int = 0) -> FinishReply:
        request = FinishRequest(sender=self.sender, tested_version=tested_version)
        reply: FinishReply = self._call("Finish", request)
        return reply

    def enter(self, steps: int = 5) -> Iterator[Notice]:
        """Join, attend, be ready, and wait for the start."""
        self.join()
        notices = self.attend()
        self.ready(steps=steps)
        assert next(n for n in notices if n.WhichOneof("notice") != "heartbeat").started.next_step == 0
        return notices

    def hello(self, **other: Any) -> Hello:
        return Hello(**{"sender": self.sender, "token": self.token, **other})

    def connect(self) -> RawConnection:
        return RawConnection(("127.0.0.1", self.data_port))

    def pair(self, attempt: int = 0) -> tuple[RawConnection, RawConnection]:
        """Connections up and down, both let in."""
        up, down = self.connect(), self.connect()
        for connection, is_down in ((down, True), (up, False)):
            connection.say(HELLO, self.hello(down=is_down, attempt=attempt))
            assert connection.receive()[0] == WELCOME
        return up, down

    def push(self, **other: Any) -> Push:
        return Push(**{"compression": "none", "length": PARAMETERS, **other})

    def _attend(self) -> Iterator[Notice]:
        stream: Iterator[Notice] = self._call("Attend", AttendRequest(sender=self.sender))
        return stream

    def _call(self, method: str, request: Message) -> Any:
        return getattr(self.stub, method)(request, timeout=SECONDS, metadata=self._metadata)


@contextmanager
def server_for(tmp_path: Path, **settings: object) -> Iterator[tuple[Experiment, grpc.Channel]]:
    """A server that expects one worker, and a channel to it; no worker."""
    running = Experiment(tmp_path, 1, **settings)
    try:
        with grpc.insecure_channel(running.address) as channel:
            yield running, channel
    finally:
        running.kill()


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    [line] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_strangers_are_refused_and_disturb_nobody(tmp_path: Path) -> None:
    with server_for(tmp_path, EPOCHS=1) as (running, channel):
        own = Client(channel, running.name)
        own.join()
        for name, study in ((running.name, "another"), ("another", "study")):
            stranger = Client(channel, name, study=study)
            expected = f"sender of {study}/{name}; expected study/{running.name}"
            for call in stranger.calls:
                assert refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
            stranger.data_port = own.data_port
            connection = stranger.connect()
            connection.say(HELLO, stranger.hello(down=True))
            assert connection.refusal() == expected
            assert connection.is_closed()
        # The worker that belongs there still trains to the end
        running.start_worker(0)
        assert running.exit_codes(60) == [0, 0]


@pytest.mark.parametrize("token", ["", "another"])
def test_nobody_is_let_in_without_the_token(token: str, tmp_path: Path) -> None:
    with server_for(tmp_path, EXPERIMENT_TOKEN=TOKEN, EPOCHS=1) as (running, channel):
        # Every call of a stranger is refused
        stranger, member = (
            Client(channel, running.name, token=token),
            Client(channel, running.name, token=TOKEN),
        )
        for call in stranger.calls:
            code, details = refusal(call)
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert details.startswith("this server lets in the workers of its own experiment: the call's ")
            assert TOKEN not in details
        # So is every data connection
        member.join()
        stranger.data_port = member.data_port
        for down in (True, False):
            connection = stranger.connect()
            connection.say(HELLO, stranger.hello(down=down))
            assert connection.refusal() == "the token is not that of this experiment"
            assert connection.is_closed()
        # A worker that was started with the wrong token says so, at once
        worker = running.start_worker(0, EXPERIMENT_TOKEN=token)
        assert worker.wait(SECONDS) == 1
        [failure] = worker.records(TaskFailed)
        assert failure.reason.startswith("refused by the server: this server lets in the workers of its own")
        assert failure.lost_peer == ""
        # The worker with the right one trains to the end, and nobody has printed it
        running.workers.clear()
        running.start_worker(0)
        assert running.exit_codes(60) == [0, 0]
        assert TOKEN not in "".join(task.output + task.errors for task in running.tasks)


def test_nobody_takes_a_rank_that_is_taken(tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, channel):
        first, second = Client(channel, running.name), Client(channel, running.name)
        first.join()
        second.join()
        notices = first.attend()
        taken = (grpc.StatusCode.ALREADY_EXISTS, "rank 0 is taken; expected each rank once")
        assert refusal(lambda: next(second._attend())) == taken
        assert refusal(second.join) == taken
        first.ready()
        assert next(n for n in notices if n.WhichOneof("notice") != "heartbeat").HasField("started")


def test_a_worker_with_another_model_is_refused(tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, _):
        worker = running.start_worker(0, DATASET="synthetic", MODEL="cifar-cnn")
        assert worker.wait(SECONDS) == 1
    [failure] = worker.records(TaskFailed)
    assert failure.reason == ("refused by the server: worker 0: a model of 620810 parameters; expected 38282")


NAN = struct.pack("<f", float("nan"))


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"payload": ZEROS[:-4]}, r"block 0 of 153124 bytes; expected 153128"),
        ({"length": 0xFFFF_FFFF}, r"block 0 of 4294967295 bytes; expected 153128"),
        ({"payload": ZEROS, "block": 1}, r"BLOCK 1; expected BLOCK 0"),
        ({"kind": PULL}, r"PULL 0; expected BLOCK 0"),
        (
            {"payload": ZEROS[:-8] + NAN + NAN},
            r"2 of 38282 values are NaN or infinite; lower the learning rate",
        ),
    ],
)
def test_a_gradient_that_cannot_be_applied_ends_training_with_its_reason(
    block: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with server_for(tmp_path) as (running, channel):
        client = Client(channel, running.name)
        notices = client.enter()
        up, down = client.pair()
        up.say(PUSH, client.push())
        up.send(**{"kind": BLOCK, **block})
        reason = down.refusal()
        assert re.fullmatch(rf"worker 0, step 0: gradient refused: {problem}", reason)
        assert next(n for n in notices if n.WhichOneof("notice") != "heartbeat").ended.reason == reason
        assert running.server.wait(SECONDS) == 1
    assert [failure.reason for failure in running.server.records(TaskFailed)] == [reason]


def test_what_is_refused_takes_no_memory(tmp_path: Path) -> None:
    # Given a server that outlives a gradient that it refuses
    with server_for(tmp_path, ON_WORKER_LOSS="continue") as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        before = peak_bytes(running.server.pid)
        for attempt, kind in enumerate((BLOCK, PUSH) * 20):
            up, down = client.pair(attempt)
            if kind == BLOCK:
                up.say(PUSH, client.push())
            up.send(kind, length=0xFFFF_FFFF)
            assert "4294967295 bytes; expected" in down.refusal()
        assert peak_bytes(running.server.pid) - before < 16 << 20


@pytest.mark.parametrize(
    ("push", "problem"),
    [
        ({"length": 2**60}, "worker 0, step 0: 1152921504606846976 elements; expected 38282: .*"),
        ({"length": 0}, "worker 0, step 0: 0 elements; expected 38282: .*"),
        ({"compression": "float64"}, "worker 0, step 0: compression is 'float64'; expected none"),
        ({"compression": "int8"}, "worker 0, step 0: compression is 'int8'; expected none"),
        ({"step": 1}, "worker 0: step 1 of 5 steps; expected step 0"),
        ({"step": 2**63}, r"worker 0: step 9223372036854775808 of 5 steps; expected step 0"),
        ({"version": 1}, "worker 0, step 0: version 1 is not there yet; expected at most 0"),
    ],
)
def test_a_push_of_something_else_is_refused_before_a_block_of_it_is_read(
    push: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with server_for(tmp_path) as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        up, down = client.pair()
        up.say(PUSH, client.push(**push))
        assert re.fullmatch(problem, down.refusal())
        assert up.is_closed()
        assert down.is_closed()
        # Nothing of it has come to the parameters, and a worker that knows better goes on
        up, down = client.pair(attempt=1)
        up.say(PUSH, client.push())
        up.send(BLOCK, ZEROS)
        assert down.receive()[0] == BLOCK
        assert Answer.FromString(down.receive()[1]).version == 1


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        ({"kind": 99}, "frame of kind 99; expected PUSH or PULL"),
        ({"kind": BLOCK, "payload": ZEROS}, "BLOCK; expected PUSH or PULL"),
        ({"kind": PUSH, "payload": b"\xff" * 40}, "PUSH cannot be read: .*"),
        ({"kind": PUSH, "length": 65_537}, "a message of 65537 bytes; expected at most 65536"),
        ({"kind": PUSH, "length": 0xFFFF_FFFF}, "a message of 4294967295 bytes; expected at most 65536"),
    ],
)
def test_a_frame_out_of_place_is_refused(frame: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        up, down = client.pair()
        up.send(**frame)
        assert re.fullmatch(problem, down.refusal())
        assert up.is_closed()


def test_hostile_connections_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    with server_for(tmp_path / "calm", EPOCHS=1) as (running, _):
        running.start_worker(0)
        assert running.exit_codes(60) == [0, 0]
        undisturbed = running.server.records(ServerSummary)[0].parameters_sha256
    (tmp_path / "stormy").mkdir()
    with server_for(tmp_path / "stormy", EPOCHS=1) as (running, channel):
        client = Client(channel, running.name)
        client.join()
        address = ("127.0.0.1", client.data_port)
        before = peak_bytes(running.server.pid)
        # Those that begin with something else than HELLO are told so, and closed
        for payload, problem in (
            (HEAD.pack(PUSH, 0, 0), "PUSH; expected HELLO"),
            (HEAD.pack(0, 0, 0), "FRAME_UNSPECIFIED; expected HELLO"),
            (b"GET / HTTP/1", "frame of kind 542393671; expected HELLO"),
            (HEAD.pack(HELLO, 0, 0xFFFF_FFFF), "a message of 4294967295 bytes; expected at most 65536"),
            (HEAD.pack(HELLO, 0, 8) + b"\xff" * 8, "HELLO cannot be read: .*"),
        ):
            connection = RawConnection(address)
            connection.socket.sendall(payload)
            assert re.fullmatch(problem, connection.refusal())
            assert connection.is_closed()
        # Nobody gets in who does not train: the server would have to keep the connections of any rank
        for rank in (0, 1, 2**32 - 1):
            stranger = Client(channel, running.name, rank=rank)
            stranger.data_port = client.data_port
            connection = stranger.connect()
            connection.say(HELLO, stranger.hello(down=True))
            assert connection.refusal() == "workers [0] are not there; expected `started` first"
        # TLS is not spoken here
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        plain = RawConnection(address).socket
        with pytest.raises(OSError, match=r"SSL|EOF|reset"):
            tls.wrap_socket(plain, server_hostname="parameter-server.lockstep")
        # Those that say nothing, or half of something, are left waiting while the worker trains
        for number in range(2 * MAX_ARRIVALS):
            RawConnection(address).socket.sendall(HEAD.pack(HELLO, 0, 100)[: number % 13])
        assert peak_bytes(running.server.pid) - before < 16 << 20
        running.start_worker(0)
        assert running.exit_codes(60) == [0, 0]
        assert running.server.records(ServerSummary)[0].parameters_sha256 == undisturbed
        assert running.server.errors == ""


def test_memory_that_is_not_the_workers_own_is_not_shared(tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        secret = tmp_path / "file"
        secret.write_bytes(bytes(1 << 20))
        with secret.open("r+b") as file:
            for offer in (
                SharedMemory(process=1, descriptor=0, nonce=b""),
                SharedMemory(process=2**32 - 1, descriptor=2**32 - 1, nonce=bytes(32)),
                SharedMemory(process=running.server.pid, descriptor=1, nonce=bytes(32)),
                SharedMemory(descriptor=file.fileno(), nonce=bytes(32)),
            ):
                down = client.connect()
                down.say(HELLO, client.hello(down=True, shared_memory=offer))
                kind, payload = down.receive()
                assert (kind, payload) == (WELCOME, b"")


def test_a_duplicate_is_answered_again_and_applied_once(tmp_path: Path) -> None:
    with server_for(tmp_path, SERVER_MODE="async") as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        ones = struct.pack("<f", 1.0) * PARAMETERS
        up, down = client.pair()

        def exchanged() -> tuple[bytes, int]:
            (block, parameters), (answer, message) = down.receive(), down.receive()
            assert (block, answer) == (BLOCK, ANSWER)
            return parameters, Answer.FromString(message).version

        for repeats in range(2):
            up.say(PUSH, client.push(attempt=repeats))
            up.send(BLOCK, ones)
        first = exchanged()
        assert first[1] == 1
        assert exchanged() == first
        up.send(PULL)
        assert exchanged() == first
        # Also on new connections
        up, down = client.pair(attempt=1)
        up.say(PUSH, client.push(attempt=2))
        up.send(BLOCK, ones)
        assert exchanged() == first


def test_the_last_worker_may_take_its_time_to_pull_the_final_parameters(tmp_path: Path) -> None:
    with server_for(tmp_path, SERVER_MODE="async") as (running, channel):
        client = Client(channel, running.name)
        notices = client.enter(steps=1)
        up, down = client.pair()
        up.say(PUSH, client.push())
        up.send(BLOCK, ZEROS)
        assert [down.receive()[0] for _ in range(2)] == [BLOCK, ANSWER]
        # When all is done, but the last worker is to test parameters that it does not have yet
        reply = client.finish(tested_version=0)
        assert (reply.version, reply.test_final) == (1, True)
        time.sleep(LEAVE_SECONDS + FAREWELL_SECONDS + 0.5)
        # Then it gets them, over however slow a network, and only then the server leaves
        up.send(PULL)
        assert [down.receive()[0] for _ in range(2)] == [BLOCK, ANSWER]
        notices.cancel()  # type: ignore[attr-defined]  # it is a call
        assert running.server.wait(SECONDS) == 0


def test_training_that_diverges_ends_every_process_with_the_cause(tmp_path: Path) -> None:
    with experiment(tmp_path, 2, LEARNING_RATE=1e30) as running:
        assert running.exit_codes(60) == [1, 1, 1]
    for task in running.tasks:
        [failure] = task.records(TaskFailed)
        assert re.search(
            r"worker [01], step [1-9]\d*: gradient refused: \d+ of 38282 values are NaN", failure.reason
        )


class SilentServer(ParameterServerServicer):  # type: ignore[misc]  # generated code has no types
    """Takes a worker in, then says nothing more, although its connection lives."""

    def Attend(self, request: AttendRequest, context: Any) -> Iterator[Notice]:  # noqa: ARG002, N802 - gRPC's
        while context.is_active():
            time.sleep(0.05)
        yield Notice()


@contextmanager
def silent_server() -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(2))
    add_ParameterServerServicer_to_server(SilentServer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()


def attend(channel: grpc.Channel, abandoned: list[LockstepError], stuck_seconds: float) -> Attendance:
    return Attendance(
        ParameterServerStub(channel).Attend(AttendRequest(), timeout=SECONDS),
        hang_up=channel.close,
        abandon=abandoned.append,
        silence_seconds=0.5,
        stuck_seconds=stuck_seconds,
    )


def test_a_server_that_falls_silent_is_given_up() -> None:
    abandoned: list[LockstepError] = []
    with silent_server() as channel:
        attendance = attend(channel, abandoned, stuck_seconds=SECONDS)
        with pytest.raises(PeerLost, match=r"the server vanished: not heard of for \d s"):
            attendance.wait_started()
        with pytest.raises(PeerLost, match="the server vanished"):
            attendance.sleep(SECONDS, version=0)
    assert abandoned == []


def test_a_worker_that_is_stuck_in_a_computation_is_ended_all_the_same() -> None:
    abandoned: list[LockstepError] = []
    with silent_server() as channel:
        attend(channel, abandoned, stuck_seconds=0.1)
        deadline = time.monotonic() + SECONDS
        while not abandoned and time.monotonic() < deadline:
            time.sleep(0.02)  # without a look at the attendance, as a long step of real compute would be
    [error] = abandoned
    assert isinstance(error, PeerLost)
