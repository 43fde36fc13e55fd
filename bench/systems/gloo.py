"""Gloo, the CPU backend of torch.distributed: a parameter server of send and recv, and all_reduce.

Rank 0 is the server where there is one.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from bench.background import in_background
from bench.case import LEARNING_RATE, Case
from bench.round import ProcessSystem, Update

_LARGEST_SCALE = 2.0**100


class GlooSendRecv(ProcessSystem):
    """A parameter server as one writes it with send and recv; one thread per worker."""

    name = "Gloo send/recv"
    transport = "tcp"

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """The live parameters are sent, without the lock: the fastest that it can be."""
        parameters, lock = torch.zeros(case.parameters), threading.Lock()

        def answer(worker: int) -> None:
            gradient = torch.empty(case.parameters)
            for _ in range(case.steps):
                dist.recv(gradient, src=worker)
                with lock:
                    parameters.add_(gradient, alpha=-LEARNING_RATE)
                dist.send(parameters, dst=worker)

        def join() -> None:
            _join(case, rank=0, ranks=case.workers + 1)
            for worker in range(1, case.workers + 1):
                in_background(partial(answer, worker))

        in_background(join)
        yield ""

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """Buffers are made once."""
        del address
        gradient, parameters = torch.ones(case.parameters), torch.zeros(case.parameters)
        _join(case, rank=rank + 1, ranks=case.workers + 1)

        def update() -> Tensor:
            dist.send(gradient, dst=0)
            dist.recv(parameters, src=0)
            return parameters

        yield update


class GlooAllReduce(ProcessSystem):
    """No server: every rank sums all gradients and applies the sum. A single worker has a second rank beside it.

    An update is one worker's gradient, as everywhere: a step of 4 workers is 4 updates.
    """

    name = "Gloo all_reduce"
    transport = "tcp"
    has_server = False

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        """The second rank of a single worker; otherwise nothing."""
        if case.workers == 1:
            in_background(partial(_follow, case))
        yield ""

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        """Buffers are made once."""
        del address
        ranks = max(case.workers, 2)
        _join(case, rank=rank if case.workers > 1 else 1, ranks=ranks)
        yield _AllReduce(case, ranks)


class _AllReduce:
    """One rank's steps.

    The sum takes the gradient's place. Instead of making new gradients, which no other system is timed at, the sum is
    the next gradient, and the learning rate makes up for it until the numbers get too large.
    """

    def __init__(self, case: Case, ranks: int) -> None:
        self._gradient, self._parameters = torch.ones(case.parameters), torch.zeros(case.parameters)
        self._rate = LEARNING_RATE * case.workers
        self._ranks = ranks
        self._scale = 1.0

    def __call__(self) -> Tensor:
        dist.all_reduce(self._gradient)
        self._scale *= self._ranks
        self._parameters.add_(self._gradient, alpha=-self._rate / self._scale)
        if self._scale > _LARGEST_SCALE:
            self._gradient.fill_(1.0)
            self._scale = 1.0
        return self._parameters


def _follow(case: Case) -> None:
    _join(case, rank=0, ranks=2)
    step = _AllReduce(case, ranks=2)
    for _ in range(case.steps):
        step()


def _join(case: Case, rank: int, ranks: int) -> None:
    """Meet the other ranks over a file: no port to be taken by somebody else."""
    store = dist.FileStore(  # type: ignore[attr-defined]  # torch exports it all the same
        str(case.folder / "rendezvous"), ranks
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
