"""Compression: how far a block comes back from what it was, what is refused, and that nothing is lost for good."""

import math
import struct
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from runtime.compression import (
    GROUP,
    LARGEST_SCALE,
    Codec,
    CompressionName,
    PayloadRefused,
    TopK,
    codec_for,
)
from runtime.feedback import ErrorFeedback, Replica, apply_difference

NAMES = get_args(CompressionName)
CODECS = st.builds(codec_for, st.sampled_from(NAMES), st.sampled_from([1e-9, 0.01, 0.1, 0.5, 1.0]))
LENGTHS = st.one_of(st.integers(1, 70), st.integers(1, 3 * GROUP), st.sampled_from([GROUP, 2 * GROUP + 1]))
BAD = st.sampled_from([float("nan"), float("inf"), float("-inf")])
TINY = torch.finfo(torch.float32).tiny


def normal(length: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(length, generator=torch.Generator().manual_seed(seed))


@st.composite
def blocks(draw: st.DrawFn, largest: float = 2.0**100) -> Tensor:
    """Of any length: few values chosen one by one, or many at random, some of them zero, equal, or much larger."""
    if draw(st.booleans()):
        return torch.tensor(draw(st.lists(st.floats(-largest, largest, width=32), min_size=1, max_size=40)))
    block = normal(draw(LENGTHS), draw(st.integers(0, 2**32)), draw(st.sampled_from([1e-6, 1e-2, 1.0])))
    match draw(st.sampled_from(["normal", "sparse", "ternary", "outliers"])):
        case "sparse":
            block *= normal(len(block), 1) > 1.5
        case "ternary":
            block = block.sign() * (block.abs() > block.abs().mean())
        case "outliers":
            block[::7] *= 1e4
    return block


def decoded(codec: Codec, values: Tensor) -> Tensor:
    # Memory that was never written would hide an element that decode leaves out.
    out = torch.full_like(values, float("nan"))
    codec.decode(codec.encode(values), out)
    return out


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


class NoLargeTensor(TorchFunctionMode):
    """Fails where torch makes a tensor of more than 1,000 bytes: tracemalloc does not see its memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not isinstance(result, Tensor) or result.nbytes <= 1000
        return result


@settings(deadline=None)
@given(codec=CODECS, values=blocks())
def test_a_payload_is_never_empty_nor_larger_than_announced_and_always_the_same(
    codec: Codec, values: Tensor
) -> None:
    before = values.clone()
    payload = codec.encode(values)
    assert 0 < len(payload) <= codec.max_bytes(len(values))
    assert payload == codec.encode(values.clone())
    assert same_bits(decoded(codec, values), decoded(codec, values))
    assert same_bits(values, before)


@settings(deadline=None)
@given(values=blocks(largest=2.0**127))
def test_no_compression_keeps_every_bit_and_copies_nothing(values: Tensor) -> None:
    codec = codec_for("none", 1.0)
    assert same_bits(decoded(codec, values), values)
    payload = codec.encode(values)
    values[0] = 42.0
    assert payload[:4] == struct.pack("<f", 42.0)


@settings(deadline=None)
@given(name=st.sampled_from(["fp16", "bf16"]), values=blocks(largest=2.0**127))
def test_sixteen_bits_round_to_the_nearest_and_saturate(name: CompressionName, values: Tensor) -> None:
    info = torch.finfo(torch.float16 if name == "fp16" else torch.bfloat16)
    expected = values.double().clamp(-info.max, info.max)
    error = (decoded(codec_for(name, 1.0), values) - expected).abs()
    # Half the gap between neighbours: relative to normal numbers, absolute among the subnormal ones.
    assert bool((error <= torch.clamp(expected.abs() * info.eps / 2, min=info.tiny * info.eps / 2)).all())


def test_the_largest_values_do_not_become_infinite() -> None:
    huge = torch.tensor([65520.0, -1e6, 3.4e38, -3.4e38, 1.0])
    assert decoded(codec_for("fp16", 1.0), huge).tolist() == [65504, -65504, 65504, -65504, 1]
    largest = torch.finfo(torch.bfloat16).max
    assert decoded(codec_for("bf16", 1.0), huge)[2:].tolist() == [largest, -largest, 1]


@settings(deadline=None)
@given(values=blocks(largest=2.0**127))
def test_int8_is_off_by_at_most_half_a_scale_of_its_group(values: Tensor) -> None:
    error = (decoded(codec_for("int8", 1.0), values).double() - values).abs()
    for group, off in zip(torch.split(values, GROUP), torch.split(error, GROUP), strict=True):
        scale = float(group.abs().max()) / 127
        # Below the smallest scale that has a finite reciprocal a group counts as zeros.
        assert float(off.max()) <= max(scale / 2 * (1 + 1e-4), 127 * TINY)


def test_a_group_whose_scale_would_be_subnormal_counts_as_zeros() -> None:
    values = torch.tensor([1e-36, -1e-36, 1e-40, 0.0])
    assert decoded(codec_for("int8", 1.0), values).tolist() == [0, 0, 0, 0]
    assert decoded(codec_for("int8", 1.0), 1e6 * values).tolist() == pytest.approx([1e-30, -1e-30, 0, 0])


def test_a_large_element_spoils_only_its_own_group() -> None:
    values = normal(3 * GROUP, 0)
    values[GROUP] = 1e6
    error = (decoded(codec_for("int8", 1.0), values) - values).abs()
    assert float(error[:GROUP].max()) < 0.02
    assert float(error[2 * GROUP :].max()) < 0.02


@settings(deadline=None)
@given(values=blocks(), ratio=st.floats(1e-6, 1.0))
def test_top_k_sends_the_largest_of_equal_ones_the_first_and_no_zeros(values: Tensor, ratio: float) -> None:
    order = torch.sort(values.abs(), descending=True, stable=True).indices
    largest = order[: math.ceil(ratio * len(values))]
    expected = torch.zeros_like(values)
    expected[largest] = values[largest]
    codec = TopK(ratio)
    assert torch.equal(decoded(codec, values), expected)
    assert len(codec.encode(values)) == 8 * max(1, int(expected.count_nonzero()))


def test_top_k_is_exact_where_its_sample_misleads() -> None:
    values = normal(100_000, 0, 1e-3)
    values[::61] = 1.0
    largest = values.abs().topk(5000).values.min()
    assert torch.equal(decoded(TopK(0.05), values), torch.where(values.abs() >= largest, values, 0))


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        TopK(ratio)


@settings(deadline=None)
@given(codec=CODECS, values=blocks(), bad=BAD, at=st.integers(0))
def test_nan_and_infinity_are_refused_by_the_receiver(
    codec: Codec, values: Tensor, bad: float, at: int
) -> None:
    values[at % len(values)] = bad
    with pytest.raises(PayloadRefused, match="NaN or infinite; lower the learning rate"):
        decoded(codec, values)


@settings(deadline=None)
@given(codec=CODECS, payload=st.binary(max_size=300), length=st.integers(1, 70))
def test_hostile_bytes_are_refused_or_a_block_of_finite_values(
    codec: Codec, payload: bytes, length: int
) -> None:
    out = torch.zeros(length)
    try:
        codec.decode(memoryview(payload), out)
    except PayloadRefused:
        return
    assert bool(out.isfinite().all())


@settings(deadline=None)
@given(codec=CODECS, values=blocks(), at=st.integers(0), byte=st.integers(0, 255))
def test_a_changed_byte_gives_another_block_or_is_refused(
    codec: Codec, values: Tensor, at: int, byte: int
) -> None:
    payload = bytearray(codec.encode(values))
    payload[at % len(payload)] = byte
    out = torch.zeros_like(values)
    try:
        codec.decode(memoryview(payload), out)
    except PayloadRefused:
        return
    assert bool(out.isfinite().all())


@settings(deadline=None)
@given(name=st.sampled_from(["none", "fp16", "bf16", "int8"]), values=blocks(), size=st.integers(0, 9000))
def test_another_size_is_refused_and_says_which(name: CompressionName, values: Tensor, size: int) -> None:
    codec = codec_for(name, 1.0)
    expected = len(codec.encode(values))
    if size == expected:
        size += 1
    with pytest.raises(
        PayloadRefused, match=f"^{size} bytes; expected {expected} for {len(values)} elements"
    ):
        codec.decode(memoryview(bytes(size)), torch.zeros_like(values))


@pytest.mark.parametrize("size", [0, 7, 12, 24])
def test_top_k_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(PayloadRefused, match=f"^{size} bytes; expected 8 for each of 1 to 2 of 10 elements"):
        TopK(0.2).decode(memoryview(bytes(size)), torch.zeros(10))


@pytest.mark.parametrize(
    "places", [(-1, 3), (3, 10), (3, 3), (4, 3), (0, 2**31 - 1), (-(2**31), 0), (2**31 - 1, 0)]
)
def test_top_k_places_outside_the_block_or_out_of_order_are_refused(places: tuple[int, int]) -> None:
    out = torch.full((10,), 5.0)
    with pytest.raises(
        PayloadRefused, match=f"2 places from {places[0]} to {places[1]}; expected increasing"
    ):
        TopK(0.2).decode(memoryview(struct.pack("<2i2f", *places, 1.0, 2.0)), out)
    assert bool((out == 5.0).all())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3e38])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    payload = struct.pack("<2f", 1.0, scale) + bytes([127]) * (GROUP + 1)
    with pytest.raises(PayloadRefused, match=r"scale 1 of 2 is .*; expected 0 to"):
        codec_for("int8", 1.0).decode(memoryview(payload), torch.zeros(GROUP + 1))


def test_the_largest_scale_that_is_let_through_gives_finite_values() -> None:
    out = torch.zeros(2)
    codec_for("int8", 1.0).decode(memoryview(struct.pack("<f2b", LARGEST_SCALE, -128, 127)), out)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_a_large_payload_is_refused_before_anything_is_allocated(name: CompressionName) -> None:
    codec, payload, out = codec_for(name, 0.5), memoryview(bytes(10_000_000)), torch.zeros(10)
    tracemalloc.start()
    with NoLargeTensor(), pytest.raises(PayloadRefused, match="10000000 bytes; expected"):
        codec.decode(payload, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@settings(deadline=None)
@given(codec=CODECS, values=blocks(), offset=st.integers(1, 7))
def test_a_payload_may_be_read_only_and_lie_anywhere(codec: Codec, values: Tensor, offset: int) -> None:
    message = bytes(offset) + codec.encode(values)
    out = torch.full_like(values, float("nan"))
    codec.decode(memoryview(message)[offset:], out)
    assert same_bits(out, decoded(codec, values))


@settings(deadline=None, max_examples=50)
@given(
    codec=CODECS, seed=st.integers(0, 2**32), length=LENGTHS, cut=st.integers(0), rounds=st.integers(1, 12)
)
def test_with_error_feedback_what_was_sent_and_the_residual_make_up_all_that_was_given(
    codec: Codec, seed: int, length: int, cut: int, rounds: int
) -> None:
    feedback = ErrorFeedback(length, codec)
    cut %= length
    given_sum, sent_sum = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
    for number in range(rounds):
        gradient = normal(length, seed + number)
        given_sum += gradient
        for block in (slice(0, cut), slice(cut, length)):
            if block.start < block.stop:
                out = torch.empty(block.stop - block.start)
                codec.decode(feedback.encode(block, gradient[block]), out)
                sent_sum[block] += out
    residual = feedback.residual if codec.name != "none" else torch.zeros(length)
    # fp32 rounds each sum of values and residual, which stays below the sum of all magnitudes.
    rounding = rounds * torch.finfo(torch.float32).eps * 6 * rounds
    assert float((sent_sum + residual - given_sum).abs().max()) <= rounding


@pytest.mark.parametrize(("name", "small"), [("fp16", 3e-9), ("bf16", 1e-3), ("int8", 1e-3), ("topk", 0.3)])
def test_error_feedback_sends_what_alone_would_never_be_sent(name: CompressionName, small: float) -> None:
    # fp16 and int8 round the small one to zero, bf16 the one beside it to 1, and top-k sends only one of three.
    gradient = torch.tensor([1.0, 1.001, small, 0.0])
    codec = codec_for(name, 0.25)
    feedback, sent, alone = ErrorFeedback(4, codec), torch.zeros(4), torch.zeros(4)
    rounds, out = 2000, torch.empty(4)
    for _ in range(rounds):
        codec.decode(feedback.encode(slice(0, 4), gradient), out)
        sent += out / rounds
        alone += decoded(codec, gradient) / rounds
    assert torch.allclose(sent, gradient, rtol=2e-2, atol=0)
    assert not torch.allclose(alone, gradient, rtol=2e-4, atol=0)


def test_no_compression_leaves_nothing_out_and_keeps_no_residual() -> None:
    feedback = ErrorFeedback(1000, codec_for("none", 1.0))
    assert len(feedback.residual) == 0
    values = normal(1000, 0)
    assert bytes(feedback.encode(slice(0, 1000), values)) == values.numpy().tobytes()
    feedback.reset()


def test_after_a_reset_error_feedback_starts_anew() -> None:
    codec = codec_for("topk", 0.1)
    feedback, values = ErrorFeedback(100, codec), normal(100, 0)
    first = bytes(feedback.encode(slice(0, 100), values))
    assert bytes(feedback.encode(slice(0, 100), values)) != first
    feedback.reset()
    assert bytes(feedback.encode(slice(0, 100), values)) == first


@settings(deadline=None, max_examples=50)
@given(
    codec=CODECS,
    counts=st.lists(st.booleans(), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
    length=LENGTHS,
)
def test_of_gradients_that_count_all_is_sent_whatever_became_of_the_others(
    codec: Codec, counts: list[bool], seed: int, length: int
) -> None:
    feedback, everything = ErrorFeedback(length, codec), slice(0, length)
    given_sum, applied_sum = (
        torch.zeros(length, dtype=torch.float64),
        torch.zeros(length, dtype=torch.float64),
    )
    for number, counted in enumerate(counts):
        gradient, out = normal(length, seed + number), torch.empty(length)
        payload = feedback.encode(everything, gradient)
        if not counted:
            feedback.take_back(everything, gradient, payload)
            continue
        codec.decode(payload, out)
        given_sum += gradient
        applied_sum += out
    residual = feedback.residual if codec.name != "none" else torch.zeros(length)
    rounding = 4 * len(counts) * torch.finfo(torch.float32).eps * 6 * len(counts)
    assert float((applied_sum + residual - given_sum).abs().max()) <= rounding


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "topk"])
def test_a_gradient_that_is_refused_leaves_the_residual_as_it_was(name: CompressionName) -> None:
    codec = codec_for(name, 0.1)
    feedback = ErrorFeedback(100, codec)
    feedback.encode(slice(0, 100), normal(100, 0))
    before = feedback.residual.clone()
    bad = normal(100, 1)
    bad[50] = float("nan")
    payload = feedback.encode(slice(0, 100), bad)
    assert same_bits(feedback.residual, before)
    feedback.take_back(slice(0, 100), bad, payload)
    assert same_bits(feedback.residual, before)
    with pytest.raises(PayloadRefused):
        codec.decode(payload, torch.empty(100))


@settings(deadline=None, max_examples=50)
@given(
    codec=CODECS,
    seed=st.integers(0, 2**32),
    length=LENGTHS,
    size=st.integers(1, 2000),
    rounds=st.integers(1, 12),
)
def test_both_copies_of_a_replica_stay_the_same_bit_for_bit(
    codec: Codec, seed: int, length: int, size: int, rounds: int
) -> None:
    parameters = normal(length, seed)
    replica, received, scratch = Replica(parameters.clone(), codec), parameters.clone(), torch.empty(size)
    for number in range(rounds):
        parameters += normal(length, seed + number, 0.01)
        sent: list[tuple[slice, memoryview]] = []
        for start in range(0, length, size):
            block = slice(start, min(start + size, length))
            sent.append(
                (block, replica.difference(block, parameters[block].clone(), scratch[: block.stop - start]))
            )
        # As where a sender queues: a payload stays what it was while the next blocks are encoded.
        for block, payload in sent:
            apply_difference(codec, payload, received[block], scratch)
        assert same_bits(received, replica.held)


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_reaches_the_current_values_when_they_stop_moving(name: CompressionName) -> None:
    codec, current = codec_for(name, 0.1), normal(2 * GROUP + 5, 3)
    everything = slice(0, len(current))
    replica = Replica(torch.zeros_like(current), codec)
    for _ in range(40):
        replica.difference(everything, current.clone(), torch.empty_like(current))
    # fp16 has nothing between zero and 6e-8: half of that may be left.
    tolerance = 2**-25 if name == "fp16" else 0.0
    assert float((replica.held - current).abs().max()) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_a_difference_that_is_refused_changes_neither_copy(name: CompressionName) -> None:
    codec, start = codec_for(name, 0.1), normal(100, 0)
    replica, received = Replica(start.clone(), codec), start.clone()
    payload = replica.difference(slice(0, 100), torch.full((100,), float("inf")), torch.empty(100))
    with pytest.raises(PayloadRefused):
        apply_difference(codec, payload, received, torch.empty(100))
    assert same_bits(received, start)
    assert same_bits(replica.held, start)
