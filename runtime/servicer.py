"""The gRPC face of the server's state: parse, call, translate errors. Tensors do not pass here.

Runs in the parameter server; decides nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from runtime.exchange import News, Phase
from runtime.liveness import HEARTBEAT_SECONDS
from runtime.membership import AlreadyThere, InvalidMessage, Rejection, TooEarly
from runtime.state import ServerState, TrainingEnded
from runtime.wire.parameter_server_pb2 import (
    AttendRequest,
    Ended,
    FinishReply,
    FinishRequest,
    Heartbeat,
    JoinReply,
    JoinRequest,
    Notice,
    ReadyReply,
    ReadyRequest,
    Sender,
    Started,
    Superseded,
    WithdrawReply,
    WithdrawRequest,
)
from runtime.wire.parameter_server_pb2_grpc import ParameterServerServicer

_STATUS = {
    InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    AlreadyThere: grpc.StatusCode.ALREADY_EXISTS,
    TooEarly: grpc.StatusCode.FAILED_PRECONDITION,
    TrainingEnded: grpc.StatusCode.ABORTED,
}

Context = Any
"""grpc.ServicerContext: the package ships no types."""


class Servicer(ParameterServerServicer):  # type: ignore[misc]  # generated code has no types
    """Answers the workers of one experiment. What each call means stands in parameter_server.proto."""

    def __init__(
        self,
        state: ServerState,
        *,
        study: str,
        experiment: str,
        data_port: int,
        hang_up: Callable[[int], None] = lambda rank: None,  # noqa: ARG005 - nobody to hang up on
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        """`hang_up` closes the data connections of a rank whose worker is gone.

        `keep` returns once what has happened so far would survive this server.
        """
        self._keep = keep
        self._state = state
        self._study = study
        self._experiment = experiment
        self._data_port = data_port
        self._hang_up = hang_up

    def Join(self, request: JoinRequest, context: Context) -> JoinReply:  # noqa: N802 - gRPC's name
        """Enter a worker."""
        with self._translating(context):
            self._state.join(self._rank(request.sender))
            return JoinReply(data_port=self._data_port)

    def Attend(self, request: AttendRequest, context: Context) -> Iterator[Notice]:  # noqa: N802 - gRPC's name
        """Notices for a worker, until it leaves or training ends early."""
        with self._translating(context):
            rank = self._rank(request.sender)
            self._state.attend(rank)
        # However the stream closes, gRPC then calls back: this is how a vanished worker is noticed.
        if not context.add_callback(lambda: self._left(rank)):
            self._left(rank)
        known = News(Phase.JOINING)
        news: News | None = known
        while news is not None:
            yield from self._notices(rank, known, news)
            if news.phase is Phase.ENDED:
                return
            known, news = news, self._state.watch(rank, news, HEARTBEAT_SECONDS)

    def Ready(self, request: ReadyRequest, context: Context) -> ReadyReply:  # noqa: N802 - gRPC's name
        """A worker can train."""
        with self._translating(context):
            rank = self._rank(request.sender)
            self._state.ready(rank, request.parameters, request.steps, request.next_step)
            return ReadyReply()

    def Withdraw(self, request: WithdrawRequest, context: Context) -> WithdrawReply:  # noqa: N802 - gRPC's name
        """A worker cannot take part."""
        with self._translating(context):
            self._state.withdraw(self._rank(request.sender), request.reason)
            return WithdrawReply()

    def Finish(self, request: FinishRequest, context: Context) -> FinishReply:  # noqa: N802 - gRPC's name
        """A worker pushes no more."""
        with self._translating(context):
            version, test_final = self._state.finish(self._rank(request.sender), request.tested_version)
            if not self._state.wait_over(0):
                # The worker ends now. A server that took this one's place and did not know would wait for it.
                self._keep()
            return FinishReply(version=version, test_final=test_final)

    def _left(self, rank: int) -> None:
        self._state.leave(rank)
        self._hang_up(rank)

    def _rank(self, sender: Sender) -> int:
        """The sender's rank. Raises InvalidMessage for a sender of another experiment."""
        if (sender.study, sender.experiment) != (self._study, self._experiment):
            raise InvalidMessage(
                f"sender of {sender.study}/{sender.experiment}; expected {self._study}/{self._experiment}"
            )
        return sender.rank

    def _notices(self, rank: int, known: News, news: News) -> Iterator[Notice]:
        """What a worker that knows `known` is told; where nothing is new, that the server lives."""
        ending = self._state.ending
        if ending is not None:
            yield Notice(ended=Ended(reason=ending.reason, lost_peer=ending.lost_peer))
            return
        if known.phase is Phase.JOINING and news.phase is not Phase.JOINING:
            yield Notice(started=Started(next_step=self._state.next_step(rank)))
        if news.superseded != known.superseded:
            yield Notice(superseded=Superseded(version=news.superseded))
        if news == known:
            yield Notice(heartbeat=Heartbeat())

    @contextmanager
    def _translating(self, context: Context) -> Iterator[None]:
        """The one place where our errors become gRPC status codes."""
        try:
            yield
        except (Rejection, TrainingEnded) as error:
            context.abort(_STATUS[type(error)], str(error))
