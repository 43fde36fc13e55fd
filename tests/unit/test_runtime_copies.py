"""What the server knows of its workers' copies, against what they are given."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.blocks import blocks_of
from runtime.compression import Codec, codec_for
from runtime.copies import Copies
from runtime.feedback import apply_difference
from tests.unit.local_worker import blocks_of_length

LENGTH, WORKERS = 20, 3
LOSSY = ["fp16", "bf16", "int8", "topk"]


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with blocks_of_length(8):
        yield


class Server:
    """Parameters that move, and copies of them; `held` is what the workers made of what they were sent."""

    def __init__(self, codec: Codec, *, alike: bool, kept: bool = False) -> None:
        self.codec = codec
        self.parameters = torch.randn(LENGTH, generator=torch.Generator().manual_seed(1))
        self.copies = Copies(self.parameters, WORKERS, codec, alike=alike, kept=kept)
        self.held = [self.parameters.clone() for _ in range(WORKERS)]
        self.blocks = blocks_of(LENGTH)
        self.version = 0

    def move(self) -> None:
        self.version += 1
        self.parameters += torch.randn(LENGTH, generator=torch.Generator().manual_seed(self.version + 1))

    def read(self, index: int, out: Tensor) -> None:
        out.copy_(self.parameters[self.blocks[index]])

    def send(self, rank: int, *, whole: bool = False) -> list[bytes]:
        payloads = []
        for index, block in enumerate(self.blocks):
            held = self.held[rank][block]
            if whole:
                self.copies.whole(rank, index, self.version, self.read, held)
                continue
            payload = self.copies.difference(rank, index, self.version, self.read)
            apply_difference(self.codec, payload, held, torch.empty(8))
            payloads.append(bytes(payload))
        return payloads


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


@pytest.mark.parametrize("compression", LOSSY)
@pytest.mark.parametrize("alike", [True, False])
@settings(deadline=None, max_examples=25)
@given(rounds=st.lists(st.lists(st.booleans(), min_size=WORKERS, max_size=WORKERS), min_size=1, max_size=30))
def test_the_servers_idea_of_a_copy_is_that_copy_bit_for_bit(
    compression: str, alike: bool, rounds: list[list[bool]]
) -> None:
    """Over many rounds, in which some workers are given the whole of it: they pushed again, or are back."""
    server = Server(codec_for(compression, 0.2), alike=alike)  # type: ignore[arg-type]  # a parameter
    for wholes in rounds:
        server.move()
        for rank, whole in enumerate(wholes):
            server.send(rank, whole=whole)
            assert same_bits(server.held[rank], server.copies.held[rank])
            if whole and not alike:
                assert same_bits(server.held[rank], server.parameters)
        if alike:
            assert all(same_bits(held, server.held[0]) for held in server.held)


@pytest.mark.parametrize("compression", LOSSY)
def test_where_all_get_every_version_one_payload_serves_all_and_one_copy_is_kept(compression: str) -> None:
    server = Server(codec_for(compression, 0.2), alike=True)  # type: ignore[arg-type]  # a parameter
    assert len({id(held) for held in server.copies.held.values()}) == 1
    for _ in range(5):
        server.move()
        first, *others = [server.send(rank) for rank in range(WORKERS)]
        assert all(payloads == first for payloads in others)
        # Asked again for a version, nobody is moved any further
        before = server.copies.held[0].clone()
        server.send(1, whole=True)
        assert same_bits(server.copies.held[0], before)


@pytest.mark.parametrize("compression", LOSSY)
def test_copies_follow_the_parameters_and_catch_up_when_these_stand(compression: str) -> None:
    for alike in (True, False):
        server = Server(codec_for(compression, 0.2), alike=alike)  # type: ignore[arg-type]  # a parameter
        for _ in range(10):
            server.move()
            server.send(0)
        for _ in range(20):
            server.version += 1
            server.send(0)
        assert torch.allclose(server.held[0], server.parameters, atol=1e-4)


def test_without_compression_nothing_is_kept_unless_it_is_asked_for() -> None:
    plain = codec_for("none", 1.0)
    assert Server(plain, alike=True).copies.held == {}
    assert Server(plain, alike=False).copies.held == {}
    server = Server(plain, alike=False, kept=True)
    server.move()
    server.send(1, whole=True)
    assert torch.equal(server.copies.held[1], server.parameters)
    assert not torch.equal(server.copies.held[0], server.parameters)


@pytest.mark.parametrize("alike", [True, False])
def test_renewed_copies_are_the_new_parameters(alike: bool) -> None:
    server = Server(codec_for("topk", 0.2), alike=alike)
    server.move()
    server.send(0)
    server.move()
    server.copies.renew(server.parameters)
    server.version = 0
    for rank in range(WORKERS):
        server.send(rank, whole=True)
        assert same_bits(server.held[rank], server.parameters)
    server.move()
    for rank in range(WORKERS):
        server.send(rank)
        assert same_bits(server.held[rank], server.copies.held[rank])
