"""Vectors on the wire: raw little-endian fp32 bytes, checked against what the receiver expects.

Runs on both sides. Lengths come from the receiver's own model and buffers are there before a message comes,
so that no peer can make us allocate; nothing is ever unpickled.
"""

import math
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from runtime.parameters import memory_of
from runtime.wire.parameter_server_pb2 import Chunk, Header

DTYPE = "float32"
ITEM_BYTES = 4
CHUNK_BYTES = 1 << 20
"""Measured best of gRPC in Python at 44 MB; below it, one message is faster."""

ENVELOPE_BYTES = 64 * 1024
"""Room for a header beside the data of a message."""

if sys.byteorder != "little":
    raise ImportError("the wire format is little-endian, and so must this machine be")


class WireRefused(Exception):
    """A vector is not what the receiver expects; the message says what came and what was expected."""


def is_chunked(length: int) -> bool:
    """Whether a vector of `length` elements travels in chunks."""
    return length * ITEM_BYTES > CHUNK_BYTES


def max_message_bytes(length: int) -> int:
    """Largest message that peers with a model of `length` parameters exchange."""
    return min(length * ITEM_BYTES, CHUNK_BYTES) + ENVELOPE_BYTES


def check_header(header: Header, length: int) -> None:
    """Refuse what is not a vector of `length` fp32 elements. Raises WireRefused."""
    if header.dtype != DTYPE:
        raise WireRefused(f"dtype is '{header.dtype}'; expected {DTYPE}")
    if header.length != length:
        raise WireRefused(f"{header.length} elements; expected {length}: both sides need the same model")


def fill(target: Tensor, pieces: Iterable[bytes]) -> None:
    """Write the pieces, in order, into `target` (flat, fp32). Raises WireRefused unless they fill it exactly."""
    memory = memory_of(target)
    filled = 0
    for piece in pieces:
        if not piece:
            raise WireRefused(f"an empty piece after {filled} of {len(memory)} bytes")
        if filled + len(piece) > len(memory):
            raise WireRefused(f"more than the expected {len(memory)} bytes")
        memory[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled != len(memory):
        raise WireRefused(f"{filled} bytes; expected {len(memory)}")


def check_finite(gradient: Tensor) -> None:
    """Refuse NaN and infinity: one such gradient would spoil the parameters for all. Raises WireRefused."""
    # A sum is finite only if its terms are, and costs no temporary; only a bad one is looked at closely.
    if math.isfinite(float(gradient.sum())):
        return
    bad = gradient.numel() - int(torch.isfinite(gradient).sum())
    if bad:
        raise WireRefused(f"{bad} of {gradient.numel()} values are NaN or infinite; lower the learning rate")


def pieces_of(first: Chunk, rest: Iterable[Chunk]) -> Iterator[bytes]:
    """The data of a stream's chunks. Raises WireRefused if a second vector begins in it."""
    yield first.data
    for chunk in rest:
        if chunk.HasField("header"):
            raise WireRefused("a second header within one vector")
        yield chunk.data


def chunks_of(header: Header, data: bytes, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """A vector as a stream of chunks, the first one with the header."""
    view = memoryview(data)
    yield Chunk(header=header, data=bytes(view[:size]))
    for start in range(size, len(view), size):
        yield Chunk(data=bytes(view[start : start + size]))
