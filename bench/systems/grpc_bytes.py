"""gRPC in Python as it comes: raw tensor bytes, in one message or in chunks, no checks.

The server keeps one parameter buffer under a lock; a worker's answer is a view of what came, copied no further.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import torch
from torch import Tensor

from bench.case import LEARNING_RATE, Case
from bench.round import ProcessSystem, Update
from runtime.parameters import memory_of

CHUNK_BYTES = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVICE = "Peer"


class GrpcUnary(ProcessSystem):
    """One message each way."""

    name = "gRPC bytes, unary"
    transport = "tcp"

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """A generic handler without serializers."""
        parameters, lock = torch.zeros(case.parameters), threading.Lock()

        def push_pull(request: bytes, _: Any) -> bytes:
            with lock:
                parameters.add_(_view(request), alpha=-LEARNING_RATE)
                return parameters.numpy().tobytes()

        with _serving(grpc.unary_unary_rpc_method_handler(push_pull), case) as address:
            yield address

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """The gradient is serialized for each update, as it must be in training."""
        del rank
        gradient = torch.ones(case.parameters)
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            call = channel.unary_unary(f"/{SERVICE}/PushPull")
            yield lambda: _view(call(gradient.numpy().tobytes(), wait_for_ready=True))


class GrpcChunks(ProcessSystem):
    """A stream of 1 MiB chunks each way, one call per update."""

    name = "gRPC bytes, 1 MiB chunks"
    transport = "tcp"

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """Chunks are put together in a buffer that each thread keeps."""
        parameters, lock, own = torch.zeros(case.parameters), threading.Lock(), threading.local()

        def push_pull(chunks: Iterable[bytes], _: Any) -> Iterator[bytes]:
            if not hasattr(own, "gradient"):
                own.gradient = torch.empty(case.parameters)
            _fill(own.gradient, chunks)
            with lock:
                parameters.add_(own.gradient, alpha=-LEARNING_RATE)
                answer = parameters.numpy().tobytes()
            yield from _chunks(memoryview(answer))

        with _serving(grpc.stream_stream_rpc_method_handler(push_pull), case) as address:
            yield address

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """Chunks of the answer are written to one buffer."""
        del rank
        gradient, parameters = torch.ones(case.parameters), torch.zeros(case.parameters)
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            call = channel.stream_stream(f"/{SERVICE}/PushPull")

            def update() -> Tensor:
                _fill(parameters, call(_chunks(memory_of(gradient)), wait_for_ready=True))
                return parameters

            yield update


@contextmanager
def _serving(handler: Any, case: Case) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(case.workers), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"PushPull": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def _view(data: bytes) -> Tensor:
    # Torch warns that bytes cannot be written to; nobody does.
    return torch.frombuffer(data, dtype=torch.float32)


def _chunks(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])


def _fill(target: Tensor, chunks: Iterable[bytes]) -> None:
    memory, filled = memory_of(target), 0
    for chunk in chunks:
        memory[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
