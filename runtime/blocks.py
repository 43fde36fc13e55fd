"""Blocks: the pieces that vectors of parameters and gradients are aggregated and sent in.

Pure; runs on both sides, which must cut alike.
"""

from typing import Final

BLOCK_LENGTH: Final = 1 << 19
"""Elements of a block: 2 MiB of fp32. docs/benchmarks.md has what other sizes cost."""

WHOLE_LENGTH: Final = 1 << 20
"""Longest vector that is one block: what overlaps in two blocks is less than what handing them over costs."""

ITEM_BYTES: Final = 4


def blocks_of(length: int) -> list[slice]:
    """The blocks of a vector of `length` elements: one up to WHOLE_LENGTH, else of BLOCK_LENGTH but for the last."""
    if length <= WHOLE_LENGTH:
        return [slice(0, length)]
    return [slice(start, min(start + BLOCK_LENGTH, length)) for start in range(0, length, BLOCK_LENGTH)]
