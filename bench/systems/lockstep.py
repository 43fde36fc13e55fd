"""Lockstep's own parameter server and client code, all checks on, for a model of any length.

The one place of the bench that knows how the runtime's server is put together.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from bench.case import LEARNING_RATE, Case, Variant
from bench.round import ProcessSystem, Update
from bench.substitution import set_block_length
from contract.aggregation import Aggregation, Mode
from contract.errors import LockstepError
from contract.exchange import Transport
from contract.task import TaskEnvironment
from runtime.compression import codec_for
from runtime.connection import Connection
from runtime.data_connection import wires_for
from runtime.listening import Listening
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.state import ServerState
from runtime.trust import Identity, Trust
from runtime.wire.parameter_server_pb2 import Sender

STUDY, EXPERIMENT, TOKEN = "bench", "push-pull", "of-this-round"
TIMEOUT_SECONDS = 3600.0
"""Of the experiment; a round's own limit comes first."""


class Lockstep(ProcessSystem):
    """The server and client code of the tasks; unless said otherwise in async mode: an update per gradient."""

    name = "Lockstep"
    variants = (Variant("tuned"),)

    def __init__(
        self,
        transport: Transport,
        *,
        mode: Mode = Mode.ASYNC,
        momentum: float = 0.0,
        block_length: int | None = None,
    ) -> None:
        """`block_length`: in elements, instead of the runtime's."""
        self.transport = transport
        self._mode = mode
        self._momentum = momentum
        self._block_length = block_length

    def expected_parameter(self, case: Case) -> float:
        """In sync mode the mean of a step's gradients counts once; momentum adds all that came before."""
        updates = case.steps * (1 if self._mode is Mode.SYNC else case.workers)
        decay = self._momentum
        # Each gradient of one weighs 1 + decay + decay² … as often as an update came since.
        return -LEARNING_RATE * (updates - decay * (1 - decay**updates) / (1 - decay)) / (1 - decay)

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """The state and both planes that a server task has, without a model to build."""
        self._prepare()
        codec = codec_for("none", topk_ratio=1.0)
        state = ServerState(
            workers=case.workers,
            parameters=torch.zeros(case.parameters),
            optimizer=partial(MomentumSGD, learning_rate=LEARNING_RATE, momentum=self._momentum),
            policy=policy_for(self._mode, case.workers, Aggregation()),
            codec=codec,
        )
        server = Listening.on(
            "127.0.0.1",
            0,
            state,
            codec,
            Identity(Trust(token=TOKEN)),
            study=STUDY,
            experiment=EXPERIMENT,
            workers=case.workers,
        )
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            server.stop()

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """A worker that is ready, with gradient and parameters where a worker's model has them."""
        self._prepare()
        (wire,) = wires_for(TaskEnvironment(transport=self.transport), [case.parameters])
        gradient, parameters = torch.empty(case.parameters), torch.empty(case.parameters)
        if wire.vectors is not None:
            gradient, parameters = wire.vectors.gradient, wire.vectors.parameters
        gradient.fill_(1)
        sender = Sender(study=STUDY, experiment=EXPERIMENT, rank=rank)
        trust = Trust(token=TOKEN)
        with Connection(
            address, sender, trust=trust, timeout_seconds=TIMEOUT_SECONDS, abandon=_abandon
        ) as connection:
            connection.ready(wire, case.steps)
            yield _Pushes(connection, gradient, parameters)
            connection.finish(connection.pull(into=parameters).version)

    def _prepare(self) -> None:
        if self._block_length is not None:
            set_block_length(self._block_length)


class _Pushes:
    """A worker's steps, one after the other."""

    def __init__(self, connection: Connection, gradient: Tensor, parameters: Tensor) -> None:
        self._connection = connection
        self._gradient = gradient
        self._parameters = parameters
        self._version = connection.pull(into=parameters).version
        # A model would be read all over: what is shared is then mapped on both sides, and counts as shared.
        parameters.sum()
        self._step = 0

    def __call__(self) -> Tensor:
        answer = self._connection.push_pull(self._gradient, self._step, self._version, into=self._parameters)
        self._version = answer.version
        self._step += 1
        return self._parameters


def _abandon(error: LockstepError) -> None:
    """End the process where the worker does not see that training ended: the round fails with the reason."""
    print(error, file=sys.stderr, flush=True)  # noqa: T201 - the round's log
    os._exit(1)
