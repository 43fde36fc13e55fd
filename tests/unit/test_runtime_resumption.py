"""A server that takes another one's place, by a checkpoint as it is written and read."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contract.aggregation import Aggregation, Mode
from contract.training import OptimizerName
from runtime.checkpoint import Checkpoint, Owner, dump, load
from runtime.compression import codec_for
from runtime.ending import Ending
from runtime.exchange import News, Phase
from runtime.optimizer import optimizer_for
from runtime.policy import policy_for
from runtime.resumption import ATTEMPT, checkpoint_of, resume
from runtime.schedule import Schedule
from runtime.state import ServerState
from tests.unit.local_worker import LocalWorker, blocks_of_length, enter, receive

LENGTH, STEPS = 20, 6
OWNER = Owner("study", "experiment")


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with blocks_of_length(8):
        yield


def new_state(
    mode: Mode = Mode.SYNC,
    workers: int = 3,
    *,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    compression: Any = "none",
    survives_loss: bool = False,
    **told: Any,
) -> ServerState:
    return ServerState(
        workers=workers,
        parameters=torch.ones(LENGTH),
        optimizer=partial(optimizer_for, optimizer, learning_rate=0.1, momentum=momentum, weight_decay=1e-3),
        policy=policy_for(mode, workers, Aggregation(**told)),
        schedule=Schedule(epochs=2, name="cosine"),
        codec=codec_for(compression, 0.1),
        survives_loss=survives_loss,
    )


def started_state(workers: int = 3, steps: int = STEPS, **told: Any) -> ServerState:
    state = new_state(workers=workers, **told)
    for rank in range(workers):
        enter(state, rank, steps)
    return state


def gradient_of(rank: int, step: int) -> Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(100 * rank + step))


def written_and_read(checkpoint: Checkpoint) -> Checkpoint:
    return load(bytearray(b"".join(dump(checkpoint, OWNER))), OWNER)


def train(state: ServerState, workers: int, begin: int, end: int) -> None:
    """Steps of all workers, in turn: the order, and so every bit, is the same each time."""
    versions = dict.fromkeys(range(workers), state.version)
    for step in range(begin, end):
        tickets = [state.push(rank, step, versions[rank], gradient_of(rank, step)) for rank in range(workers)]
        for rank, ticket in enumerate(tickets):
            versions[rank] = receive(state, ticket, torch.empty(LENGTH)).version


def restarted(checkpoint: Checkpoint, next_steps: list[int], steps: int = STEPS, **told: Any) -> ServerState:
    """A new server to which workers come that push these steps next."""
    state = new_state(workers=len(next_steps), **told)
    resume(state, written_and_read(checkpoint))
    for rank, step in enumerate(next_steps):
        enter(state, rank, steps, step)
    return state


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)], ids=str)
@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC, Mode.SSP, Mode.KASYNC], ids=str)
@settings(deadline=None, max_examples=8)
@given(at=st.integers(0, STEPS))
def test_training_goes_on_with_the_bits_that_it_would_have_had(
    optimizer: OptimizerName, momentum: float, mode: Mode, at: int
) -> None:
    told: dict[str, Any] = {"mode": mode, "optimizer": optimizer, "momentum": momentum}
    told |= {Mode.SSP: {"staleness_bound": 1}, Mode.KASYNC: {"k": 3}}.get(mode, {})
    whole, first = started_state(**told), started_state(**told)
    train(whole, 3, 0, at)
    train(whole, 3, at, STEPS)
    train(first, 3, 0, at)
    checkpoint = checkpoint_of(first, attempt=0)
    # What the first server still did is lost with it
    if at < STEPS:
        train(first, 3, at, STEPS)
    second = restarted(checkpoint, [at] * 3, **told)
    train(second, 3, at, STEPS)
    assert torch.equal(second.aggregator.parameters, whole.aggregator.parameters)
    assert second.version == whole.version
    summary, expected = second.summary(), whole.summary()
    assert summary["resumed_from_version"] == checkpoint.facts["version"]
    for figure in ("gradients_processed", "staleness_histogram", "global_steps_completed", "lost_steps"):
        assert summary[figure] == expected[figure]


def test_a_checkpoint_does_not_change_as_training_goes_on() -> None:
    state = started_state(optimizer="adam")
    train(state, 3, 0, 2)
    checkpoint = checkpoint_of(state, attempt=4)
    before = b"".join(dump(checkpoint, OWNER))
    train(state, 3, 2, 4)
    assert b"".join(dump(checkpoint, OWNER)) == before
    assert checkpoint.facts[ATTEMPT] == 4


def test_a_checkpoint_from_before_training_is_one_of_the_beginning() -> None:
    """The first one is written while workers still load their data."""
    state = new_state()
    enter(state, 1, STEPS)
    second = restarted(checkpoint_of(state, 0), [0, 0, 0])
    whole = started_state()
    for each in (second, whole):
        train(each, 3, 0, STEPS)
    assert torch.equal(second.aggregator.parameters, whole.aggregator.parameters)


@settings(deadline=None)
@given(order=st.permutations([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]), cut=st.integers(0, 6))
def test_a_step_that_had_come_in_part_is_completed_and_no_block_gets_it_twice(
    order: list[tuple[int, int]], cut: int
) -> None:
    """Whatever had come of it, and whichever facts were copied before: the sum is that of an undisturbed step."""
    told: dict[str, Any] = {"momentum": 0.0}
    first = started_state(workers=2, **told)
    facts = checkpoint_of(first, 0).facts
    tickets = [first.begin(rank, 0, 0, SimpleQueue()) for rank in range(2)]
    sent = dict.fromkeys(range(2), 0)
    for rank, _ in order[:cut]:
        block = first.aggregator.blocks[sent[rank]]
        first.take(tickets[rank], sent[rank], gradient_of(rank, 0)[block], lasting=True)
        sent[rank] += 1
    second = restarted(replace(checkpoint_of(first, 0), facts=facts), [0, 0], **told)
    train(second, 2, 0, 1)
    whole = started_state(workers=2, **told)
    train(whole, 2, 0, 1)
    assert torch.equal(second.aggregator.parameters, whole.aggregator.parameters)


def test_workers_that_are_ahead_of_the_checkpoint_lose_those_steps_and_go_on_together() -> None:
    first = started_state()
    train(first, 3, 0, 2)
    checkpoint = checkpoint_of(first, 0)
    train(first, 3, 2, 5)
    second = restarted(checkpoint, [5, 4, 5])
    assert [second.next_step(rank) for rank in range(3)] == [5, 5, 5]
    train(second, 3, 5, STEPS)
    summary = second.summary()
    assert (summary["global_steps_completed"], summary["lost_steps"]) == (3, 9)


def test_in_async_mode_each_worker_goes_on_at_its_own_step() -> None:
    first = started_state(mode=Mode.ASYNC)
    for step in range(3):
        first.push(0, step, step, gradient_of(0, step))
    second = restarted(checkpoint_of(first, 0), [3, 0, 1], mode=Mode.ASYNC)
    assert [second.next_step(rank) for rank in range(3)] == [3, 0, 1]
    # A worker that knows of less than the server is told more
    third = restarted(checkpoint_of(first, 0), [0, 0, 0], mode=Mode.ASYNC)
    assert third.next_step(0) == 3


def test_staleness_while_all_train_is_that_of_the_law_however_often_the_server_was_restarted() -> None:
    """Who was given the parameters of a checkpoint is as fresh as at the start: its first gradient does not count."""
    workers, steps = 16, 120
    told: dict[str, Any] = {"mode": Mode.ASYNC, "workers": workers}
    state = started_state(steps=steps, **told)
    versions = [0] * workers
    for step in range(steps):
        if step and step % 20 == 0:
            another = new_state(**told)
            resume(another, written_and_read(checkpoint_of(state, 0)))
            for rank in range(workers):
                enter(another, rank, steps, step)
            state, versions = another, [another.version] * workers
        for rank in range(workers):
            ticket = state.push(rank, step, versions[rank], torch.zeros(LENGTH))
            assert ticket.answer is not None
            versions[rank] = ticket.answer.version
    assert state.summary()["average_gradient_staleness_all_training"] == workers - 1


@pytest.mark.parametrize("mode", [Mode.KASYNC, Mode.SSP, Mode.ASYNC], ids=str)
def test_nobody_waits_for_a_worker_that_had_done_all_its_steps(mode: Mode) -> None:
    told: dict[str, Any] = {"mode": mode}
    told |= {Mode.KASYNC: {"k": 2}, Mode.SSP: {"staleness_bound": 9}}.get(mode, {})
    first = started_state(**told)
    for step in range(STEPS):
        for rank in range(2):
            first.push(rank, step, first.version, gradient_of(rank, step))
    second = restarted(checkpoint_of(first, 0), [STEPS, STEPS, 0], **told)
    worker = LocalWorker(second, 2)
    for step in range(STEPS):
        worker.push_pull(gradient_of(2, step))
    for rank in range(3):
        second.finish(rank, second.version)
    assert second.wait_over(timeout=0)


def test_a_server_of_before_all_had_come_was_no_start_of_training() -> None:
    """Its successor waits as long as they may be on their first way."""
    first = new_state(mode=Mode.ASYNC)
    enter(first, 0, STEPS)
    second = new_state(mode=Mode.ASYNC)
    resume(second, written_and_read(checkpoint_of(first, 0)))
    assert not second.resumed


def test_a_worker_that_had_finished_need_not_come_again() -> None:
    first = started_state(mode=Mode.ASYNC)
    for step in range(STEPS):
        first.push(0, step, step, gradient_of(0, step))
    first.finish(0, tested_version=STEPS)
    second = new_state(mode=Mode.ASYNC)
    assert not second.resumed
    resume(second, written_and_read(checkpoint_of(first, 0)))
    assert second.resumed
    assert second.wait_started(timeout=0) == [1, 2]
    for rank in (1, 2):
        enter(second, rank, STEPS)
    assert second.wait_started(timeout=0) == []
    for rank in (1, 2):
        for step in range(STEPS):
            second.push(rank, step, second.version, gradient_of(rank, step))
    for rank in (1, 2):
        assert not second.wait_over(timeout=0)
        # The first one tested another version
        assert second.finish(rank, 3 * STEPS) == (3 * STEPS, rank == 2)
    assert second.wait_over(timeout=0)
    assert second.ending is None


def test_steps_that_were_skipped_before_stay_lost() -> None:
    first = started_state(workers=2, survives_loss=True)
    first.leave(0)
    for step in range(2):
        first.push(1, step, step, gradient_of(1, step))
    assert enter(first, 0, STEPS) == 2
    second = restarted(checkpoint_of(first, 0), [2, 2], survives_loss=True)
    train(second, 2, 2, STEPS)
    summary = second.summary()
    assert summary["lost_steps"] == 2
    assert (summary["lost_workers"], summary["rejoined_workers"]) == ([0], [0])


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC, Mode.SSP, Mode.KSYNC], ids=str)
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_restarted_server_does_not_wait_for_a_worker_that_was_away(mode: Mode, comes_back: bool) -> None:
    told: dict[str, Any] = {"mode": mode, "survives_loss": True}
    told |= {Mode.SSP: {"staleness_bound": 1}, Mode.KSYNC: {"k": 3}}.get(mode, {})
    first = started_state(**told)
    train(first, 3, 0, 2)
    first.leave(2)
    second = new_state(**told)
    resume(second, written_and_read(checkpoint_of(first, 0)))
    for rank in (0, 1):
        assert second.wait_started(timeout=0)
        enter(second, rank, STEPS, 2)
    assert second.wait_started(timeout=0) == []
    assert second.interval()["workers_away"] == 1
    train(second, 2, 2, 4)
    if comes_back:
        assert enter(second, 2, STEPS) == (4 if mode in {Mode.SYNC, Mode.KSYNC} else 2)
        second.leave(2)
    train(second, 2, 4, STEPS)
    for rank in (0, 1):
        second.finish(rank, second.version)
    assert second.wait_over(timeout=0)
    summary = second.summary()
    assert summary["lost_workers"] == ([2, 2] if comes_back else [2])
    assert summary["lost_steps"] == STEPS - 2


def test_where_all_were_away_the_first_one_that_comes_back_goes_on() -> None:
    first = started_state(workers=2, survives_loss=True)
    train(first, 2, 0, 2)
    for rank in range(2):
        first.leave(rank)
    second = new_state(workers=2, survives_loss=True)
    resume(second, written_and_read(checkpoint_of(first, 0)))
    assert second.wait_started(timeout=0) == [0, 1]
    assert enter(second, 1, STEPS) == 2
    assert second.wait_started(timeout=0) == []


def test_a_worker_that_was_lost_with_its_server_is_given_up_after_a_while() -> None:
    first = started_state(survives_loss=True)
    train(first, 3, 0, 2)
    second = new_state(survives_loss=True)
    resume(second, written_and_read(checkpoint_of(first, 0)))
    assert second.start_without_the_missing() == [], "nobody is there yet"
    for rank in (0, 1):
        enter(second, rank, STEPS, 2)
    assert second.wait_started(timeout=0) == [2]
    assert second.start_without_the_missing() == [0, 1]
    train(second, 2, 2, 4)
    assert enter(second, 2, STEPS) == 4, "it was only late"
    train(second, 3, 4, STEPS)
    summary = second.summary()
    assert (summary["lost_workers"], summary["rejoined_workers"]) == ([2], [2])
    assert summary["lost_steps"] == 2


@pytest.mark.parametrize("survives_loss", [False, True])
def test_training_does_not_begin_without_a_worker_that_never_came(survives_loss: bool) -> None:
    first = new_state(survives_loss=survives_loss)
    enter(first, 0, STEPS)
    assert first.start_without_the_missing() == []
    second = new_state(survives_loss=survives_loss)
    resume(second, written_and_read(checkpoint_of(first, 0)))
    enter(second, 0, STEPS)
    assert second.start_without_the_missing() == []
    assert second.wait_started(timeout=0) == [1, 2]


def test_a_server_whose_workers_had_all_finished_has_nothing_to_wait_for() -> None:
    first = started_state(workers=2, mode=Mode.ASYNC, survives_loss=True)
    for step in range(STEPS):
        first.push(0, step, step, gradient_of(0, step))
    first.finish(0, tested_version=STEPS)
    first.leave(1)
    assert first.wait_over(timeout=0)
    second = new_state(workers=2, mode=Mode.ASYNC, survives_loss=True)
    resume(second, written_and_read(checkpoint_of(first, 0)))
    assert second.wait_started(timeout=0) == []
    assert second.wait_over(timeout=0)
    assert second.summary()["lost_steps"] == STEPS


def test_a_restarted_server_notices_a_loss_like_any_other() -> None:
    first = started_state()
    train(first, 3, 0, 2)
    second = restarted(checkpoint_of(first, 0), [2, 2, 2])
    assert second.watch(1, News(Phase.JOINING), timeout=0) == News(Phase.TRAINING)
    second.leave(1)
    assert second.ending == Ending(
        "worker 1 vanished: its connection closed after 2 of 6 steps", lost_peer="worker 1"
    )


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC], ids=str)
@pytest.mark.parametrize("compression", ["int8", "topk"])
def test_with_compression_workers_are_given_the_checkpoints_parameters_whole(
    mode: Mode, compression: str
) -> None:
    """Not what the encoding leaves of their difference to those that training began with."""
    told = {"mode": mode, "compression": compression}
    first = started_state(**told)
    train(first, 3, 0, 4)
    checkpoint = checkpoint_of(first, 0)
    second = restarted(checkpoint, [4, 4, 4], **told)
    for rank in range(3):
        given = LocalWorker(second, rank, next_step=4).parameters
        assert torch.equal(given, checkpoint.tensors["parameters"])
        assert torch.equal(second.copies.held[rank], given)
