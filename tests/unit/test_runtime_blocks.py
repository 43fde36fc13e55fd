"""Blocks: they cut a vector once, whatever its length."""

from hypothesis import given
from hypothesis import strategies as st

from contract.exchange import WHOLE_LENGTH
from runtime.blocks import BLOCK_LENGTH, blocks_of


@given(st.integers(1, 20 * BLOCK_LENGTH))
def test_blocks_follow_each_other_to_the_end(length: int) -> None:
    blocks = blocks_of(length)
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == length
    assert all(block.stop > block.start for block in blocks)


def test_short_vectors_stay_whole_and_longer_ones_are_cut_alike() -> None:
    assert blocks_of(WHOLE_LENGTH) == [slice(0, WHOLE_LENGTH)]
    cut = [block.stop - block.start for block in blocks_of(WHOLE_LENGTH + 1)]
    assert cut == [BLOCK_LENGTH, WHOLE_LENGTH - BLOCK_LENGTH, 1]
