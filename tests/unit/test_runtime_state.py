"""The server's core without gRPC: barriers, staleness, membership, endings."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName, images_of
from runtime.codec import fill
from runtime.dataset import load_dataset
from runtime.ending import Ending
from runtime.exchange import Answer, News, Phase, Snapshot
from runtime.membership import AlreadyThere, InvalidMessage, TooEarly
from runtime.model import build_model
from runtime.optimizer import MomentumSGD
from runtime.parameters import FlatModel
from runtime.policy import policy_for
from runtime.schedule import Schedule
from runtime.sharding import Sharding
from runtime.split import Data
from runtime.state import ServerState, TrainingEnded

PATIENCE = 10.0
LENGTH = 4
DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)


def new_state(
    mode: Mode = Mode.SYNC,
    workers: int = 3,
    clock: Callable[[], float] | None = None,
    schedule: Schedule | None = None,
    **aggregation: Any,
) -> ServerState:
    parameters = torch.zeros(LENGTH)
    return ServerState(
        workers=workers,
        parameters=parameters,
        optimizer=MomentumSGD(parameters, learning_rate=1.0, momentum=0.0),
        policy=policy_for(mode, workers, Aggregation(**aggregation)),
        schedule=schedule,
        **({"clock": clock} if clock else {}),
    )


def started_state(mode: Mode = Mode.SYNC, workers: int = 3, steps: int = 2, **settings: Any) -> ServerState:
    state = new_state(mode, workers, **settings)
    for rank in range(workers):
        state.join(rank, LENGTH, steps)
        state.attend(rank)
    return state


def push(state: ServerState, rank: int, step: int, version: int, value: float = 1.0) -> Snapshot:
    fill_slot(state, rank, step, version, value)
    return state.push(rank, step, version).snapshot


def fill_slot(state: ServerState, rank: int, step: int, version: int, value: float = 1.0) -> None:
    slot = state.receive(rank, step, version)
    assert slot is not None, "the step was pushed before"
    slot.fill_(value)


def values(snapshot: Snapshot) -> list[float]:
    return torch.frombuffer(bytearray(snapshot.data), dtype=torch.float32).tolist()


def running(futures: list[Future[Snapshot]]) -> int:
    return sum(not future.done() for future in futures)


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(4)))
def test_the_barrier_opens_exactly_when_the_last_gradient_comes(order: list[int]) -> None:
    state = started_state(workers=4)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(push, state, rank, 0, 0, float(rank)) for rank in order[:-1]]
        # Given all but one gradient, nothing was applied
        assert state.version == 0
        assert running(futures) == 3
        # When the last one comes, all go on with their average
        futures.append(pool.submit(push, state, order[-1], 0, 0, float(order[-1])))
        snapshots = [future.result(PATIENCE) for future in futures]
    assert {snapshot.version for snapshot in snapshots} == {1}
    assert values(snapshots[0]) == [-1.5] * LENGTH


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
        snapshot = push(state, rank, done[rank], versions[rank])
        done[rank] += 1
        updates += 1
        assert snapshot.version == updates
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
    with ThreadPoolExecutor(1) as pool:
        fill_slot(state, 0, 0, 0)
        first = pool.submit(state.push, 0, 0, 0)
        wait_until_held(state, 0)
        now[0] = 13.0
        fill_slot(state, 1, 0, 0)
        last = state.push(1, 0, 0)
        assert first.result(PATIENCE).waited_seconds == 3.0
    assert last.waited_seconds == 0.0


def test_training_starts_when_all_workers_attend() -> None:
    state = new_state(workers=2)
    state.join(0, LENGTH, 1)
    state.join(1, LENGTH, 1)
    state.attend(1)
    assert state.wait_started(timeout=0) == [0]
    with pytest.raises(TooEarly, match=r"workers \[0\] are not there"):
        state.pull(1)
    state.attend(0)
    assert state.wait_started(timeout=0) == []
    assert state.watch(0, News(Phase.JOINING), timeout=0) == News(Phase.TRAINING)
    assert values(state.pull(0)) == [0.0] * LENGTH


def test_a_worker_may_join_again_until_it_attends() -> None:
    state = new_state(workers=2)
    state.join(0, LENGTH, 5)
    state.join(0, LENGTH, 5)
    state.attend(0)
    with pytest.raises(AlreadyThere, match="rank 0 is taken"):
        state.join(0, LENGTH, 5)
    with pytest.raises(AlreadyThere, match="rank 0 is taken"):
        state.attend(0)


@pytest.mark.parametrize(
    ("rank", "length", "steps", "reason"),
    [
        (2, LENGTH, 5, "rank 2; expected 0 to 1"),
        (1, LENGTH + 1, 5, "a model of 5 parameters; expected 4"),
        (1, LENGTH, 6, "6 steps; expected 5, as every other worker"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused(rank: int, length: int, steps: int, reason: str) -> None:
    state = new_state(workers=2)
    state.join(0, LENGTH, 5)
    with pytest.raises(InvalidMessage, match=reason):
        state.join(rank, length, steps)


def test_pushes_that_are_not_the_next_one_are_refused_and_change_nothing() -> None:
    state = started_state(Mode.ASYNC, workers=1, steps=2)
    push(state, 0, 0, version=0)
    with pytest.raises(InvalidMessage, match="step 2 of 2 steps; expected step 1"):
        state.receive(0, 2, 1)
    with pytest.raises(InvalidMessage, match="version 2 is not there yet; expected at most 1"):
        state.receive(0, 1, 2)
    with pytest.raises(TooEarly, match="rank 7 has not joined"):
        state.receive(7, 0, 0)
    state.receive(0, 1, 1)
    with pytest.raises(InvalidMessage, match="another push of this step is under way"):
        state.receive(0, 1, 1)
    assert state.version == 1


def test_a_repeated_push_is_applied_once_and_answered_the_current_parameters() -> None:
    state = started_state(Mode.ASYNC, workers=2, steps=2)
    push(state, 0, 0, version=0, value=5.0)
    push(state, 1, 0, version=0, value=2.0)
    # When the answer to worker 0 was lost, and it pushes again
    assert state.receive(0, 0, 0) is None
    answer = state.push(0, 0, 0)
    # Then nothing was added, and it goes on from what there is now
    assert answer == Answer(Snapshot(2, answer.snapshot.data))
    assert values(answer.snapshot) == [-7.0] * LENGTH
    assert values(push(state, 0, 1, version=2)) == [-8.0] * LENGTH
    summary = state.summary()
    assert (summary["repeated_pushes"], summary["gradients_processed"]) == (1, 3)


def test_a_push_repeated_at_the_barrier_waits_for_the_same_answer() -> None:
    state = started_state(Mode.SYNC, workers=2)
    fill_slot(state, 0, 0, 0)
    first, again = state.submit(0, 0, 0), state.submit(0, 0, 0)
    assert again is first
    assert first.answer is None
    push(state, 1, 0, version=0)
    assert first.answer is not None
    assert first.answer.snapshot.version == 1
    assert state.summary()["gradients_processed"] == 2


def test_ksync_drops_a_late_gradient_and_says_that_it_will() -> None:
    state = started_state(Mode.KSYNC, workers=3, k=2)
    fill_slot(state, 0, 0, 0, value=1.0)
    first = state.submit(0, 0, 0)
    assert values(push(state, 1, 0, version=0, value=3.0)) == [-2.0] * LENGTH
    assert first.answer is not None
    # Then the third worker learns that it computes in vain, the others do not
    known = News(Phase.TRAINING)
    assert state.watch(2, known, timeout=0) == News(Phase.TRAINING, superseded=1)
    assert state.watch(0, known, timeout=0) == known
    # When its gradient comes all the same, it goes on from the new version at once
    fill_slot(state, 2, 0, 0, value=100.0)
    late = state.push(2, 0, 0)
    assert late.dropped
    assert late.snapshot.version == 1
    assert values(late.snapshot) == [-2.0] * LENGTH
    summary = state.summary()
    assert (summary["dropped_gradients"], summary["gradients_processed"]) == (1, 2)


def test_dc_asgd_compensates_a_gradient_for_what_happened_since_its_pull() -> None:
    state = started_state(Mode.DC_ASGD, workers=2, dc_lambda=0.5)
    for rank in range(2):
        state.pull(rank)
    assert values(push(state, 0, 0, version=0, value=2.0)) == [-2.0] * LENGTH
    # Worker 1 pulled zeros, which are -2 by now: 3 + 0.5·3·3·(-2 - 0) = -6
    assert values(push(state, 1, 0, version=0, value=3.0)) == [4.0] * LENGTH
    with pytest.raises(InvalidMessage, match=r"worker 1, step 1: was not given version 1, but \[2\]"):
        state.receive(1, 1, 1)


def test_a_schedule_counts_epochs_of_gradients_whoever_sent_them() -> None:
    schedule = Schedule(epochs=2, name="step", decay_epochs=1, decay_factor=0.5)
    # Given 2 workers with 2 steps each: an epoch is two gradients, one update in sync, two in async
    state = started_state(Mode.ASYNC, workers=2, steps=2, schedule=schedule)
    steps = [(0, 0), (1, 0), (0, 1), (1, 1)]
    seen = [values(push(state, rank, step, version=0))[0] for rank, step in steps]
    assert seen == [-1.0, -2.0, -2.5, -3.0]
    state = started_state(Mode.SYNC, workers=2, steps=2, schedule=schedule)
    for version in range(2):
        fill_slot(state, 0, version, version)
        state.submit(0, version, version)
        push(state, 1, version, version)
    assert values(state.pull(0)) == [-1.5] * LENGTH


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


def test_a_worker_that_vanishes_ends_the_wait_of_all_others() -> None:
    state = started_state(workers=3, steps=7)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(push, state, rank, 0, 0) for rank in (0, 2)]
        state.leave(1)
        for future in waiting:
            with pytest.raises(TrainingEnded, match=r"worker 1 vanished: .* after 0 of 7 steps"):
                future.result(PATIENCE)
    assert state.ending is not None
    assert state.ending.lost_peer == "worker 1"
    assert state.watch(0, News(Phase.TRAINING), timeout=0) == News(Phase.ENDED)
    assert state.watch(1, News(Phase.TRAINING), timeout=0) is None
    with pytest.raises(TrainingEnded):
        state.join(1, LENGTH, 7)


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


def wait_until_held(state: ServerState, rank: int) -> None:
    """Until a worker's push is inside the state: a second one is then a repeat."""
    for _ in range(1000):
        try:
            if state.receive(rank, 0, 0) is None:
                return
        except InvalidMessage:
            time.sleep(0.01)
    raise AssertionError("the push never arrived")


def train_with_state(data: Data, workers: int, steps: int) -> torch.Tensor:
    """Sync training as the workers do it, in threads, without gRPC; the final parameters."""
    sharding = Sharding(len(data.train), workers, batch_size=16, seed=5)
    server = FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, 5)).parameters
    state = ServerState(
        workers=workers,
        parameters=server,
        optimizer=MomentumSGD(server, learning_rate=0.05, momentum=0.9),
        policy=policy_for(Mode.SYNC, workers),
    )
    for rank in range(workers):
        state.join(rank, server.numel(), steps)
        state.attend(rank)

    models = [FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, rank)) for rank in range(workers)]

    def work(rank: int) -> None:
        model = models[rank]
        fill(model.parameters, [state.pull(rank).data])
        for step, indices in enumerate(sharding.batches(rank, epoch=1)[:steps]):
            backward(model, data, indices)
            slot = state.receive(rank, step, step)
            assert slot is not None
            slot.copy_(model.gradient)
            fill(model.parameters, [state.push(rank, step, step).snapshot.data])

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
    together, again = (train_with_state(data, workers=4, steps=10) for _ in range(2))
    alone = train_alone(data, workers=4, steps=10)
    assert torch.equal(together, again), "whichever worker comes first, the bits are the same"
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    initial = FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, 5)).parameters
    assert not torch.allclose(alone, initial, atol=1e-2), "ten steps went somewhere"
