"""Memory for blocks of gradients, used again and again.

Runs in the parameter server. Blocks come in by one thread and are done with in another, many at a time: malloc keeps
what each thread gave back for that thread, and with 16 workers the process grew to twice what was in use.
"""

from collections import defaultdict

import torch
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
