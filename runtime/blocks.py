"""Blocks: the pieces that vectors of parameters and gradients are aggregated and sent in.

Pure; runs on both sides, which must cut alike.
"""

from typing import Final

from contract.exchange import WHOLE_LENGTH

BLOCK_LENGTH: Final = 1 << 19
"""Elements of a block: 2 MiB of fp32. docs/benchmarks.md has what other sizes cost."""

ITEM_BYTES: Final = 4


def blocks_of(length: int) -> list[slice]:
    """The blocks of a vector of `length` elements: one up to WHOLE_LENGTH, else of BLOCK_LENGTH but for the last."""
    # What overlaps in two blocks is less than what handing them over costs.
    if length <= WHOLE_LENGTH:
        return [slice(0, length)]
    return [slice(start, min(start + BLOCK_LENGTH, length)) for start in range(0, length, BLOCK_LENGTH)]
