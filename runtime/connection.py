"""A worker's side of an experiment: join, be ready, push and pull, finish.

Runs in the worker; knows nothing of models or data. Every failure comes out as PeerLost or TrainingFailed.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
from torch import Tensor

from contract.errors import LockstepError
from runtime import liveness
from runtime.attendance import SERVER, Attendance, ending_of
from runtime.data_connection import DataConnection, Exchanged, Payloads, Wire, push_finite
from runtime.ending import NotLetIn, VanishedPeer
from runtime.frames import ConnectionClosed
from runtime.trust import Trust
from runtime.wire.parameter_server_pb2 import (
    AttendRequest,
    FinishReply,
    FinishRequest,
    JoinRequest,
    ReadyRequest,
    Sender,
    WithdrawRequest,
)
from runtime.wire.parameter_server_pb2_grpc import ParameterServerStub

RECONNECT_SECONDS: Final = 10.0
"""How long a worker whose data connection broke tries to have another, while the server says that it lives."""


class Connection:
    """A worker that has joined. A context manager: leaving it hangs up."""

    def __init__(
        self,
        address: str,
        sender: Sender,
        *,
        trust: Trust,
        timeout_seconds: float,
        abandon: Callable[[LockstepError], None],
        join_seconds: float = liveness.JOIN_RETRY_SECONDS,
    ) -> None:
        """Join the server at `address` (host:port): from then on, either notices the other's loss.

        `timeout_seconds`: how long the experiment may take; `abandon`: see Attendance; `join_seconds`: how long a
        server that does not listen is tried.
        """
        self._sender = sender
        self._trust = trust
        self._host = address.rpartition(":")[0]
        self._data: DataConnection | None = None
        self._attempts = 0
        self._past = Traffic()
        self._channel = trust.grpc_channel(address, liveness.channel_options())
        self._stub = ParameterServerStub(self._channel)
        self._data_port = self._join(address, JoinRequest(sender=sender), join_seconds)
        # The server's own deadline comes first, so that its reason is the one that is heard.
        patience = timeout_seconds + liveness.CALL_SECONDS
        self.attendance = Attendance(
            self._stub.Attend(AttendRequest(sender=sender), timeout=patience, metadata=trust.metadata),
            hang_up=self._hang_up,
            abandon=abandon,
            look=self._look,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.attendance.leave()

    def ready(self, wire: Wire, steps: int, next_step: int = 0) -> int:
        """Say that this worker will push `steps` gradients, `next_step` next; returns when all workers are ready.

        Returns the step to go on with, which is another one where this rank, or all, trained before.
        """
        self._wire = wire
        # Calls may overtake each other, and who does not attend is not ready.
        self.attendance.wait_attended()
        request = ReadyRequest(sender=self._sender, parameters=wire.length, steps=steps, next_step=next_step)
        self._call(self._stub.Ready, request)
        return self.attendance.wait_started()

    def withdraw(self, reason: str) -> None:
        """Tell the server that this worker cannot take part. Best effort: the reason is told elsewhere too."""
        request = WithdrawRequest(sender=self._sender, reason=reason)
        with suppress(grpc.RpcError):
            self._stub.Withdraw(request, timeout=liveness.CALL_SECONDS, metadata=self._trust.metadata)

    @property
    def name(self) -> str:
        """What this worker is called in messages."""
        return f"worker {self._sender.rank}"

    @property
    def transport(self) -> str:
        """How vectors travel: "shared-memory", "tls" or "tcp"; empty before they did."""
        if self._data is None:
            return ""
        if self._data.shares_memory:
            return "shared-memory"
        return "tls" if self._trust.certificate_pem else "tcp"

    @property
    def traffic(self) -> "Traffic":
        """What passed on the data plane."""
        return self._past + Traffic.of(self._data) if self._data else self._past

    def pull(self, into: Tensor) -> Exchanged:
        """Write the current parameters to `into` (flat, fp32)."""
        return self._persistently(lambda data, _: data.pull(into))

    def push_pull(self, gradient: Tensor, step: int, version: int, into: Tensor) -> Exchanged:
        """Push the gradient of `step`, computed on `version`; write the parameters to go on with to `into`.

        Both flat, fp32. Nothing is copied where they are `wire.vectors`, and these are shared with the server. Raises
        TrainingFailed, and tells the server, where the gradient cannot be applied.
        """
        return push_finite(
            lambda: self.push_pull_finite(gradient, step, version, into),
            gradient,
            f"{self.name}, step {step}",
            self.withdraw,
        )

    def push_pull_finite(self, gradient: Tensor, step: int, version: int, into: Tensor) -> Exchanged:
        """As push_pull, where the whole gradient, which this may be a part of, was looked at."""
        self.attendance.check()
        payloads = Payloads(gradient, self._wire.feedback)

        def exchange(data: DataConnection, repeats: int) -> Exchanged:
            if repeats:
                self._past += Traffic(repeated_pushes=1)
            return data.push_pull(payloads, into, step=step, version=version, repeats=repeats)

        try:
            exchanged = self._persistently(exchange)
        except LockstepError:
            # Whether a server that is lost had applied it, nobody knows; another one is pushed this step anew.
            payloads.take_back()
            raise
        if exchanged.dropped:
            payloads.take_back()
        return exchanged._replace(serialize_seconds=exchanged.serialize_seconds + payloads.seconds)

    def finish(self, tested_version: int) -> FinishReply:
        """Say that all steps are done, and which version was tested last."""
        request = FinishRequest(sender=self._sender, tested_version=tested_version)
        reply: FinishReply = self._call(self._stub.Finish, request)
        return reply

    def _join(self, address: str, request: JoinRequest, patience_seconds: float) -> int:
        """Join as soon as the server listens; returns the port that takes tensors."""
        give_up_at = time.monotonic() + patience_seconds
        while True:
            try:
                reply = self._stub.Join(
                    request, timeout=liveness.JOIN_CALL_SECONDS, metadata=self._trust.metadata
                )
                return int(reply.data_port)
            except grpc.RpcError as error:
                unreachable = error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise NotLetIn(ending_of(error).reason) from error
                if not unreachable:
                    raise ending_of(error).error() from error
                if time.monotonic() > give_up_at:
                    raise VanishedPeer(
                        f"no server at {address} within {patience_seconds:.0f} s: {error.details()}",
                        SERVER,
                    ) from error
            time.sleep(0.2)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        """A call that waits for nobody. The one place where gRPC's errors become ours."""
        try:
            return method(request, timeout=liveness.CALL_SECONDS, metadata=self._trust.metadata)
        except grpc.RpcError as error:
            raise self.attendance.cause_of(error) from error

    def _persistently(self, exchange: Callable[[DataConnection, int], Exchanged]) -> Exchanged:
        """Carry out an exchange, on new connections where the old ones broke and the server still lives."""
        repeats, give_up_at = 0, 0.0
        while True:
            try:
                return exchange(self._connected(), repeats)
            except ConnectionClosed as error:
                self._disconnect()
                # Most often the server has ended, or its loss is about to be noticed.
                self.attendance.wait_over(liveness.NEWS_SECONDS)
                self.attendance.check()
                repeats += 1
                give_up_at = give_up_at or time.monotonic() + RECONNECT_SECONDS
                if time.monotonic() > give_up_at:
                    raise VanishedPeer(f"the way to the server is broken: {error}", SERVER) from error

    def _connected(self) -> DataConnection:
        if self._data is None:
            self._data = DataConnection(
                (self._host, self._data_port), self._sender, self._trust, self._wire, self._attempts
            )
            self._attempts += 1
        return self._data

    def _disconnect(self) -> None:
        if self._data is not None:
            self._past += Traffic.of(self._data)
            self._data.hang_up()
            self._data = None

    def _look(self) -> None:
        if (data := self._data) is not None:
            data.close_if_dead()

    def _hang_up(self) -> None:
        self._channel.close()
        if (data := self._data) is not None:
            data.hang_up()


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed on the data plane."""

    sent_bytes: int = 0
    received_bytes: int = 0
    repeated_pushes: int = 0
    """Steps that were pushed again, since a connection broke."""

    @classmethod
    def of(cls, data: DataConnection) -> Self:
        """What passed on one pair of connections."""
        return cls(data.sent_bytes, data.received_bytes)

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            self.repeated_pushes + other.repeated_pushes,
        )
