"""A server that listens: gRPC for control, and beside it the connections that tensors travel on.

Runs in the parameter server; knows nothing of the environment, or of who is told where it listens.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc

from contract.errors import TrainingFailed
from runtime import liveness
from runtime.compression import Codec
from runtime.data_server import DataServer
from runtime.servicer import Servicer
from runtime.state import ServerState
from runtime.trust import Identity, TokenCheck
from runtime.wire.parameter_server_pb2_grpc import add_ParameterServerServicer_to_server


@dataclass(frozen=True)
class Listening:
    """Both planes of a server, for the workers of one experiment."""

    control: Any
    data: DataServer
    port: int
    """Of control."""

    @classmethod
    def on(
        cls,
        interface: str,
        port: int,
        state: ServerState,
        codec: Codec,
        identity: Identity,
        *,
        study: str,
        experiment: str,
        workers: int,
        keep: Callable[[], None] = lambda: None,
    ) -> Self:
        """Listen on `port` and the next one, or on free ones if it is 0. Raises TrainingFailed if one is taken.

        `keep`: see Servicer.
        """
        data_port = port and port + 1
        try:
            data = DataServer(
                state, identity, codec, host=interface, port=data_port, study=study, experiment=experiment
            )
        except OSError as error:
            raise TrainingFailed(f"the server cannot listen on {interface}:{data_port}: {error}") from error
        control = grpc.server(
            # A worker holds one thread to attend, and one to finish while that is being kept: were there fewer, the
            # last of many that finish together would hear nothing within their deadline. The rest is for joins and
            # strangers.
            ThreadPoolExecutor(max_workers=2 * workers + 8, thread_name_prefix="rpc"),
            options=liveness.server_options(),
            interceptors=[TokenCheck(identity)],
        )
        servicer = Servicer(
            state,
            study=study,
            experiment=experiment,
            data_port=data.port,
            hang_up=data.hang_up,
            keep=keep,
        )
        add_ParameterServerServicer_to_server(servicer, control)
        try:
            bound = identity.add_port(control, f"{interface}:{port}")
        except RuntimeError as error:
            data.close()
            raise TrainingFailed(
                f"the server cannot listen on {interface}:{port}: is the port taken?"
            ) from error
        control.start()
        return cls(control, data, bound)

    def stop(self) -> None:
        """Close every connection, once each peer has been told why."""
        self.control.stop(liveness.FAREWELL_SECONDS).wait()
        self.data.close()

    @property
    def traffic(self) -> dict[str, int]:
        """Fields of the server's records: what passed on the data plane."""
        return {"sent_bytes": self.data.sent_bytes, "received_bytes": self.data.received_bytes}
