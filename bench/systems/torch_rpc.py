"""torch.distributed.rpc: a parameter server as one writes it with rpc_sync.

On one host TensorPipe copies tensors from process to process (process_vm_readv), also where `_transports=["uv"]` asks
for TCP: that is for its messages. Only with `_channels` restricted, too, is it what it would be between two hosts.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import rpc

from bench.background import in_background
from bench.case import BOTH_MALLOCS, LEARNING_RATE, Case, Variant
from bench.round import ProcessSystem, Update

_lock = threading.Lock()
_parameters = torch.empty(0)


def _push_pull(gradient: Tensor) -> Tensor:
    """Runs in the server. Answers the live parameters, sent without the lock: the fastest that it can be."""
    with _lock:
        return _parameters.add_(gradient, alpha=-LEARNING_RATE)


class TorchRpc(ProcessSystem):
    """With its default transports: between processes of one host, without the network."""

    name = "torch RPC"
    transport = "default"

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """Joining waits for all workers, so it is done aside."""
        global _parameters  # noqa: PLW0603 - RPC calls functions by name: they find the parameters here
        _parameters = torch.zeros(case.parameters)
        in_background(partial(self._join, case, "server", 0))
        yield ""

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """A call per update."""
        del address
        gradient = torch.ones(case.parameters)
        self._join(case, f"worker{rank}", rank + 1)
        yield lambda: rpc.rpc_sync("server", _push_pull, args=(gradient,))

    def _join(self, case: Case, name: str, rank: int) -> None:
        options = rpc.TensorPipeRpcBackendOptions(
            init_method=f"file://{case.folder / 'rendezvous'}",
            num_worker_threads=max(16, case.workers),
            **self._settings(case.variant),
        )
        rpc.init_rpc(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            name, rank=rank, world_size=case.workers + 1, rpc_backend_options=options
        )

    def _settings(self, variant: Variant) -> dict[str, Any]:
        del variant
        return {}


class TorchRpcTcp(TorchRpc):
    """Over TCP alone, as between two hosts: on one connection, or on several (`mpt_uv`)."""

    transport = "tcp"
    variants = tuple(
        Variant(variant.malloc, channel) for channel in ("basic", "mpt_uv") for variant in BOTH_MALLOCS
    )

    def _settings(self, variant: Variant) -> dict[str, Any]:
        return {"_transports": ["uv"], "_channels": [variant.option]}
