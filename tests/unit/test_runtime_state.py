"""The server's core without connections: barriers, staleness, membership, losses, endings."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import count
from queue import SimpleQueue
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName, images_of
from runtime.dataset import load_dataset
from runtime.ending import Ending
from runtime.exchange import Answer, News, Phase, Ticket
from runtime.membership import AlreadyThere, InvalidMessage, TooEarly
from runtime.model import build_model
from runtime.optimizer import MomentumSGD
from runtime.parameters import FlatModel
from runtime.policy import Async, Push, Verdict, policy_for
from runtime.schedule import Schedule
from runtime.sharding import Sharding
from runtime.split import Data
from runtime.state import ServerState, TrainingEnded
from tests.unit.local_worker import LocalWorker, blocks_of_length, enter, receive

PATIENCE = 60.0
LENGTH = 4
DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)


def new_state(
    mode: Mode = Mode.SYNC,
    workers: int = 3,
    *,
    clock: Callable[[], float] | None = None,
    schedule: Schedule | None = None,
    survives_loss: bool = False,
    **aggregation: Any,
) -> ServerState:
    return ServerState(
        workers=workers,
        parameters=torch.zeros(LENGTH),
        optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
        policy=policy_for(mode, workers, Aggregation(**aggregation)),
        schedule=schedule,
        survives_loss=survives_loss,
        clock=clock or (lambda: 0.0),
    )


def started_state(mode: Mode = Mode.SYNC, workers: int = 3, steps: int = 2, **settings: Any) -> ServerState:
    state = new_state(mode, workers, **settings)
    for rank in range(workers):
        enter(state, rank, steps)
    return state


def push(state: ServerState, rank: int, step: int, version: int, value: float = 1.0) -> Ticket:
    return state.push(rank, step, version, torch.full((state.length,), value))


def values(state: ServerState) -> list[float]:
    return state.aggregator.parameters.tolist()


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(4)))
def test_the_barrier_opens_exactly_when_the_last_gradient_comes(order: list[int]) -> None:
    state = started_state(workers=4)
    tickets = [push(state, rank, 0, 0, float(rank)) for rank in order[:-1]]
    # Given all but one gradient, nothing was applied, and nobody goes on
    assert state.version == 0
    assert values(state) == [0.0] * LENGTH
    assert all(ticket.answer is None and ticket.ready.empty() for ticket in tickets)
    # When the last one comes, all go on with their average
    tickets.append(push(state, order[-1], 0, 0, float(order[-1])))
    for ticket in tickets:
        given_back = torch.empty(LENGTH)
        assert receive(state, ticket, given_back).version == 1
        assert given_back.tolist() == [-1.5] * LENGTH


@settings(deadline=None)
@given(data=st.data(), workers=st.integers(1, 6))
def test_async_total_staleness_is_what_the_law_says_whatever_the_speeds(
    data: st.DataObject, workers: int
) -> None:
    # Given workers that each always have one gradient under way, and push in any order
    steps = 12
    state = started_state(Mode.ASYNC, workers, steps)
    versions, done = dict.fromkeys(range(workers), 0), dict.fromkeys(range(workers), 0)
    updates, expected = 0, 0
    while max(done.values()) < steps:
        rank = data.draw(st.integers(0, workers - 1))
        expected += updates - versions[rank]
        answer = push(state, rank, done[rank], versions[rank]).answer
        done[rank] += 1
        updates += 1
        assert answer == Answer(updates)
        versions[rank] = updates
    # Then the law holds but for what is still under way: each update ages all other workers' gradients by one
    under_way = sum(updates - version for version in versions.values())
    assert expected + under_way == (workers - 1) * updates
    summary = state.summary()
    assert summary["average_gradient_staleness"] * updates == pytest.approx(expected)


def test_staleness_counts_the_updates_between_pull_and_push() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=3)
    for step in range(3):
        push(state, 0, step, version=step)
    push(state, 1, 0, version=0)
    summary = state.summary()
    assert summary["staleness_histogram"] == {0: 3, 3: 1}
    assert summary["average_gradient_staleness"] == 0.75


def test_all_training_is_from_everyones_first_push_to_anyones_last() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=3)
    for rank, step, version in [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 2), (0, 2, 3), (1, 2, 4)]:
        push(state, rank, step, version=version)
    summary = state.summary()
    assert summary["staleness_histogram"] == {0: 1, 1: 5}
    # Neither the two first pushes nor the one after worker 0's last
    assert summary["gradients_all_training"] == 3
    assert summary["average_gradient_staleness_all_training"] == 1


def test_the_time_while_all_train_is_from_everyones_first_push_to_anyones_last() -> None:
    now = [100.0]
    state = started_state(Mode.ASYNC, workers=2, steps=3, clock=lambda: now[0])
    pushes = [(1, 0, 0, 0), (4, 1, 0, 0), (5, 0, 1, 1), (7, 1, 1, 2), (10, 0, 2, 3), (50, 1, 2, 4)]
    for seconds, rank, step, version in pushes:
        now[0] = 100.0 + seconds
        push(state, rank, step, version=version)
    summary = state.summary()
    assert (summary["updates_all_training"], summary["all_training_seconds"]) == (3, 6.0)
    assert summary["mean_step_seconds"] == 50 / 6


def test_what_a_lost_worker_held_up_is_not_of_the_time_while_all_train() -> None:
    now = [100.0]
    state = started_state(workers=2, steps=9, survives_loss=True, clock=lambda: now[0])
    for step in range(3):
        now[0] += 1
        for rank in range(2):
            push(state, rank, step, version=step)
    before = state.summary()["all_training_seconds"]
    push(state, 0, 3, version=3)
    now[0] += 60
    state.leave(1)
    assert state.version == 4
    assert state.summary()["all_training_seconds"] == before == 2.0


def test_times_come_from_the_clock_it_is_given() -> None:
    now = [100.0]
    state = started_state(Mode.ASYNC, workers=1, steps=4, clock=lambda: now[0])
    for step in range(4):
        now[0] += 0.5
        push(state, 0, step, version=step)
    assert state.interval()["updates_per_second"] == 2.0
    now[0] += 1
    state.finish(0, tested_version=4)
    summary = state.summary()
    assert summary["total_training_time_seconds"] == 3.0
    assert summary["mean_step_seconds"] == 0.5
    assert summary["updates_per_second"] == 2.0
    assert state.interval() == {
        "version": 4,
        "workers_away": 0,
        "interval_seconds": 1.0,
        "updates": 0,
        "updates_per_second": 0.0,
        "gradients": 0,
        "mean_staleness": None,
        "max_staleness": None,
    }


def test_a_gradient_is_held_from_its_arrival_to_the_barrier() -> None:
    now = [10.0]
    state = started_state(workers=2, clock=lambda: now[0])
    first = push(state, 0, 0, 0)
    now[0] = 13.0
    last = push(state, 1, 0, 0)
    assert (first.answer, last.answer) == (Answer(1, waited_seconds=3.0), Answer(1))
    assert state.summary()["barrier_wait_histogram"] == {0.001: 1, 4.096: 1}


def test_a_worker_waits_for_the_last_block_that_others_push() -> None:
    now = [10.0]
    with blocks_of_length(2):
        state = started_state(workers=2, clock=lambda: now[0])
        first, last = push(state, 0, 0, 0), begin(state, 1, 0, 0)
        for seconds, index in [(13.0, 0), (16.0, 1)]:
            now[0] = seconds
            assert first.answer is None or state.summary()["barrier_wait_histogram"] == {}, "it still waits"
            state.take(last, index, torch.ones(2), lasting=True)
        assert (first.answer, last.answer) == (Answer(1, waited_seconds=6.0), Answer(1))
        assert state.summary()["barrier_wait_histogram"] == {0.001: 1, 8.192: 1}
        # However often one asks, and whenever the next step begins
        now[0] = 20.0
        begin(state, 0, 1, 1)
        assert state.summary()["barrier_wait_histogram"] == {0.001: 1, 8.192: 1}


def test_in_ssp_a_worker_waits_for_the_last_block_that_it_was_promised() -> None:
    now = [10.0]
    with blocks_of_length(2):
        state = started_state(Mode.SSP, workers=2, staleness_bound=0, clock=lambda: now[0])
        fast, slow = push(state, 0, 0, 0), begin(state, 1, 0, 0)
        for seconds, index in [(13.0, 0), (16.0, 1)]:
            now[0] = seconds
            state.take(slow, index, torch.ones(2), lasting=True)
        assert (fast.answer, slow.answer) == (Answer(2, waited_seconds=6.0), Answer(2))


def test_in_async_mode_nobody_waits_however_long_applying_takes() -> None:
    ticks = count()
    with blocks_of_length(2):
        state = started_state(Mode.ASYNC, workers=1, clock=lambda: float(next(ticks)))
        assert push(state, 0, 0, 0).answer == Answer(1, waited_seconds=0.0)


def test_adding_up_is_part_of_applying() -> None:
    ticks = count()
    state = started_state(workers=3, clock=lambda: float(next(ticks)))
    for rank, seconds in [(0, 1.0), (1, 2.0), (2, 3.0)]:
        push(state, rank, 0, 0)
        assert state.summary()["apply_seconds"] == seconds


@pytest.mark.parametrize("lock", ["state", "block"])
def test_waiting_for_a_lock_is_counted_whichever_it_is(lock: str) -> None:
    state = started_state(Mode.ASYNC, workers=1, clock=time.monotonic)
    held = state._changed if lock == "state" else state.aggregator._blocks[0].changed
    with ThreadPoolExecutor(1) as pool:
        with held:
            pushed = pool.submit(push, state, 0, 0, 0)
            time.sleep(0.2)
        assert pushed.result(PATIENCE).answer == Answer(1)
    assert 0 < state.summary()["lock_seconds"] < PATIENCE


def test_training_starts_when_all_workers_are_ready() -> None:
    state = new_state(workers=2)
    for rank in range(2):
        state.join(rank)
        state.attend(rank)
    state.ready(1, LENGTH, steps=1)
    assert state.wait_started(timeout=0) == [0]
    with pytest.raises(TooEarly, match=r"workers \[0\] are not there"):
        state.pull(1, SimpleQueue())
    assert state.watch(1, News(Phase.JOINING), timeout=0) == News(Phase.JOINING)
    state.ready(0, LENGTH, steps=1)
    assert state.wait_started(timeout=0) == []
    assert state.watch(0, News(Phase.JOINING), timeout=0) == News(Phase.TRAINING)
    assert LocalWorker(state, 0).parameters.tolist() == [0.0] * LENGTH


def test_who_is_ready_must_have_come_and_be_heard_of() -> None:
    state = new_state(workers=2)
    with pytest.raises(TooEarly, match="rank 0 has not joined; expected Join first"):
        state.attend(0)
    state.join(0)
    with pytest.raises(TooEarly, match="rank 0 does not attend; expected Attend first"):
        state.ready(0, LENGTH, steps=1)


def test_a_worker_may_join_again_until_it_attends() -> None:
    state = new_state(workers=2)
    state.join(0)
    state.join(0)
    state.attend(0)
    with pytest.raises(AlreadyThere, match="rank 0 is taken"):
        state.join(0)
    with pytest.raises(AlreadyThere, match="rank 0 is taken"):
        state.attend(0)


@pytest.mark.parametrize(
    ("length", "steps", "next_step", "reason"),
    [
        (LENGTH + 1, 5, 0, "a model of 5 parameters; expected 4"),
        (LENGTH, 6, 0, "6 steps; expected 5, as every other worker"),
        (LENGTH, 5, 6, "next step 6; expected 0 to 5"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused(length: int, steps: int, next_step: int, reason: str) -> None:
    state = new_state(workers=2)
    enter(state, 0, steps=5)
    state.join(1)
    state.attend(1)
    with pytest.raises(InvalidMessage, match=reason):
        state.ready(1, length, steps, next_step)
    # And it may say so better
    state.ready(1, LENGTH, 5)
    assert state.wait_started(timeout=0) == []


@pytest.mark.parametrize("rank", [-1, 2, 2**32 - 1])
def test_a_rank_that_does_not_exist_is_refused(rank: int) -> None:
    with pytest.raises(InvalidMessage, match=f"rank {rank}; expected 0 to 1"):
        new_state(workers=2).join(rank)


def begin(state: ServerState, rank: int, step: int, version: int) -> Ticket:
    return state.begin(rank, step, version, SimpleQueue())


def test_pushes_that_are_not_the_next_one_are_refused_and_change_nothing() -> None:
    state = started_state(Mode.ASYNC, workers=1, steps=2)
    push(state, 0, 0, version=0)
    with pytest.raises(InvalidMessage, match="step 2 of 2 steps; expected step 1"):
        begin(state, 0, 2, 1)
    with pytest.raises(InvalidMessage, match="version 2 is not there yet; expected at most 1"):
        begin(state, 0, 1, 2)
    with pytest.raises(TooEarly, match="rank 7 has not joined"):
        begin(state, 7, 0, 0)
    assert state.version == 1
    assert values(state) == [-1.0] * LENGTH


def test_a_step_cannot_begin_while_the_one_before_is_held() -> None:
    state = started_state(Mode.SYNC, workers=2, steps=3)
    held = push(state, 0, 0, version=0)
    with pytest.raises(InvalidMessage, match="worker 0: step 1 begins before step 0 was answered"):
        begin(state, 0, 1, 0)
    push(state, 1, 0, version=0)
    assert held.answer == Answer(1)
    begin(state, 0, 1, 1)


def test_a_step_cannot_begin_while_blocks_of_the_one_before_are_missing() -> None:
    with blocks_of_length(2):
        state = started_state(Mode.ASYNC, workers=1, steps=3)
        ticket = begin(state, 0, 0, 0)
        state.take(ticket, 0, torch.ones(2))
        assert ticket.answer == Answer(1)
        with pytest.raises(InvalidMessage, match="worker 0: step 1 begins before step 0 was answered"):
            begin(state, 0, 1, 1)
        state.take(ticket, 1, torch.ones(2))
        begin(state, 0, 1, 1)


def test_a_repeated_push_is_applied_once_and_answered_the_current_parameters() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=2)
    push(state, 0, 0, version=0, value=5.0)
    push(state, 1, 0, version=0, value=2.0)
    # When the answer to worker 0 was lost, and it pushes again
    again, given_back = push(state, 0, 0, version=0, value=5.0), torch.empty(LENGTH)
    # Then nothing was added, and it goes on from what there is now
    assert receive(state, again, given_back).version == 1
    assert given_back.tolist() == values(state) == [-7.0] * LENGTH
    push(state, 0, 1, version=1)
    assert values(state) == [-8.0] * LENGTH
    summary = state.summary()
    assert (summary["repeated_pushes"], summary["gradients_processed"]) == (1, 3)


def test_a_push_repeated_at_the_barrier_waits_for_the_same_answer() -> None:
    state = started_state(Mode.SYNC, workers=2)
    lost: SimpleQueue[int | None] = SimpleQueue()
    first = state.begin(0, 0, 0, lost)
    state.take(first, 0, torch.full((LENGTH,), 3.0))
    again = push(state, 0, 0, version=0, value=3.0)
    assert again is first
    assert first.answer is None
    # Who waits at the old connection is told to give up
    assert lost.get_nowait() is None
    push(state, 1, 0, version=0, value=5.0)
    assert receive(state, again, torch.empty(LENGTH)).version == 1
    assert values(state) == [-4.0] * LENGTH
    assert lost.empty()
    assert state.summary()["gradients_processed"] == 2


def test_a_push_that_is_older_than_the_last_one_is_answered_what_there_is_now() -> None:
    state = started_state(Mode.ASYNC, workers=1, steps=3)
    for step in range(2):
        push(state, 0, step, version=step)
    given_back = torch.empty(LENGTH)
    assert receive(state, push(state, 0, 0, version=0, value=9.0), given_back).version == 2
    assert given_back.tolist() == values(state) == [-2.0] * LENGTH


def test_ksync_drops_a_late_gradient_and_says_that_it_will() -> None:
    state = started_state(Mode.KSYNC, workers=3, k=2)
    first = push(state, 0, 0, 0, value=1.0)
    push(state, 1, 0, version=0, value=3.0)
    assert values(state) == [-2.0] * LENGTH
    assert first.answer == Answer(1)
    # Then the third worker learns that it computes in vain, the others do not
    known = News(Phase.TRAINING)
    assert state.watch(2, known, timeout=0) == News(Phase.TRAINING, superseded=1)
    assert state.watch(0, known, timeout=0) == known
    # When its gradient comes all the same, it goes on from the new version at once
    late, given_back = push(state, 2, 0, 0, value=100.0), torch.empty(LENGTH)
    assert receive(state, late, given_back) == Answer(1, dropped=True)
    assert given_back.tolist() == [-2.0] * LENGTH
    summary = state.summary()
    assert (summary["dropped_gradients"], summary["gradients_processed"]) == (1, 2)


def test_who_has_begun_to_push_counts_and_is_waited_for() -> None:
    """Of several blocks the first one decides: gradients are added as they come, none is kept until it is whole."""
    with blocks_of_length(2):
        state = started_state(Mode.BACKUP, workers=3, backup_workers=1)
        slow = begin(state, 2, 0, 0)
        state.take(slow, 0, torch.full((2,), 3.0), lasting=True)
        first, late = push(state, 0, 0, 0, value=1.0), push(state, 1, 0, 0, value=100.0)
        # The two that were whole first are not those that count: rank 2 had begun before
        assert (first.answer, late.answer) == (Answer(1), Answer(1, dropped=True))
        assert slow.answer is not None
        assert not slow.answer.dropped
        # And both wait for the rest of it
        assert [ready_now(ticket) for ticket in (first, late)] == [[0], [0]]
        assert values(state) == [-2.0, -2.0, 0.0, 0.0]
        state.take(slow, 1, torch.full((2,), 3.0), lasting=True)
        assert [ready_now(ticket) for ticket in (first, late)] == [[1], [1]]
        assert values(state) == [-2.0] * LENGTH


def test_dc_asgd_compensates_a_gradient_for_what_happened_since_its_pull() -> None:
    state = started_state(Mode.DC_ASGD, workers=2, dc_lambda=0.5)
    first, second = (LocalWorker(state, rank) for rank in range(2))
    first.push_pull(torch.full((LENGTH,), 2.0))
    assert values(state) == [-2.0] * LENGTH
    # Worker 1 pulled zeros, which are -2 by now: 3 + 0.5·3·3·(-2 - 0) = -6
    second.push_pull(torch.full((LENGTH,), 3.0))
    assert values(state) == [4.0] * LENGTH
    # It was given these 4, and nobody changed them: 1 + 0.5·1·1·0 = 1
    second.push_pull(torch.full((LENGTH,), 1.0))
    assert values(state) == [3.0] * LENGTH


def test_a_schedule_counts_epochs_of_gradients_whoever_sent_them() -> None:
    schedule = Schedule(epochs=2, name="step", decay_epochs=1, decay_factor=0.5)
    # Given 2 workers with 2 steps each: an epoch is two gradients, one update in sync, two in async
    state = started_state(Mode.ASYNC, workers=2, steps=2, schedule=schedule)
    steps = [(0, 0), (1, 0), (0, 1), (1, 1)]
    seen = []
    for rank, step in steps:
        push(state, rank, step, version=0)
        seen += values(state)[:1]
    assert seen == [-1.0, -2.0, -2.5, -3.0]
    state = started_state(Mode.SYNC, workers=2, steps=2, schedule=schedule)
    for version in range(2):
        for rank in range(2):
            push(state, rank, version, version)
    assert values(state) == [-1.5] * LENGTH


SCHEDULES = {
    "cosine": Schedule(epochs=2, name="cosine"),
    "step": Schedule(epochs=2, name="step", decay_epochs=0.5, decay_factor=0.5),
    "warm-up": Schedule(epochs=2, warmup_epochs=1.5),
}


def factors_of_sync(schedule: Schedule, lost_at: Mapping[int, int]) -> list[float]:
    """The factor of each update of 4 workers and 10 steps; `lost_at`: rank → the step before which it is lost."""
    state = started_state(workers=4, steps=10, schedule=schedule, survives_loss=True)
    factors: list[float] = []
    for step in range(10):
        for rank in [rank for rank, at in lost_at.items() if at == step]:
            state.leave(rank)
        before = values(state)[0]
        for rank in [rank for rank in range(4) if lost_at.get(rank, 10) > step]:
            push(state, rank, step, version=step)
        factors.append(before - values(state)[0])
    return factors


@pytest.mark.parametrize("lost_at", [{2: 0, 3: 0}, {1: 3}, {0: 2, 3: 7}], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_schedule_goes_to_its_end_whoever_is_lost(schedule: Schedule, lost_at: Mapping[int, int]) -> None:
    undisturbed = factors_of_sync(schedule, {})
    assert factors_of_sync(schedule, lost_at) == pytest.approx(undisturbed, abs=1e-5)


class Recorded(Schedule):
    """A constant one that remembers from which epoch to which each update went."""

    def factor(self, begins: float, ends: float) -> float:
        self.spans.append((begins, ends))
        return 1.0

    @cached_property
    def spans(self) -> list[tuple[float, float]]:
        return []


@settings(deadline=None)
@given(
    data=st.data(),
    mode=st.sampled_from([Mode.SYNC, Mode.ASYNC, Mode.SSP, Mode.KASYNC]),
    resumes=st.booleans(),
)
def test_training_never_goes_back_and_ends_at_the_last_epoch_whoever_comes_and_goes(
    data: st.DataObject, mode: Mode, resumes: bool
) -> None:
    workers, steps = 3, 4
    told = {Mode.SSP: {"staleness_bound": 1}, Mode.KASYNC: {"k": 2}}.get(mode, {})
    schedule = Recorded(epochs=2)
    state = started_state(mode, workers, steps, schedule=schedule, survives_loss=True, **told)
    there, held = set(range(workers)), dict[int, Ticket]()
    turns = data.draw(
        st.lists(st.tuples(st.sampled_from("ppppplr"), st.integers(0, workers - 1)), max_size=30)
    )
    # In the end, all who are there do what is left, and at least one is
    end, to_come = len(turns) + 1, False
    turns += [("r", 0)] + [("p", rank) for _ in range(steps) for rank in range(workers)] * 2
    for number, (turn, rank) in enumerate(turns):
        if number == end:
            to_come = any(state.next_step(each) < steps for each in there)
        if resumes and number == 15:
            facts = state.facts()
            state = new_state(mode, workers, schedule=schedule, survives_loss=True, **told)
            state.resume(json.loads(json.dumps(facts)))
            for each in there:
                enter(state, each, steps)
            held.clear()
        if turn == "l" and rank in there:
            state.leave(rank)
            there.discard(rank)
            held.pop(rank, None)
        elif turn == "r" and rank not in there:
            enter(state, rank, steps)
            there.add(rank)
        elif turn == "p" and rank in there:
            waits = rank in held and held[rank].answer is None
            if not waits and state.next_step(rank) < steps:
                held[rank] = push(state, rank, state.next_step(rank), state.version)
    moments = [moment for span in schedule.spans for moment in span]
    assert moments == sorted(moments)
    assert not to_come or moments[-1] == pytest.approx(2)


def test_finish_before_the_last_step_is_refused() -> None:
    state = started_state(Mode.ASYNC, workers=1, steps=2)
    push(state, 0, 0, version=0)
    with pytest.raises(TooEarly, match="finished at step 1; expected 2"):
        state.finish(0, tested_version=1)


@pytest.mark.parametrize(("tested", "test_final"), [((2, 2), False), ((1, 2), True), ((1, 1), True)])
def test_the_last_worker_tests_the_final_version_unless_all_did(
    tested: tuple[int, int], test_final: bool
) -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=1)
    for rank in range(2):
        push(state, rank, 0, version=0)
    assert state.finish(0, tested[0]) == (2, False)
    assert not state.wait_over(timeout=0)
    assert state.finish(1, tested[1]) == (2, test_final)
    assert state.wait_over(timeout=0)
    assert state.ending is None


@pytest.mark.parametrize("returns", [False, True])
def test_a_worker_that_finishes_again_is_told_the_same(returns: bool) -> None:
    """The answer to the first time was lost: it asks again, perhaps on a new connection, with newer parameters."""
    state = started_state(Mode.ASYNC, workers=2, steps=1, survives_loss=True)
    for rank in range(2):
        push(state, rank, 0, version=0)
    first = [state.finish(rank, tested_version=1 + rank) for rank in range(2)]
    assert first == [(2, False), (2, True)]
    again = []
    for rank in range(2):
        if returns:
            state.leave(rank)
            assert enter(state, rank, steps=1, next_step=1) == 1
        again.append(state.finish(rank, tested_version=2))
    assert again == first
    assert state.wait_over(timeout=0)
    assert state.summary()["rejoined_workers"] == []


def test_a_worker_that_finishes_again_while_others_train_has_not_been_lost() -> None:
    state = started_state(workers=2, steps=1, survives_loss=True)
    for rank in range(2):
        push(state, rank, 0, version=0)
    state.finish(0, tested_version=1)
    state.leave(0)
    assert enter(state, 0, steps=1, next_step=1) == 1
    assert state.finish(0, tested_version=1) == (1, False)
    assert state.finish(1, tested_version=1) == (1, False)
    assert (state.summary()["lost_workers"], state.summary()["rejoined_workers"]) == ([], [])


def test_a_worker_that_vanishes_ends_the_wait_of_all_others() -> None:
    state = started_state(workers=3, steps=7)
    waiting = [push(state, rank, 0, 0) for rank in (0, 2)]
    state.leave(1)
    assert [ticket.ready.get_nowait() for ticket in waiting] == [None, None]
    with pytest.raises(TrainingEnded, match=r"worker 1 vanished: .* after 0 of 7 steps"):
        begin(state, 0, 0, 0)
    assert state.ending is not None
    assert state.ending.lost_peer == "worker 1"
    assert state.watch(0, News(Phase.TRAINING), timeout=0) == News(Phase.ENDED)
    assert state.watch(1, News(Phase.TRAINING), timeout=0) is None
    with pytest.raises(TrainingEnded):
        state.join(1)


def test_a_worker_that_vanishes_before_training_ends_it() -> None:
    state = new_state(workers=2)
    enter(state, 0, steps=1)
    state.leave(0)
    assert state.ending == Ending(
        "worker 0 vanished: its connection closed before training began", lost_peer="worker 0"
    )


def test_the_first_reason_stays() -> None:
    state = started_state(workers=2)
    state.end(Ending("the first"))
    state.leave(0)
    assert state.ending == Ending("the first")


def test_a_worker_that_has_finished_may_leave() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=1)
    push(state, 0, 0, version=0)
    state.finish(0, tested_version=1)
    state.leave(0)
    push(state, 1, 0, version=0)
    state.finish(1, tested_version=2)
    state.end(Ending("too late to fail"))
    assert state.ending is None


def test_a_pull_waits_for_the_blocks_of_the_version_that_it_is_told() -> None:
    """Else, with compression, all others would be sent the blocks as they were before it."""
    with blocks_of_length(2):
        state = started_state(Mode.SYNC, workers=2, steps=2)
        tickets = [begin(state, rank, 0, 0) for rank in range(2)]
        for rank, index in [(0, 0), (0, 1), (1, 0)]:
            state.take(tickets[rank], index, torch.ones(2), lasting=True)
        ready: SimpleQueue[int | None] = SimpleQueue()
        pulled = state.pull(0, ready)
        assert pulled.answer is not None
        assert pulled.answer.version == 1
        assert (ready.get_nowait(), ready.empty()) == (0, True)
        state.take(tickets[1], 1, torch.ones(2), lasting=True)
        assert ready.get_nowait() == 1


def ready_now(ticket: Ticket) -> list[int | None]:
    """The blocks that may leave, and have not."""
    blocks = []
    while not ticket.ready.empty():
        blocks.append(ticket.ready.get_nowait())
    return blocks


def test_in_ssp_no_block_leaves_without_the_gradient_that_let_its_worker_go_on() -> None:
    with blocks_of_length(2):
        state = started_state(Mode.SSP, workers=2, staleness_bound=0)
        fast, slow = push(state, 0, 0, version=0, value=1.0), begin(state, 1, 0, 0)
        assert fast.answer is None
        # When the first block of the slow worker's gradient is there
        state.take(slow, 0, torch.full((2,), 10.0), lasting=True)
        # Then the fast one may go on, and has that block
        assert fast.answer == Answer(2)
        assert ready_now(fast) == [0]
        # And the other one when that is there, too
        state.take(slow, 1, torch.full((2,), 10.0), lasting=True)
        assert ready_now(fast) == [1]
        assert values(state) == [-11.0] * LENGTH


def test_in_ssp_no_block_leaves_between_the_decision_and_the_gradient_itself() -> None:
    state = started_state(Mode.SSP, workers=2, staleness_bound=0)
    fast, slow = push(state, 0, 0, version=0), begin(state, 1, 0, 0)
    with patch.object(state.aggregator, "add", return_value=False):
        state.take(slow, 0, torch.ones(LENGTH), lasting=True)
    assert fast.answer == Answer(2)
    assert ready_now(fast) == []


@pytest.mark.parametrize(("bound", "leaves"), [(1, [0]), (2, [0, 1])])
def test_in_ssp_who_need_not_wait_sees_what_the_bound_promises(bound: int, leaves: list[int]) -> None:
    with blocks_of_length(2):
        state = started_state(Mode.SSP, workers=2, steps=3, staleness_bound=bound)
        slow = begin(state, 1, 0, 0)
        state.take(slow, 0, torch.ones(2), lasting=True)
        assert ready_now(push(state, 0, 0, version=1)) == [0, 1], "one step ahead: nothing is promised yet"
        # At two steps, a bound of one promises the first step of everybody
        second = push(state, 0, 1, version=2)
        assert second.answer == Answer(3)
        assert ready_now(second) == leaves
        state.take(slow, 1, torch.ones(2), lasting=True)
        assert leaves + ready_now(second) == [0, 1]


class Deliberating(Async):
    """A policy that takes its time over a push."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    def push(self, push: Push, version: int) -> Verdict:
        self.asked.set()
        assert self.go_on.wait(PATIENCE)
        return super().push(push, version)


def test_a_block_that_comes_by_another_connection_while_the_first_is_decided_on_is_not_lost() -> None:
    with blocks_of_length(2), ThreadPoolExecutor(2) as pool:
        state, policy = new_state(Mode.ASYNC, workers=1), Deliberating()
        state._rounds._policy = policy
        enter(state, 0, steps=1)
        ticket = begin(state, 0, 0, 0)
        first = pool.submit(state.take, ticket, 0, torch.ones(2))
        assert policy.asked.wait(PATIENCE)
        # Given the worker has lost that connection, and goes on with the next block
        second = pool.submit(state.take, ticket, 1, torch.ones(2))
        with pytest.raises(TimeoutError):
            second.result(0.05)
        policy.go_on.set()
        first.result(PATIENCE)
        second.result(PATIENCE)
        assert values(state) == [-1.0] * LENGTH


# Losses that the others survive.


def test_the_others_go_on_without_a_lost_worker_and_what_it_pushed_does_not_count() -> None:
    state = started_state(workers=3, steps=2, survives_loss=True)
    push(state, 0, 0, 0, value=90.0)
    tickets = [push(state, 1, 0, 0, value=1.0)]
    state.leave(2)
    assert state.ending is None
    assert state.version == 1, "the barrier opens for the two that are left"
    state.leave(0)
    tickets += [push(state, 1, 1, 1, value=1.0)]
    assert [ticket.answer is not None for ticket in tickets] == [True, True]
    state.finish(1, tested_version=2)
    assert state.wait_over(timeout=0)
    summary = state.summary()
    assert (summary["lost_workers"], summary["lost_steps"]) == ([2, 0], 3)


def test_a_lost_worker_frees_those_at_the_barrier() -> None:
    state = started_state(workers=3, survives_loss=True)
    held = [push(state, 1, 0, 0, value=2.0), push(state, 2, 0, 0, value=4.0)]
    state.leave(0)
    for ticket in held:
        assert receive(state, ticket, torch.empty(LENGTH)).version == 1
    assert values(state) == [-3.0] * LENGTH
    assert state.interval()["workers_away"] == 1


def test_a_worker_that_is_back_goes_on_at_the_step_of_the_others() -> None:
    state = started_state(workers=3, steps=5, survives_loss=True)
    state.leave(0)
    for step in range(3):
        for rank in (1, 2):
            push(state, rank, step, version=step)
    assert enter(state, 0, steps=5) == 3
    assert push(state, 1, 3, version=3).answer is None
    assert push(state, 2, 3, version=3).answer is None
    back = LocalWorker(state, 0, next_step=3)
    assert back.version == 3
    assert back.push_pull(torch.ones(LENGTH)) == Answer(4)
    summary = state.summary()
    assert (summary["lost_workers"], summary["rejoined_workers"]) == ([0], [0])
    assert summary["staleness_histogram"] == {0: 9}


def test_in_async_mode_a_worker_that_is_back_misses_no_step() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=4, survives_loss=True)
    for step in range(4):
        push(state, 1, step, version=step)
    push(state, 0, 0, version=0)
    state.leave(0)
    assert enter(state, 0, steps=4) == 1
    back = LocalWorker(state, 0, next_step=1)
    for _ in range(3):
        back.push_pull(torch.ones(LENGTH))
    assert state.summary()["lost_steps"] == 0
    assert state.version == 8


def test_a_worker_that_is_back_is_not_told_to_start_before_it_is_ready() -> None:
    """Else it would start at the step at which it was lost, and its pushes would pass for repeats."""
    state = started_state(workers=2, steps=5, survives_loss=True)
    state.leave(0)
    for step in range(3):
        push(state, 1, step, version=step)
    state.join(0)
    state.attend(0)
    assert state.watch(0, News(Phase.JOINING), timeout=0) == News(Phase.JOINING)
    with pytest.raises(TooEarly, match="worker 0 is not ready; expected Ready first"):
        state.pull(0, SimpleQueue())
    # And until then nobody waits for it
    assert push(state, 1, 3, version=3).answer == Answer(4)
    state.ready(0, LENGTH, steps=5)
    assert state.watch(0, News(Phase.JOINING), timeout=0) == News(Phase.TRAINING)
    assert state.next_step(0) == 4


def test_a_worker_that_was_lost_before_training_is_waited_for_until_it_is_ready_again() -> None:
    state = new_state(workers=2, survives_loss=True)
    enter(state, 0, steps=1)
    state.leave(0)
    state.join(0)
    state.attend(0)
    enter(state, 1, steps=1)
    assert state.wait_started(timeout=0) == [0]
    state.ready(0, LENGTH, steps=1)
    assert state.wait_started(timeout=0) == []


def test_a_block_that_comes_after_its_worker_was_lost_is_not_taken() -> None:
    with blocks_of_length(2):
        state = started_state(Mode.ASYNC, workers=2, survives_loss=True)
        ticket = begin(state, 0, 0, 0)
        state.take(ticket, 0, torch.ones(2))
        state.leave(0)
        state.take(ticket, 1, torch.ones(2))
        assert values(state) == [-1.0, -1.0, 0.0, 0.0]
        # Nor does the first block of a push that was begun before the loss
        assert enter(state, 0, steps=2) == 1
        early = begin(state, 0, 1, 1)
        state.leave(0)
        assert enter(state, 0, steps=2) == 1
        state.take(early, 0, torch.ones(2))
        state.take(early, 1, torch.ones(2))
        assert state.version == 1
        # And the step that it then pushes is whole
        LocalWorker(state, 0, next_step=1).push_pull(torch.ones(LENGTH))
        assert values(state) == [-2.0, -2.0, -1.0, -1.0]


def test_who_comes_when_the_others_have_finished_is_too_late() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=1, survives_loss=True)
    state.leave(0)
    push(state, 1, 0, version=0)
    assert state.finish(1, tested_version=1) == (1, True), "nobody knows what the lost one tested"
    with pytest.raises(TrainingEnded, match="worker 0 comes too late: all others have finished"):
        state.join(0)


def test_when_all_are_lost_training_is_deserted_and_goes_on_with_whoever_comes_back() -> None:
    state = started_state(workers=2, steps=1, survives_loss=True)
    for rank in range(2):
        assert not state.deserted
        state.leave(rank)
    assert state.deserted
    enter(state, 1, steps=1)
    assert not state.deserted
    push(state, 1, 0, version=0, value=3.0)
    state.finish(1, tested_version=1)
    assert state.wait_over(timeout=0)
    assert values(state) == [-3.0] * LENGTH


def test_a_gradient_that_is_refused_ends_training_unless_the_others_go_on_without_its_worker() -> None:
    state = started_state(workers=2)
    state.give_up("worker 0, step 0: gradient refused")
    assert state.ending == Ending("worker 0, step 0: gradient refused")
    state = started_state(workers=2, survives_loss=True)
    state.give_up("worker 0, step 0: gradient refused")
    assert state.ending is None


@pytest.mark.parametrize("survives_loss", [False, True])
def test_a_worker_that_withdraws_ends_training_unless_the_others_go_on_without_it(
    survives_loss: bool,
) -> None:
    state = started_state(workers=2, steps=1, survives_loss=survives_loss)
    state.withdraw(1, "the data is gone")
    if not survives_loss:
        assert state.ending == Ending("worker 1 withdrew: the data is gone", lost_peer="worker 1")
        return
    assert state.ending is None
    state.leave(1)
    assert push(state, 0, 0, 0).answer == Answer(1)


@pytest.mark.parametrize("survives_loss", [False, True])
def test_a_worker_that_withdraws_before_training_ends_it(survives_loss: bool) -> None:
    state = new_state(workers=2, survives_loss=survives_loss)
    enter(state, 0, steps=1)
    state.withdraw(1, "the data is not there")
    assert state.ending == Ending("worker 1 withdrew: the data is not there", lost_peer="worker 1")


def train_with_state(data: Data, workers: int, steps: int) -> torch.Tensor:
    """Sync training as the workers do it, in threads, without connections; the final parameters."""
    sharding = Sharding(len(data.train), workers, batch_size=16, seed=5)
    server = FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, 5)).parameters
    state = ServerState(
        workers=workers,
        parameters=server,
        optimizer=partial(MomentumSGD, learning_rate=0.05, momentum=0.9),
        policy=policy_for(Mode.SYNC, workers),
    )
    for rank in range(workers):
        enter(state, rank, steps)

    models = [FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, rank)) for rank in range(workers)]

    def work(rank: int) -> None:
        model, worker = models[rank], LocalWorker(state, rank)
        for indices in sharding.batches(rank, epoch=1)[:steps]:
            model.parameters.copy_(worker.parameters)
            backward(model, data, indices)
            worker.push_pull(model.gradient)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work, rank) for rank in range(workers)]:
            future.result(PATIENCE)
    return server


def train_alone(data: Data, workers: int, steps: int) -> torch.Tensor:
    """The same with torch's own SGD on the combined batches of all workers; the final parameters."""
    sharding = Sharding(len(data.train), workers, batch_size=16, seed=5)
    model = FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, 5))
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.05, momentum=0.9)
    batches = zip(*(sharding.batches(rank, epoch=1) for rank in range(workers)), strict=True)
    for combined in list(batches)[:steps]:
        backward(model, data, torch.cat(combined))
        optimizer.step()
    return model.parameters


def backward(model: FlatModel, data: Data, indices: torch.Tensor) -> None:
    images, labels = data.train.batch(indices)
    model.gradient.zero_()
    torch.nn.functional.cross_entropy(model.module(images), labels).backward()


def test_sync_training_is_training_alone_with_the_combined_batch() -> None:
    data = load_dataset(Dataset.DIGITS, DIGITS, "")
    with blocks_of_length(1000):
        together, again = (train_with_state(data, workers=4, steps=10) for _ in range(2))
    alone = train_alone(data, workers=4, steps=10)
    assert torch.equal(together, again), "whichever worker comes first, the bits are the same"
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    initial = FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, 5)).parameters
    assert not torch.allclose(alone, initial, atol=1e-2), "ten steps went somewhere"
