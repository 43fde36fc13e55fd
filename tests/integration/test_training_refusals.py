"""What the server refuses, over gRPC: strangers, other models, gradients that would spoil the parameters."""

import re
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from training_processes import Experiment, experiment

from contract.errors import LockstepError, PeerLost
from contract.metrics import TaskFailed
from runtime.attendance import Attendance
from runtime.codec import CHUNK_BYTES, DTYPE, ENVELOPE_BYTES
from runtime.wire.parameter_server_pb2 import (
    AttendRequest,
    FinishRequest,
    Gradient,
    Header,
    JoinRequest,
    Notice,
    PullRequest,
    Sender,
)
from runtime.wire.parameter_server_pb2_grpc import (
    ParameterServerServicer,
    ParameterServerStub,
    add_ParameterServerServicer_to_server,
)

PARAMETERS = 38_282
SECONDS = 20.0


class Client:
    """A peer that says what a test wants, rather than what a worker would."""

    def __init__(self, channel: grpc.Channel, name: str, rank: int = 0, study: str = "study") -> None:
        self.stub = ParameterServerStub(channel)
        self.sender = Sender(study=study, experiment=name, rank=rank)

    def join(self, parameters: int = PARAMETERS, steps: int = 5) -> None:
        request = JoinRequest(sender=self.sender, parameters=parameters, steps=steps)
        self.stub.Join(request, timeout=SECONDS)

    def attend(self) -> Iterator[Notice]:
        notices = self.stub.Attend(AttendRequest(sender=self.sender), timeout=SECONDS)
        assert next(notices).WhichOneof("notice") == "heartbeat"
        return notices

    def enter(self, steps: int = 5) -> Iterator[Notice]:
        """Join, attend, and wait for the start."""
        self.join(steps=steps)
        notices = self.attend()
        assert next(notices).WhichOneof("notice") == "started"
        return notices

    def push(self, data: bytes, step: int = 0, dtype: str = DTYPE, length: int = PARAMETERS) -> Any:
        header = Header(sender=self.sender, step=step, dtype=dtype, length=length)
        return self.stub.PushPull(Gradient(header=header, data=data), timeout=SECONDS)


@contextmanager
def server_for(tmp_path: Path, **settings: object) -> Iterator[tuple[Experiment, grpc.Channel]]:
    """A server that expects one worker, and a channel to it; no worker."""
    running = Experiment(tmp_path, 1, **settings)
    try:
        with grpc.insecure_channel(running.address) as channel:
            yield running, channel
    finally:
        for task in running.tasks:
            task.process.kill()
            task.process.join()


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_strangers_are_refused_and_disturb_nobody(tmp_path: Path) -> None:
    with server_for(tmp_path, EPOCHS=1) as (running, channel):
        for name, study in ((running.name, "another"), ("another", "study")):
            stranger = Client(channel, name, study=study)
            calls: list[Callable[[], Any]] = [
                stranger.join,
                stranger.attend,
                lambda s=stranger: s.stub.Pull(PullRequest(sender=s.sender)),
                lambda s=stranger: list(s.stub.PullChunks(PullRequest(sender=s.sender))),
                lambda s=stranger: s.push(b""),
                lambda s=stranger: s.stub.Finish(FinishRequest(sender=s.sender)),
            ]
            for call in calls:
                assert refusal(call) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"sender of {study}/{name}; expected study/{running.name}",
                )
        # The worker that belongs there still trains to the end
        running.start_worker(0)
        assert running.exit_codes(60) == [0, 0]


def test_nobody_takes_a_rank_that_is_taken(tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, channel):
        first, second = Client(channel, running.name), Client(channel, running.name)
        first.join()
        second.join()
        notices = first.attend()
        taken = (grpc.StatusCode.ALREADY_EXISTS, "rank 0 is taken; expected each rank once")
        assert refusal(second.attend) == taken
        assert refusal(second.join) == taken
        assert next(notices).WhichOneof("notice") == "started"


def test_a_worker_with_another_model_is_refused(tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, _):
        worker = running.start_worker(0, DATASET="synthetic", MODEL="cifar-cnn")
        assert worker.wait(SECONDS) == 1
    [failure] = worker.records(TaskFailed)
    assert failure.reason == ("refused by the server: worker 0: a model of 620810 parameters; expected 38282")


ZEROS = bytes(4 * PARAMETERS)
NAN = struct.pack("<f", float("nan"))


@pytest.mark.parametrize(
    ("data", "header", "problem"),
    [
        (ZEROS[:-4], {}, r"153124 bytes; expected 153128"),
        (ZEROS + b"\0", {}, r"more than the expected 153128 bytes"),
        (ZEROS, {"length": 2**60}, r"1152921504606846976 elements; expected 38282: .*"),
        (ZEROS, {"dtype": "float64"}, r"dtype is 'float64'; expected float32"),
        (ZEROS[:-8] + NAN + NAN, {}, r"2 of 38282 values are NaN or infinite; lower the learning rate"),
    ],
)
def test_a_gradient_that_cannot_be_applied_ends_training_with_its_reason(
    data: bytes, header: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with server_for(tmp_path) as (running, channel):
        client = Client(channel, running.name)
        notices = client.enter()
        code, details = refusal(lambda: client.push(data, **header))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert re.fullmatch(rf"worker 0, step 0: gradient refused: {problem}", details)
        assert next(notices).ended.reason == details
        assert running.server.wait(SECONDS) == 1
    assert [failure.reason for failure in running.server.records(TaskFailed)] == [details]


def test_a_duplicate_is_answered_again_and_applied_once(tmp_path: Path) -> None:
    with server_for(tmp_path, SERVER_MODE="async") as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        ones = struct.pack("<f", 1.0) * PARAMETERS
        answer, again = client.push(ones), client.push(ones)
        assert (again.header.version, again.data) == (1, answer.data)
        now = client.stub.Pull(PullRequest(sender=client.sender), timeout=SECONDS)
        assert (now.header.version, now.data) == (1, answer.data)


def test_a_message_larger_than_the_model_is_not_taken_in(tmp_path: Path) -> None:
    with server_for(tmp_path) as (running, channel):
        client = Client(channel, running.name)
        _stays_open = client.enter()
        code, _ = refusal(lambda: client.push(bytes(4 * PARAMETERS + ENVELOPE_BYTES + 1)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 4 * PARAMETERS < CHUNK_BYTES


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
