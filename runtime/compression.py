"""Compression of a block of a vector: flat, contiguous, fp32, in host memory.

Pure; runs on both sides. Knows nothing of connections, or of what the vector means. Figures in comments: one
thread, one block of 1 MiB.
"""

import math
from typing import Final, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.parameters import count_non_finite, memory_of
from runtime.pool import PayloadPool

CompressionName = Literal["none", "fp16", "bf16", "int8", "topk"]

GROUP: Final = 1024
"""Elements of int8 that share a scale: 0.4 % more bytes, and an error 0.75 times that of a scale per block."""

LARGEST_SCALE: Final = torch.finfo(torch.float32).max / 128
"""Of int8: no byte times a scale overflows."""

SAMPLE_STRIDE: Final = 61
"""Top-k looks at every 61st element first: a prime, so that no row length of a layer is in step with it."""


_PAYLOADS: Final = PayloadPool()


class PayloadRefused(Exception):
    """A payload is not a block as expected, or holds NaN or infinity; says what came and what was expected."""


class Codec(Protocol):
    """How a block becomes bytes and a block again.

    The same block gives the same bytes, and these the same block, bit for bit. No payload is empty. NaN and
    infinity are never hidden: the receiver refuses their payload.
    """

    name: CompressionName

    def max_bytes(self, length: int) -> int:
        """Largest payload of `length` elements: what a receiver allocates, and refuses to read beyond."""

    def encode(self, values: Tensor) -> memoryview:
        """The payload of a block of at least one element."""

    def decode(self, payload: memoryview, out: Tensor) -> None:
        """Write all of `out` (flat, fp32). Raises PayloadRefused; what is in `out` is then undefined."""


def codec_for(name: CompressionName, topk_ratio: float) -> Codec:
    """The codec that a study names; `topk_ratio` is of `topk` alone."""
    match name:
        case "none":
            return Plain()
        case "fp16":
            return HalfPrecision("fp16", torch.float16)
        case "bf16":
            return HalfPrecision("bf16", torch.bfloat16)
        case "int8":
            return Int8()
        case "topk":
            return TopK(topk_ratio)


class Plain:
    """The block itself, 4 bytes per element. A payload is the block's own memory, valid until that changes."""

    name: CompressionName = "none"

    def max_bytes(self, length: int) -> int:
        """As Codec."""
        return 4 * length

    def encode(self, values: Tensor) -> memoryview:
        """As Codec; nothing is copied."""
        return memory_of(values)

    def decode(self, payload: memoryview, out: Tensor) -> None:
        """As Codec."""
        _check_size(payload, self.max_bytes(len(out)), len(out))
        memory_of(out)[:] = payload
        _check_finite(out)


class HalfPrecision:
    """Each element rounded to the nearest of 16 bits; what is too large becomes the largest there is.

    fp16 keeps 11 bits of magnitudes in 6e-5 … 65504, and nothing below 3e-8; bf16 keeps 8 bits of all magnitudes.
    """

    def __init__(self, name: CompressionName, dtype: torch.dtype) -> None:
        self.name = name
        self._dtype = dtype
        self._largest = torch.finfo(dtype).max

    def max_bytes(self, length: int) -> int:
        """As Codec."""
        return 2 * length

    def encode(self, values: Tensor) -> memoryview:
        """As Codec."""
        # No element exceeds the norm, and that costs 0.015 ms; the largest magnitude itself costs 0.045.
        if not float(torch.dot(values, values)) <= self._largest**2:
            saturated = values.clamp(-self._largest, self._largest)
            values = torch.where(values.isinf(), values, saturated)
        payload = _PAYLOADS.take(2 * len(values))
        payload.view(self._dtype).copy_(values)
        return memory_of(payload)

    def decode(self, payload: memoryview, out: Tensor) -> None:
        """As Codec."""
        _check_size(payload, self.max_bytes(len(out)), len(out))
        out.copy_(_copy_of(payload).view(self._dtype))
        _check_finite(out)


class Int8:
    """Scales (fp32, one per group of elements), then one signed byte per element: element ≈ byte·scale.

    scale = max|group|/127, byte = element/scale rounded to the nearest, ties to even: an element is off by at
    most half a scale. Where a group has NaN or infinity, so has its scale.
    """

    name: CompressionName = "int8"

    def max_bytes(self, length: int) -> int:
        """As Codec."""
        return 4 * _groups(length) + length

    def encode(self, values: Tensor) -> memoryview:
        """As Codec."""
        payload = _PAYLOADS.take(self.max_bytes(len(values)))
        scales, quantized = _int8_parts(payload, len(values))
        start = 0
        for rows, target in zip(_grouped(values), _grouped(quantized), strict=True):
            scale = scales[start : start + len(rows)]
            start += len(rows)
            # Two passes without a temporary: 0.05 ms; torch.aminmax over rows takes 0.53.
            torch.maximum(rows.amax(1), -rows.amin(1), out=scale).div_(127)
            # The reciprocal of a subnormal scale may be infinite: such a group counts as zeros.
            scale[scale < torch.finfo(torch.float32).tiny] = 0
            inverse = torch.where(scale > 0, scale.reciprocal(), 0)
            target.copy_((rows * inverse[:, None]).round_())
        return memory_of(payload)

    def decode(self, payload: memoryview, out: Tensor) -> None:
        """As Codec."""
        _check_size(payload, self.max_bytes(len(out)), len(out))
        scales, quantized = _int8_parts(_copy_of(payload), len(out))
        wrong = np.flatnonzero(~((scales.numpy() >= 0) & (scales.numpy() <= LARGEST_SCALE)))
        if len(wrong):
            raise PayloadRefused(
                f"scale {wrong[0]} of {len(scales)} is {float(scales[int(wrong[0])])}; expected 0 to"
                f" {LARGEST_SCALE:.3g}: the values were NaN or infinite; lower the learning rate"
            )
        out.copy_(quantized)
        start = 0
        for rows in _grouped(out):
            rows.mul_(scales[start : start + len(rows), None])
            start += len(rows)


class TopK:
    """The ⌈ratio·length⌉ elements of largest magnitude: their places (int32, increasing), then their values (fp32).

    Exact; of equal magnitudes the first ones go. Zeros are not sent, but for the first element of a block of zeros.
    """

    name: CompressionName = "topk"

    def __init__(self, ratio: float) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"top-k keeps {ratio} of the elements; expected above 0 and at most 1")
        self._ratio = ratio

    def kept(self, length: int) -> int:
        """Most elements that are kept of `length`."""
        return math.ceil(self._ratio * length)

    def max_bytes(self, length: int) -> int:
        """As Codec."""
        return 8 * self.kept(length)

    def encode(self, values: Tensor) -> memoryview:
        """As Codec."""
        # Magnitudes order as the bits of floats without their sign do, and so NaN comes first.
        magnitudes = values.numpy().view(np.int32) & 0x7FFFFFFF
        places = _largest(magnitudes, self.kept(len(values)))
        payload = _PAYLOADS.take(8 * len(places))
        whole = payload.numpy()
        whole[: 4 * len(places)].view(np.int32)[:] = places
        whole[4 * len(places) :].view(np.float32)[:] = values.numpy()[places]
        return memory_of(payload)

    def decode(self, payload: memoryview, out: Tensor) -> None:
        """As Codec."""
        count, rest = divmod(len(payload), 8)
        if rest or not 1 <= count <= self.kept(len(out)):
            raise PayloadRefused(
                f"{len(payload)} bytes; expected 8 for each of 1 to {self.kept(len(out))} of {len(out)} elements"
            )
        received = _copy_of(payload)
        places, values = received[: 4 * count].view(torch.int32), received[4 * count :].view(torch.float32)
        first, last = int(places[0]), int(places[-1])
        if first < 0 or last >= len(out) or not bool((places[1:] > places[:-1]).all()):
            raise PayloadRefused(
                f"{count} places from {first} to {last}; expected increasing ones from 0 to {len(out) - 1}"
            )
        _check_finite(values)
        out.zero_()
        out[places.long()] = values


def _check_size(payload: memoryview, expected: int, length: int) -> None:
    if len(payload) != expected:
        raise PayloadRefused(f"{len(payload)} bytes; expected {expected} for {length} elements")


def _check_finite(values: Tensor) -> None:
    if bad := count_non_finite(values):
        raise PayloadRefused(f"{bad} of {len(values)} values are NaN or infinite; lower the learning rate")


def _copy_of(payload: memoryview) -> Tensor:
    """The payload's bytes, aligned, and safe from whoever may still write to where they came from."""
    copy = _PAYLOADS.take(len(payload))
    memory_of(copy)[:] = payload
    return copy


def _groups(length: int) -> int:
    return math.ceil(length / GROUP)


def _grouped(flat: Tensor) -> list[Tensor]:
    """Groups as rows: those that are full, and the shorter one that may be left over."""
    full = len(flat) - len(flat) % GROUP
    parts = [flat[:full].view(-1, GROUP), flat[full:].view(1, -1)]
    return [rows for rows in parts if rows.numel()]


def _int8_parts(payload: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Scales and bytes, as views of the payload."""
    scales_end = 4 * _groups(length)
    return payload[:scales_end].view(torch.float32), payload[scales_end:].view(torch.int8)


def _largest(magnitudes: NDArray[np.int32], count: int) -> NDArray[np.intp]:
    """Places of the `count` largest that are not zero, increasing; of equal ones the first; at least one place.

    A threshold from a sample leaves few candidates, of which the largest are then exact: 0.3 ms at 1 %, where
    numpy's partition of all takes 0.4 (and 4 if most are zero) and torch.topk 2.3.
    """
    sample = np.sort(magnitudes[::SAMPLE_STRIDE])
    # Half as many again as needed, and a few: a sample errs.
    wanted = min(len(sample), math.ceil(1.5 * count / len(magnitudes) * len(sample)) + 8)
    candidates: NDArray[np.intp] = np.flatnonzero(magnitudes >= max(sample[-wanted], 1))
    if len(candidates) < count:
        candidates = np.flatnonzero(magnitudes)
    if len(candidates) <= count:
        return candidates if len(candidates) else np.zeros(1, dtype=np.intp)
    among = magnitudes[candidates]
    smallest = np.partition(among, len(among) - count)[len(among) - count]
    keep = among > smallest
    keep[np.flatnonzero(among == smallest)[: count - np.count_nonzero(keep)]] = True
    kept: NDArray[np.intp] = candidates[keep]
    return kept
