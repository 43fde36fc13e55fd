"""A worker in this process: takes from the server's state what a session would send, without connections."""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from unittest.mock import patch

import torch
from torch import Tensor

from runtime.exchange import Answer, Ticket
from runtime.state import ServerState

PATIENCE = 60.0


@contextmanager
def blocks_of_length(length: int) -> Iterator[None]:
    """Cut vectors into blocks of so many elements, wherever they are cut."""
    with patch("runtime.blocks.BLOCK_LENGTH", length), patch("runtime.blocks.WHOLE_LENGTH", length):
        yield


def enter(state: ServerState, rank: int, steps: int, next_step: int = 0) -> int:
    """Join, attend, be ready; returns the step to go on with."""
    state.join(rank)
    state.attend(rank)
    state.ready(rank, state.length, steps, next_step)
    return state.next_step(rank)


def receive(state: ServerState, ticket: Ticket, into: Tensor) -> Answer:
    """Take every block of an answer as it may leave."""
    for _ in state.aggregator.blocks:
        index = ticket.ready.get(timeout=PATIENCE)
        assert index is not None, "no more will leave"
        block = state.aggregator.blocks[index]
        read = state.aggregator.read
        state.copies.whole(ticket.rank, index, ticket.released_version, read, into[block])
    assert ticket.ready.empty()
    assert ticket.answer is not None
    return ticket.answer


class LocalWorker:
    """One rank: what it holds, and how far it has come."""

    def __init__(self, state: ServerState, rank: int, next_step: int = 0) -> None:
        """Pull from a state that trains."""
        self._state = state
        self._rank = rank
        self.step = next_step
        self.parameters = torch.zeros(state.length)
        ticket = state.pull(rank, SimpleQueue())
        self.version = receive(state, ticket, self.parameters).version

    def push_pull(self, gradient: Tensor) -> Answer:
        """Push the gradient of the next step, and go on with what comes back."""
        ticket = self._state.push(self._rank, self.step, self.version, gradient)
        answer = receive(self._state, ticket, self.parameters)
        self.step, self.version = self.step + 1, answer.version
        return answer
