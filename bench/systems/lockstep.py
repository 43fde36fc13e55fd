"""Lockstep's own parameter server and client code, all checks on, for a model of any length.

The one place of the bench that knows how the runtime's server is put together.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch
from torch import Tensor

from bench.case import LEARNING_RATE, Case, Variant
from bench.round import ProcessSystem, Update
from bench.substitution import set_block_length
from contract.aggregation import Aggregation, Mode
from contract.errors import LockstepError
from contract.exchange import Compression, Transport
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

HOST = "127.0.0.1"
STUDY, EXPERIMENT, TOKEN = "bench", "push-pull", "of-this-round"
CERTIFICATE: Final = "certificate.pem"
"""Where in a round's folder the server leaves it; a task would find it at the rendezvous."""

TIMEOUT_SECONDS = 3600.0
"""Of the experiment; a round's own limit comes first."""

LOSSY_TOLERANCE: Final = 1e-3
"""Of parameters that travelled in 16 bits: what the last rounding left out is no more."""


class Lockstep(ProcessSystem):
    """The server and client code of the tasks; unless said otherwise in async mode: an update per gradient."""

    name = "Lockstep"
    variants = (Variant("tuned"),)

    def __init__(
        self,
        transport: Transport,
        *,
        tls: bool = False,
        mode: Mode = Mode.ASYNC,
        momentum: float = 0.0,
        compression: Compression = "none",
        block_length: int | None = None,
    ) -> None:
        """`tls`: as on AWS; `block_length`: in elements, instead of the runtime's."""
        self.transport = f"{transport}, TLS" if tls else transport
        if compression != "none":
            self.tolerance = LOSSY_TOLERANCE
        self._environment = TaskEnvironment(transport=transport, compression=compression)
        self._tls = tls
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
        codec = codec_for(self._environment.compression, self._environment.topk_ratio)
        state = ServerState(
            workers=case.workers,
            parameters=torch.zeros(case.parameters),
            optimizer=partial(MomentumSGD, learning_rate=LEARNING_RATE, momentum=self._momentum),
            policy=policy_for(self._mode, case.workers, Aggregation()),
            codec=codec,
        )
        server = Listening.on(
            HOST,
            0,
            state,
            codec,
            self._identity(case),
            study=STUDY,
            experiment=EXPERIMENT,
            workers=case.workers,
        )
        try:
            yield f"{HOST}:{server.port}"
        finally:
            server.stop()

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """A worker that is ready, with gradient and parameters where a worker's model has them."""
        self._prepare()
        (wire,) = wires_for(self._environment, [case.parameters])
        gradient, parameters = torch.empty(case.parameters), torch.empty(case.parameters)
        if wire.vectors is not None:
            gradient, parameters = wire.vectors.gradient, wire.vectors.parameters
        gradient.fill_(1)
        sender = Sender(study=STUDY, experiment=EXPERIMENT, rank=rank)
        certificate = (case.folder / CERTIFICATE).read_text(encoding="ascii") if self._tls else None
        with Connection(
            address,
            sender,
            trust=Trust(certificate, TOKEN),
            timeout_seconds=TIMEOUT_SECONDS,
            abandon=_abandon,
        ) as connection:
            connection.ready(wire, case.steps)
            yield _Pushes(connection, gradient, parameters)
            connection.finish(connection.pull(into=parameters).version)

    def _identity(self, case: Case) -> Identity:
        """With a new certificate, which the workers find in the round's folder, or without one."""
        made = Identity.make(HOST, tls=self._tls)
        certificate = made.trust.certificate_pem
        if certificate is not None:
            (case.folder / CERTIFICATE).write_text(certificate, encoding="ascii")
        return Identity(Trust(certificate, TOKEN), made.private_key_pem)

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
