"""Blocks: the pieces that vectors of parameters and gradients are aggregated and sent in.

Pure; runs on both sides, which must cut alike.
"""

from typing import Final

BLOCK_LENGTH: Final = 1 << 18
"""Elements of a block: 1 MiB of fp32. docs/benchmarks.md has what other sizes cost."""

ITEM_BYTES: Final = 4


def blocks_of(length: int) -> list[slice]:
    """The blocks of a vector of `length` elements: all of BLOCK_LENGTH, but for the last."""
    return [slice(start, min(start + BLOCK_LENGTH, length)) for start in range(0, length, BLOCK_LENGTH)]
