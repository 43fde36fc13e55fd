"""A worker's calls to the parameter server.

Runs in the worker; knows nothing of models or data. Every failure comes out as PeerLost or TrainingFailed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self

import grpc
from torch import Tensor

from contract.errors import LockstepError, TrainingFailed
from runtime import liveness
from runtime.attendance import SERVER, Attendance, ending_of
from runtime.codec import DTYPE, WireRefused, check_header, chunks_of, fill, is_chunked, pieces_of
from runtime.ending import VanishedPeer
from runtime.wire.parameter_server_pb2 import (
    AttendRequest,
    Chunk,
    FinishReply,
    FinishRequest,
    Gradient,
    Header,
    JoinRequest,
    PullRequest,
    Sender,
    WithdrawRequest,
)
from runtime.wire.parameter_server_pb2_grpc import ParameterServerStub


class Answer(NamedTuple):
    """What came back beside the parameters."""

    version: int
    waited_seconds: float
    """How long the server held the gradient back."""
    dropped: bool
    """The gradient came too late to count."""


def withdraw(address: str, sender: Sender, reason: str) -> None:
    """Tell the server at `address` that this worker cannot take part. Best effort: the reason is told elsewhere too."""
    with grpc.insecure_channel(address) as channel:
        request = WithdrawRequest(sender=sender, reason=reason)
        with suppress(grpc.RpcError):
            ParameterServerStub(channel).Withdraw(request, timeout=liveness.CALL_SECONDS, wait_for_ready=True)


class Connection:
    """A worker that has joined. A context manager: leaving it hangs up."""

    def __init__(
        self,
        address: str,
        sender: Sender,
        *,
        parameters: int,
        steps: int,
        timeout_seconds: float,
        abandon: Callable[[LockstepError], None],
    ) -> None:
        """Join the server at `address` (host:port); returns when all workers are there.

        `parameters`: length of the model; `steps`: gradients that this worker will push; `timeout_seconds`:
        how long the experiment may take; `abandon`: see Attendance.
        """
        self.sent_bytes = self.received_bytes = 0
        self._sender = sender
        self._length = parameters
        self._deadline = time.monotonic() + timeout_seconds
        self._channel = grpc.insecure_channel(address, options=liveness.channel_options(parameters))
        self._stub = ParameterServerStub(self._channel)
        self._join(address, JoinRequest(sender=sender, parameters=parameters, steps=steps))
        self.attendance = Attendance(
            self._stub.Attend(AttendRequest(sender=sender), timeout=self._remaining()),
            hang_up=self._channel.close,
            abandon=abandon,
        )
        self.attendance.wait_started()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.attendance.leave()

    def pull(self, into: Tensor) -> Answer:
        """Write the current parameters to `into` (flat, fp32)."""
        request = PullRequest(sender=self._sender)
        with self._translating():
            if is_chunked(self._length):
                return self._read(self._stub.PullChunks(request, timeout=liveness.CALL_SECONDS), into)
            return self._read(iter([self._stub.Pull(request, timeout=liveness.CALL_SECONDS)]), into)

    def push_pull(self, gradient: Tensor, step: int, version: int, into: Tensor) -> Answer:
        """Push the gradient of `step`, computed on `version`; write the parameters to go on with to `into`."""
        self.attendance.check()
        header = Header(sender=self._sender, step=step, version=version, dtype=DTYPE, length=self._length)
        data = gradient.numpy().tobytes()
        with self._translating():
            if is_chunked(self._length):
                chunks = self._counted(chunks_of(header, data))
                return self._read(self._stub.PushPullChunks(chunks, timeout=self._remaining()), into)
            message = Gradient(header=header, data=data)
            self.sent_bytes += message.ByteSize()
            return self._read(iter([self._stub.PushPull(message, timeout=self._remaining())]), into)

    def finish(self, tested_version: int) -> FinishReply:
        """Say that all steps are done, and which version was tested last."""
        request = FinishRequest(sender=self._sender, tested_version=tested_version)
        with self._translating():
            reply: FinishReply = self._stub.Finish(request, timeout=liveness.CALL_SECONDS)
        return reply

    def _join(self, address: str, request: JoinRequest) -> None:
        """Join as soon as the server listens."""
        give_up_at = time.monotonic() + liveness.JOIN_RETRY_SECONDS
        while True:
            try:
                self._stub.Join(request, timeout=liveness.JOIN_CALL_SECONDS)
                return
            except grpc.RpcError as error:
                unreachable = error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
                if not unreachable:
                    raise ending_of(error).error() from error
                if time.monotonic() > give_up_at:
                    raise VanishedPeer(
                        f"no server at {address} within {liveness.JOIN_RETRY_SECONDS:.0f} s: {error.details()}",
                        SERVER,
                    ) from error
            time.sleep(0.2)

    def _read(self, messages: Iterator[Any], into: Tensor) -> Answer:
        """Write a vector, in one message or in chunks, to `into`."""
        first = next(messages)
        self.received_bytes += first.ByteSize()
        check_header(first.header, self._length)
        fill(into, pieces_of(first, self._received(messages)))
        return Answer(first.header.version, first.header.waited_seconds, first.header.dropped)

    def _received(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.received_bytes += chunk.ByteSize()
            yield chunk

    def _counted(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.sent_bytes += chunk.ByteSize()
            yield chunk

    def _remaining(self) -> float:
        # The server's own deadline comes first, so that its reason is the one that is heard.
        return max(self._deadline - time.monotonic(), 0) + liveness.CALL_SECONDS

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """The one place where gRPC's errors become ours."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.attendance.cause_of(error) from error
        except WireRefused as error:
            raise TrainingFailed(f"the server's parameters are refused: {error}") from error
