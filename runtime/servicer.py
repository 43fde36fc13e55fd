"""The gRPC face of the server's state: parse, call, translate errors.

Runs in the parameter server; decides nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from runtime.codec import DTYPE, WireRefused, check_finite, check_header, chunks_of, fill, pieces_of
from runtime.ending import Ending
from runtime.exchange import Answer, News, Phase, Snapshot
from runtime.liveness import HEARTBEAT_SECONDS
from runtime.membership import AlreadyThere, InvalidMessage, Rejection, TooEarly
from runtime.state import ServerState, TrainingEnded
from runtime.wire.parameter_server_pb2 import (
    AttendRequest,
    Chunk,
    Ended,
    FinishReply,
    FinishRequest,
    Gradient,
    Header,
    Heartbeat,
    JoinReply,
    JoinRequest,
    Notice,
    Parameters,
    PullRequest,
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

    def __init__(self, state: ServerState, *, study: str, experiment: str) -> None:
        self._state = state
        self._study = study
        self._experiment = experiment
        self._length = state.length

    def Join(self, request: JoinRequest, context: Context) -> JoinReply:  # noqa: N802 - gRPC's name
        """Enter a worker."""
        with self._translating(context):
            self._state.join(self._rank(request.sender), request.parameters, request.steps)
            return JoinReply()

    def Withdraw(self, request: WithdrawRequest, context: Context) -> WithdrawReply:  # noqa: N802 - gRPC's name
        """A worker cannot take part, and without it nobody can."""
        with self._translating(context):
            name = f"worker {self._rank(request.sender)}"
        self._state.end(Ending(f"{name} withdrew: {request.reason}", lost_peer=name))
        return WithdrawReply()

    def Attend(self, request: AttendRequest, context: Context) -> Iterator[Notice]:  # noqa: N802 - gRPC's name
        """Notices for a worker, until it leaves or training ends early."""
        with self._translating(context):
            rank = self._rank(request.sender)
            self._state.attend(rank)
        # However the stream closes, gRPC then calls back: this is how a vanished worker is noticed.
        if not context.add_callback(lambda: self._state.leave(rank)):
            self._state.leave(rank)
        known = News(Phase.JOINING)
        news: News | None = known
        while news is not None:
            yield from self._notices(known, news)
            if news.phase is Phase.ENDED:
                return
            known, news = news, self._state.watch(rank, news, HEARTBEAT_SECONDS)

    def Pull(self, request: PullRequest, context: Context) -> Parameters:  # noqa: N802 - gRPC's name
        """The current parameters in one message."""
        with self._translating(context):
            snapshot = self._state.pull(self._rank(request.sender))
        return Parameters(header=self._header(snapshot), data=snapshot.data)

    def PullChunks(self, request: PullRequest, context: Context) -> Iterator[Chunk]:  # noqa: N802 - gRPC's name
        """The current parameters in chunks."""
        with self._translating(context):
            snapshot = self._state.pull(self._rank(request.sender))
        yield from chunks_of(self._header(snapshot), snapshot.data)

    def PushPull(self, request: Gradient, context: Context) -> Parameters:  # noqa: N802 - gRPC's name
        """Take a gradient, answer parameters."""
        with self._translating(context):
            answer = self._push(request.header, iter([request.data]))
        return Parameters(header=self._answer_header(answer), data=answer.snapshot.data)

    def PushPullChunks(  # noqa: N802 - gRPC's name
        self, request_iterator: Iterator[Chunk], context: Context
    ) -> Iterator[Chunk]:
        """Take a gradient in chunks, answer parameters in chunks."""
        with self._translating(context):
            first = next(request_iterator, Chunk())
            answer = self._push(first.header, pieces_of(first, request_iterator))
        yield from chunks_of(self._answer_header(answer), answer.snapshot.data)

    def Finish(self, request: FinishRequest, context: Context) -> FinishReply:  # noqa: N802 - gRPC's name
        """A worker pushes no more."""
        with self._translating(context):
            version, test_final = self._state.finish(self._rank(request.sender), request.tested_version)
            return FinishReply(version=version, test_final=test_final)

    def _push(self, header: Header, pieces: Iterator[bytes]) -> Answer:
        rank = self._rank(header.sender)
        slot = self._state.receive(rank, header.step, header.version)
        if slot is None:
            return self._state.push(rank, header.step, header.version)
        try:
            check_header(header, self._length)
            fill(slot, pieces)
            check_finite(slot)
        except WireRefused as error:
            # Without this gradient its worker cannot go on, and without the worker nobody can.
            problem = f"worker {rank}, step {header.step}: gradient refused: {error}"
            self._state.end(Ending(problem))
            raise InvalidMessage(problem) from error
        return self._state.push(rank, header.step, header.version)

    def _rank(self, sender: Sender) -> int:
        """The sender's rank. Raises InvalidMessage for a sender of another experiment."""
        if (sender.study, sender.experiment) != (self._study, self._experiment):
            raise InvalidMessage(
                f"sender of {sender.study}/{sender.experiment}; expected {self._study}/{self._experiment}"
            )
        return sender.rank

    def _header(self, snapshot: Snapshot) -> Header:
        return Header(version=snapshot.version, dtype=DTYPE, length=self._length)

    def _answer_header(self, answer: Answer) -> Header:
        header = self._header(answer.snapshot)
        header.waited_seconds, header.dropped = answer.waited_seconds, answer.dropped
        return header

    def _notices(self, known: News, news: News) -> Iterator[Notice]:
        """What a worker that knows `known` is told; where nothing is new, that the server lives."""
        ending = self._state.ending
        if ending is not None:
            yield Notice(ended=Ended(reason=ending.reason, lost_peer=ending.lost_peer))
            return
        if known.phase is Phase.JOINING and news.phase is not Phase.JOINING:
            yield Notice(started=Started())
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
