"""A worker's steps against the server's real state: epochs, and going on after an interruption anywhere."""

from collections.abc import Iterator
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.aggregation import Mode
from contract.task import TaskEnvironment
from runtime.attendance import SERVER
from runtime.data_connection import Exchanged
from runtime.ending import VanishedPeer
from runtime.exchange import Answer
from runtime.optimizer import MomentumSGD
from runtime.parameters import FlatModel
from runtime.policy import policy_for
from runtime.resumption import checkpoint_of, resume
from runtime.sharding import Sharding
from runtime.shared_memory import SharedVectors
from runtime.split import Split
from runtime.state import ServerState
from runtime.training import Training
from tests.unit.data_plane import wire_of
from tests.unit.local_worker import blocks_of_length, enter, receive

EPOCHS, SAMPLES, BATCH = 3, 26, 5
PER_EPOCH = SAMPLES // BATCH
STEPS = EPOCHS * PER_EPOCH
ENVIRONMENT = TaskEnvironment(epochs=EPOCHS, batch_size=BATCH, seed=3)


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with blocks_of_length(10):
        yield


def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SAMPLES, 1, 3, 3), generator=generator)
    return Split(images, torch.arange(SAMPLES) % 4, mean=128.0, std=64.0)


def new_model() -> FlatModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)))


def new_state() -> ServerState:
    return ServerState(
        workers=1,
        parameters=new_model().parameters,
        optimizer=partial(MomentumSGD, learning_rate=0.1, momentum=0.9),
        policy=policy_for(Mode.SYNC, 1),
        survives_loss=True,
    )


def new_training(vectors: SharedVectors | None = None) -> Training:
    model = new_model()
    sharding = Sharding(SAMPLES, 1, BATCH, seed=3)
    return Training(ENVIRONMENT, sharding, split(), model, vectors)


class LocalConnection:
    """What Training asks of a connection, by the state in this process; it breaks before one step, if asked to."""

    def __init__(
        self, state: ServerState, *, breaks_at: int | None = None, answer_lost: bool = False
    ) -> None:
        self.pushed: list[int] = []
        self._state, self._breaks_at, self._answer_lost = state, breaks_at, answer_lost
        self._version = 0

    def pull(self, into: Tensor) -> int:
        self._version = receive(self._state, self._state.pull(0, SimpleQueue()), into).version
        return self._version

    def push_pull(self, gradient: Tensor, step: int, into: Tensor) -> Exchanged:
        if step == self._breaks_at and not self._answer_lost:
            raise VanishedPeer("the server vanished", SERVER)
        ticket = self._state.push(0, step, self._version, gradient)
        self.pushed.append(step)
        if step == self._breaks_at:
            raise VanishedPeer("the server vanished", SERVER)
        answer = receive(self._state, ticket, into)
        self._version = answer.version
        return exchanged(answer)

    def finish(self) -> bool:
        _, test_final = self._state.finish(0, self._version)
        return test_final


def exchanged(answer: Answer) -> Exchanged:
    return Exchanged(answer.version, answer.waited_seconds, answer.dropped, serialize_seconds=0.0)


def begin(training: Training, state: ServerState, **told: Any) -> LocalConnection:
    """As a worker does: be ready, then go on where the server says."""
    next_step = enter(state, 0, training.steps, training.next_step)
    connection = LocalConnection(state, **told)
    training.begin(connection, next_step)  # type: ignore[arg-type]  # it has what is asked of one
    return connection


@cache
def trained_through() -> tuple[Tensor, list[dict[str, Any]]]:
    state, training = new_state(), new_training()
    begin(training, state)
    records = list(training.epochs())
    return state.aggregator.parameters, records


def test_every_epoch_is_one_record_of_all_its_steps() -> None:
    state, training = new_state(), new_training()
    connection = begin(training, state)
    records = list(training.epochs())
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert {record["steps"] for record in records} == {PER_EPOCH}
    assert {record["samples"] for record in records} == {PER_EPOCH * BATCH}
    assert connection.pushed == list(range(STEPS))
    assert training.test(split(), torch.arange(SAMPLES))["version"] == STEPS
    assert not training.finish(), "it has tested the final version"
    totals = training.totals()
    assert (totals["epochs"], totals["steps"], totals["samples"]) == (EPOCHS, STEPS, STEPS * BATCH)
    assert totals["push_pull_seconds"] == pytest.approx(
        totals["serialize_seconds"] + totals["transfer_seconds"]
    )


@settings(deadline=None, max_examples=STEPS)
@given(at=st.integers(0, STEPS - 1))
def test_after_another_server_took_over_training_goes_on_as_if_nothing_had_been(at: int) -> None:
    whole, expected = trained_through()
    state, training = new_state(), new_training()
    connection = begin(training, state, breaks_at=at)
    records: list[dict[str, Any]] = []
    with pytest.raises(VanishedPeer):
        records.extend(training.epochs())
    another = new_state()
    resume(another, checkpoint_of(state, 0))
    later = begin(training, another)
    records += list(training.epochs())
    assert connection.pushed + later.pushed == list(range(STEPS))
    assert torch.equal(another.aggregator.parameters, whole)
    # The epoch in which it broke is one record
    for figure in ("epoch", "steps", "samples", "loss"):
        assert [r[figure] for r in records] == pytest.approx([r[figure] for r in expected])
    assert training.totals()["steps"] == STEPS


@settings(deadline=None, max_examples=STEPS)
@given(at=st.integers(0, STEPS - 1))
def test_a_step_whose_answer_was_lost_with_the_server_is_not_trained_again_if_the_checkpoint_has_it(
    at: int,
) -> None:
    whole, _ = trained_through()
    state, training = new_state(), new_training()
    connection = begin(training, state, breaks_at=at, answer_lost=True)
    with pytest.raises(VanishedPeer):
        list(training.epochs())
    another = new_state()
    resume(another, checkpoint_of(state, 0))
    later = begin(training, another)
    list(training.epochs())
    assert connection.pushed + later.pushed == list(range(STEPS))
    assert torch.equal(another.aggregator.parameters, whole)


@settings(deadline=None, max_examples=STEPS)
@given(at=st.integers(0, STEPS - 1))
def test_a_process_that_takes_the_place_of_a_lost_one_trains_what_is_left(at: int) -> None:
    whole, _ = trained_through()
    state = new_state()
    first = new_training()
    begin(first, state, breaks_at=at)
    with pytest.raises(VanishedPeer):
        list(first.epochs())
    state.leave(0)
    second = new_training()
    connection = begin(second, state)
    records = list(second.epochs())
    assert connection.pushed == list(range(at, STEPS))
    assert torch.equal(state.aggregator.parameters, whole)
    # Only epochs in which it trained, each with the steps that it did
    assert [record["epoch"] for record in records] == list(range(at // PER_EPOCH + 1, EPOCHS + 1))
    assert sum(record["steps"] for record in records) == STEPS - at


def test_a_worker_that_shares_memory_computes_in_it() -> None:
    wire = wire_of(new_model().length, shared=True)
    assert wire.vectors is not None
    state, training = new_state(), new_training(wire.vectors)
    begin(training, state)
    list(training.epochs())
    assert torch.equal(wire.vectors.parameters, state.aggregator.parameters)
    assert wire.vectors.gradient.any()
    assert torch.equal(state.aggregator.parameters, trained_through()[0])
