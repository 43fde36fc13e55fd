"""What a worker makes of the server's last words: whose failure it is that it follows."""

import threading
from collections.abc import Iterator

import grpc
import pytest

from contract.errors import LockstepError, TrainingFailed
from runtime.attendance import Attendance, ending_of
from runtime.ending import VanishedPeer
from runtime.wire.parameter_server_pb2 import Ended, Notice, Started


class Failure(grpc.RpcError):  # type: ignore[misc]  # the package ships no types
    """A failed call, as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def error_after(*notices: Notice) -> LockstepError:
    """What ends a worker that hears `notices`."""
    open_until = threading.Event()

    def stream() -> Iterator[Notice]:
        yield from notices
        open_until.wait(5)

    attendance = Attendance(stream(), hang_up=open_until.set, abandon=lambda _: None)
    try:
        with pytest.raises(LockstepError) as raised:
            attendance.sleep(5, version=0)
        return raised.value
    finally:
        attendance.leave()


@pytest.mark.parametrize(
    "reason",
    [
        "training did not end within EXPERIMENT_TIMEOUT_SECONDS=2",
        "worker 2, step 5: gradient refused: 1 of 9 values are NaN",
        "the server was stopped by SIGTERM",
    ],
)
def test_who_ends_because_the_server_decided_so_follows_the_server(reason: str) -> None:
    """Otherwise all would say the same, and who ended first would be taken for the root: never the server."""
    error = error_after(Notice(started=Started()), Notice(ended=Ended(reason=reason)))
    assert isinstance(error, VanishedPeer)
    assert (str(error), error.peer) == (reason, "server")


def test_who_ends_because_a_worker_was_lost_follows_that_worker() -> None:
    error = error_after(Notice(ended=Ended(reason="worker 1 vanished", lost_peer="worker 1")))
    assert isinstance(error, VanishedPeer)
    assert (str(error), error.peer) == ("worker 1 vanished", "worker 1")


def test_who_comes_when_training_has_ended_follows_the_server_too() -> None:
    """A late joiner is told by the status alone."""
    error = ending_of(Failure(grpc.StatusCode.ABORTED, "worker 1 vanished")).error()
    assert isinstance(error, VanishedPeer)
    assert (str(error), error.peer) == ("worker 1 vanished", "server")


def test_who_has_hung_up_goes_on_with_nothing() -> None:
    """Else a worker of several servers would try to reach the others again and again, when one is lost."""
    open_until = threading.Event()

    def stream() -> Iterator[Notice]:
        yield Notice(started=Started())
        open_until.wait(5)

    attendance = Attendance(stream(), hang_up=open_until.set, abandon=lambda error: pytest.fail(str(error)))
    attendance.wait_started()
    attendance.leave()
    with pytest.raises(TrainingFailed, match="this worker has hung up"):
        attendance.check()


def test_who_is_refused_failed_by_itself() -> None:
    error = ending_of(Failure(grpc.StatusCode.INVALID_ARGUMENT, "worker 1: no such rank")).error()
    assert isinstance(error, TrainingFailed)
    assert str(error) == "refused by the server: worker 1: no such rank"
