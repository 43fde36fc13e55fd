"""All systems that are measured, by the name that the command line knows them by.

The order is that of tables and plots: the limit, Lockstep, then the peers.
"""

from collections.abc import Mapping

from bench.case import System
from bench.systems.gloo import GlooAllReduce, GlooSendRecv
from bench.systems.grpc_bytes import GrpcChunks, GrpcUnary
from bench.systems.lockstep import Lockstep
from bench.systems.raw_tcp import RawTcp
from bench.systems.ray_actor import RayActor
from bench.systems.torch_rpc import TorchRpc, TorchRpcTcp

LIMIT = "raw-tcp"

SYSTEMS: Mapping[str, System] = {
    LIMIT: RawTcp(),
    "lockstep-tcp": Lockstep("tcp"),
    "lockstep-tls": Lockstep("tcp", tls=True),
    "lockstep-shared-memory": Lockstep("shared-memory"),
    "torch-rpc": TorchRpc(),
    "torch-rpc-tcp": TorchRpcTcp(),
    "gloo-send-recv": GlooSendRecv(),
    "gloo-all-reduce": GlooAllReduce(),
    "grpc-unary": GrpcUnary(),
    "grpc-chunks": GrpcChunks(),
    "ray": RayActor(),
}
