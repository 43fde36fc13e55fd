"""Vectors on the wire: what is put together, and what is refused."""

import tracemalloc
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.codec import (
    CHUNK_BYTES,
    DTYPE,
    WireRefused,
    check_finite,
    check_header,
    chunks_of,
    fill,
    is_chunked,
    max_message_bytes,
    pieces_of,
)
from runtime.wire.parameter_server_pb2 import Chunk, Header

LENGTHS = st.integers(1, 300)


def vector(length: int) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(length))


def header_of(length: int, dtype: str = DTYPE) -> Header:
    return Header(dtype=dtype, length=length)


@settings(deadline=None)
@given(length=LENGTHS, size=st.integers(1, 1500))
def test_chunks_of_any_size_make_up_the_vector_again(length: int, size: int) -> None:
    sent = vector(length)
    chunks = list(chunks_of(header_of(length), sent.numpy().tobytes(), size))
    received = torch.empty(length)
    check_header(chunks[0].header, length)
    fill(received, pieces_of(chunks[0], chunks[1:]))
    assert torch.equal(received, sent)
    assert all(len(chunk.data) <= size for chunk in chunks)


@settings(deadline=None)
@given(length=LENGTHS, cuts=st.lists(st.integers(1, 1199), unique=True))
def test_any_split_makes_up_the_vector_again(length: int, cuts: list[int]) -> None:
    sent = vector(length)
    data = sent.numpy().tobytes()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    received = torch.empty(length)
    fill(received, [data[a:b] for a, b in pairwise(bounds)])
    assert torch.equal(received, sent)


@settings(deadline=None)
@given(length=LENGTHS, size=st.integers(1, 64), lost=st.integers(0))
def test_a_stream_with_a_gap_is_refused(length: int, size: int, lost: int) -> None:
    chunks = list(chunks_of(header_of(length), vector(length).numpy().tobytes(), size))
    lost %= len(chunks)
    rest = [chunk.data for position, chunk in enumerate(chunks) if position != lost]
    with pytest.raises(WireRefused, match=rf"bytes; expected {length * 4}$"):
        fill(torch.empty(length), rest)


@settings(deadline=None)
@given(length=LENGTHS, extra=st.binary(min_size=1, max_size=64))
def test_a_byte_too_many_is_refused_before_it_is_written(length: int, extra: bytes) -> None:
    data = vector(length).numpy().tobytes()
    with pytest.raises(WireRefused, match=f"more than the expected {length * 4} bytes"):
        fill(torch.empty(length), [data, extra])


def test_an_endless_stream_of_nothing_is_refused() -> None:
    with pytest.raises(WireRefused, match="an empty piece after 0 of 8 bytes"):
        fill(torch.empty(2), iter(lambda: b"", None))


def test_a_second_vector_in_one_stream_is_refused() -> None:
    chunks = [Chunk(header=header_of(2), data=b"1234"), Chunk(header=header_of(2), data=b"5678")]
    with pytest.raises(WireRefused, match="a second header"):
        fill(torch.empty(2), pieces_of(chunks[0], chunks[1:]))


@settings(deadline=None)
@given(length=st.integers(0, 2**64 - 1).filter(lambda length: length != 10))
def test_another_length_is_refused_before_anything_is_allocated(length: int) -> None:
    tracemalloc.start()
    with pytest.raises(WireRefused, match=f"{length} elements; expected 10"):
        check_header(header_of(length), 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("dtype", ["", "float64", "bfloat16", "pickle", "Float32"])
def test_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(WireRefused, match=f"dtype is '{dtype}'; expected float32"):
        check_header(header_of(10, dtype), 10)


@settings(deadline=None)
@given(bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]), at=st.integers(0, 99))
def test_a_gradient_that_is_not_finite_is_refused(bad: float, at: int) -> None:
    gradient = vector(100)
    gradient[at] = bad
    with pytest.raises(WireRefused, match="1 of 100 values are NaN or infinite"):
        check_finite(gradient)


def test_large_values_whose_sum_overflows_are_let_through() -> None:
    check_finite(torch.full((100,), 3e38))


def test_large_models_travel_in_chunks_and_no_message_exceeds_them() -> None:
    assert not is_chunked(CHUNK_BYTES // 4)
    assert is_chunked(CHUNK_BYTES // 4 + 1)
    length = 3 * CHUNK_BYTES
    for chunk in chunks_of(header_of(length), bytes(length * 4)):
        assert chunk.ByteSize() <= max_message_bytes(length)
