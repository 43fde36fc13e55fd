"""What parameters each worker holds, as far as the server must know it: for compression, and delay compensation.

Runs in the parameter server, called by many threads at once; knows nothing of connections. Each block of a worker's
copy is used by one thread at a time: the one that answers it.
"""

import os
import threading
from collections.abc import Callable

from torch import Tensor

from runtime.blocks import blocks_of
from runtime.compression import Codec
from runtime.feedback import Replica
from runtime.pool import BlockPool

Read = Callable[[int, Tensor], None]
"""Writes a block of the present parameters to a tensor."""


class Copies:
    """The copies of all workers; each takes the memory of the parameters, unless all are alike."""

    def __init__(
        self,
        parameters: Tensor,
        workers: int,
        codec: Codec,
        *,
        alike: bool = False,
        kept: bool = False,
        pool: BlockPool | None = None,
    ) -> None:
        """`alike`: every worker gets every version, and so one copy will do; `kept`: also where nothing is lost.

        `pool`: where memory for a block that is encoded comes from.
        """
        self._pool = pool or BlockPool()
        self._codec = codec
        self._blocks = blocks_of(parameters.numel())
        self._lossy = codec.name != "none"
        self.held: dict[int, Tensor] = {}
        """Rank → flat fp32 parameters."""
        if alike and self._lossy and not kept:
            self.held = dict.fromkeys(range(workers), parameters.clone())
        elif kept or self._lossy:
            self.held = {rank: parameters.clone() for rank in range(workers)}
        self._replicas = {rank: Replica(held, codec) for rank, held in self.held.items()}
        self._alike = alike and not kept
        self._locks = [threading.Lock() for _ in self._blocks]
        # More at once than there are cores would be no sooner, and each takes memory.
        self._encoding = threading.Semaphore(os.cpu_count() or 1)
        self._sent: list[tuple[int, memoryview] | None] = [None] * len(self._blocks)

    def renew(self, parameters: Tensor) -> None:
        """Take it that every worker holds these: whoever comes is given the whole of them first."""
        for held in self.held.values():
            held.copy_(parameters)
        self._sent = [None] * len(self._blocks)

    def whole(self, rank: int, index: int, version: int, read: Read, out: Tensor) -> None:
        """Write a block of what the worker is given to `out`, bit for bit."""
        if self._lossy and self._alike:
            # It joins the others, who are given no more than their copy.
            with self._locks[index]:
                self._advance(index, version, read)
                out.copy_(self.held[rank][self._blocks[index]])
            return
        read(index, out)
        if rank in self.held:
            self.held[rank][self._blocks[index]] = out

    def difference(self, rank: int, index: int, version: int, read: Read) -> memoryview:
        """The payload that takes a block of the worker's copy from the version that it holds to this one."""
        if self._alike:
            with self._locks[index]:
                return self._advance(index, version, read)
        return self._difference(rank, index, read)

    def _advance(self, index: int, version: int, read: Read) -> memoryview:
        """Encode the step to a version once, for all workers."""
        sent = self._sent[index]
        if sent is None or sent[0] < version:
            sent = self._sent[index] = (version, self._difference(0, index, read))
        return sent[1]

    def _difference(self, rank: int, index: int, read: Read) -> memoryview:
        block = self._blocks[index]
        length = block.stop - block.start
        with self._encoding, self._pool.lent(length) as current, self._pool.lent(length) as scratch:
            read(index, current)
            return self._replicas[rank].difference(block, current, scratch)
