"""Memory for blocks of gradients and parameters, and for their payloads, used again and again.

Runs on both sides. In the server blocks come in by one thread and are done with in another, many at a time: malloc
keeps what each thread gave back for that thread, and with 16 workers the process grew to twice what was in use.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BlockPool:
    """Blocks that nobody uses at present, by length. Any thread may call any method."""

    def __init__(self) -> None:
        # Appending to a list and popping from it are one step of the interpreter each: no lock is needed.
        self._unused: defaultdict[int, list[Tensor]] = defaultdict(list)

    def take(self, length: int) -> Tensor:
        """A block (flat, fp32, of any values) of `length` elements."""
        try:
            return self._unused[length].pop()
        except IndexError:
            return torch.empty(length)

    def give(self, block: Tensor) -> None:
        """Take back a block that nobody uses any more."""
        self._unused[len(block)].append(block)

    @contextmanager
    def lent(self, length: int) -> Iterator[Tensor]:
        """A block as of `take` within the context."""
        block = self.take(length)
        try:
            yield block
        finally:
            self.give(block)


class PayloadPool:
    """Memory for payloads, which travel, and are done with when nobody has them any more. Any thread may call it."""

    def __init__(self) -> None:
        self._unused: defaultdict[int, list[NDArray[Any]]] = defaultdict(list)

    def take(self, length: int) -> Tensor:
        """`length` bytes, of any values, which come back by themselves once the tensor and all its views are gone."""
        # Lengths of top-k vary: a power of two fits the next one, too, and pages that nobody touches cost nothing.
        capacity = 1 << max(length - 1, 0).bit_length()
        unused = self._unused[capacity]
        try:
            whole = unused.pop()
        except IndexError:
            whole = np.empty(capacity, np.uint8)
        part = whole[:length]
        finalize(part, unused.append, whole).atexit = False
        return torch.from_numpy(part)
