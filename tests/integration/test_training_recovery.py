"""What is lost and comes back: workers that crash, and servers that are killed and started again."""

import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from proxies import ANOTHER_HOST, HOST, Proxy
from training_processes import Experiment, Task, experiment, free_ports, served

from contract.aggregation import Mode
from contract.metrics import ServerSummary, TaskFailed, WorkerEpoch, WorkerSummary
from runtime.checkpoint import Checkpoint
from runtime.checkpoint_store import CheckpointFailed, store_for
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.resumption import checkpoint_of, resume
from runtime.state import ServerState

PATIENCE = 180.0
GRADIENT_BYTES = 4 * 38_282
PER_EPOCH = {2: 44, 3: 29}
"""Steps of an epoch of the digits, by number of workers."""

EMULATED = {"COMPUTE_MODE": "emulated", "COMPUTE_MEAN_MS": 4}
LONGER = {**EMULATED, "COMPUTE_MEAN_MS": 20}
"""Steps that leave time for a checkpoint in the middle, however slow the disk, and for killing its server then."""

MODES: dict[str, dict[str, object]] = {
    "sync": {},
    "async": {},
    "ssp": {"AGGREGATION_STALENESS_BOUND": 2},
    "ksync": {"AGGREGATION_K": 2},
}


def summary(running: Experiment) -> ServerSummary:
    return running.server.records(ServerSummary)[0]


def accounted(server: ServerSummary) -> int:
    """Steps of all workers whose fate is known."""
    return server.gradients_processed + server.dropped_gradients + server.lost_steps


@pytest.mark.parametrize("mode", MODES)
def test_the_others_go_on_without_a_worker_that_is_lost(mode: str, tmp_path: Path) -> None:
    # Given a worker that crashes after 20 steps, and stays away
    settings = MODES[mode] | EMULATED | {"EPOCHS": 2, "LEARNING_RATE": 0.02}
    settings |= {"ON_WORKER_LOSS": "continue", "FAULTS_CRASHES": '[{"rank": 1, "step": 20}]'}
    with experiment(tmp_path, 3, SERVER_MODE=mode, **settings) as running:
        codes = running.exit_codes(PATIENCE)
        assert codes == [0, 0, -signal.SIGKILL, 0], [task.errors for task in running.tasks]
        server = summary(running)
        others = [running.workers[rank].records(WorkerSummary)[0] for rank in (0, 2)]
    # Then it is named, and what it did not do is counted
    steps = 2 * PER_EPOCH[3]
    assert (server.lost_workers, server.rejoined_workers) == ([1], [])
    assert server.lost_steps == steps - 20
    assert accounted(server) == 3 * steps
    # Then the others did all of theirs
    assert [worker.steps for worker in others] == [steps, steps]
    if mode == "sync":
        assert server.global_steps_completed == steps
        assert server.staleness_histogram == {0: 2 * steps + 20}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_crash_ends_an_experiment_that_is_to_fail(mode: str, tmp_path: Path) -> None:
    settings = {"EPOCHS": 2, "FAULTS_CRASHES": '[{"rank": 1, "step": 20}]'}
    with experiment(tmp_path, 2, SERVER_MODE=mode, **EMULATED, **settings) as running:
        assert running.exit_codes(PATIENCE) == [1, 1, -signal.SIGKILL]
        [failure] = running.server.records(TaskFailed)
    assert failure.reason == "worker 1 vanished: its connection closed after 20 of 88 steps"


@pytest.mark.parametrize("mode", ["sync", "async", "ssp", "ksync"])
def test_a_worker_that_comes_back_takes_its_rank_up_again(mode: str, tmp_path: Path) -> None:
    # Given a worker that crashes and is started anew, and another that goes no further until it is back
    port = free_ports()
    settings = MODES[mode] | {"EPOCHS": 2, "LEARNING_RATE": 0.02, "SERVER_PORT": port, "TRANSPORT": "tcp"}
    if mode == "ksync":
        settings["AGGREGATION_K"] = 1
    settings |= {
        "ON_WORKER_LOSS": "continue",
        "FAULTS_CRASHES": '[{"rank": 1, "step": 5, "restart_after_seconds": 0.1}]',
    }
    with (
        served(tmp_path, 2, SERVER_MODE=mode, **settings) as running,
        Proxy(port),
        Proxy(port + 1, hold_after=30 * GRADIENT_BYTES) as held,
        Proxy(port, ANOTHER_HOST),
        Proxy(port + 1, ANOTHER_HOST) as watched,
    ):
        running.start_worker(0, PARAMETER_SERVER_ADDRESS=f"{HOST}:{port}")
        running.start_worker(1, PARAMETER_SERVER_ADDRESS=f"{ANOTHER_HOST}:{port}")
        # A pair of connections for each of its lives
        deadline = time.monotonic() + PATIENCE
        while watched.accepted < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held.release()
        assert running.exit_codes(PATIENCE) == [0, 0, 0], [task.errors for task in running.tasks]
        server = summary(running)
        epochs = running.workers[1].records(WorkerEpoch)
        [back] = running.workers[1].records(WorkerSummary)
        sequence = [(record.attempt, record.seq) for record in running.workers[1].all_records()]
    # Then its second life says so, and finished under the same rank
    assert {(record.rank, record.attempt) for record in epochs} == {(1, 1)}
    assert sequence == sorted(sequence)
    assert (server.lost_workers, server.rejoined_workers) == ([1], [1])
    # Then no step was pushed twice, and the fate of each is known
    steps = 2 * PER_EPOCH[2]
    assert server.repeated_pushes == 0
    assert accounted(server) == 2 * steps
    assert back.steps == steps - 5 - server.lost_steps
    if mode == "async":
        assert server.lost_steps == 0


def test_a_server_that_all_have_left_waits_for_them(tmp_path: Path) -> None:
    settings = {
        "EPOCHS": 1,
        "ON_WORKER_LOSS": "continue",
        "FAULTS_CRASHES": '[{"rank": 0, "step": 20, "restart_after_seconds": 0},'
        ' {"rank": 0, "step": 40, "restart_after_seconds": 0}]',
    }
    with experiment(tmp_path / "calm", 1, EPOCHS=1, EXPERIMENT_NAME="same") as running:
        assert running.exit_codes(PATIENCE) == [0, 0]
        undisturbed = summary(running)
    with experiment(tmp_path / "stormy", 1, EXPERIMENT_NAME="same", **settings) as running:
        assert running.exit_codes(PATIENCE) == [0, 0], [task.errors for task in running.tasks]
        server = summary(running)
        [last] = running.workers[0].records(WorkerSummary)
    # Then nothing was lost or done twice, and the same came out
    assert last.attempt == 2
    assert (server.lost_workers, server.rejoined_workers) == ([0, 0], [0, 0])
    assert (server.lost_steps, server.repeated_pushes) == (0, 0)
    assert server.parameters_sha256 == undisturbed.parameters_sha256


def started(steps: int, *, survives_loss: bool = False) -> ServerState:
    """A server's state in sync mode, whose two workers are ready."""
    return with_workers(new_state(survives_loss), steps)


def new_state(survives_loss: bool) -> ServerState:
    return ServerState(
        workers=2,
        parameters=torch.zeros(4),
        optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
        policy=policy_for(Mode.SYNC, 2),
        survives_loss=survives_loss,
    )


def with_workers(state: ServerState, steps: int, next_steps: tuple[int, int] = (0, 0)) -> ServerState:
    for rank, next_step in enumerate(next_steps):
        state.join(rank)
        state.attend(rank)
        state.ready(rank, 4, steps, next_step)
    return state


def fate(state: ServerState) -> tuple[int, int]:
    """Steps that made an update, and those that were lost."""
    figures = state.summary()
    return figures["gradients_processed"], figures["lost_steps"]


def test_a_gradient_that_waited_at_the_barrier_of_a_killed_server_comes_again() -> None:
    # Given a checkpoint of a moment at which one gradient waits for the other
    state = started(steps=1)
    state.push(0, 0, 0, torch.full((4,), 1.0))
    checkpoint = checkpoint_of(state, attempt=0)
    # When another server goes on from it, with workers that have had no answer
    state = new_state(survives_loss=False)
    resume(state, checkpoint)
    with_workers(state, steps=1)
    assert [state.next_step(rank) for rank in (0, 1)] == [0, 0]
    for rank, value in enumerate((1.0, 3.0)):
        state.push(rank, 0, 0, torch.full((4,), value))
    # Then both are applied
    assert state.aggregator.parameters.tolist() == [-2.0] * 4
    assert fate(state) == (2, 0)


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_step_of_a_worker_that_was_lost_at_the_barrier_is_counted(comes_back: bool) -> None:
    state = started(steps=2, survives_loss=True)
    state.push(0, 0, 0, torch.full((4,), 1.0))
    state.leave(0)
    if comes_back:
        state.join(0)
        state.attend(0)
        state.ready(0, 4, 2, next_step=0)
        assert state.next_step(0) == 0
        state.push(0, 0, 0, torch.full((4,), 100.0))
    for step in range(2):
        state.push(1, step, step, torch.full((4,), 3.0))
    if comes_back:
        state.push(0, 1, 1, torch.full((4,), 3.0))
    # What had come of it was applied, once
    assert state.aggregator.parameters.tolist() == [-5.0] * 4
    assert fate(state) == ((4, 0) if comes_back else (2, 2))


# Servers.


def checkpoints_in(folder: Path, experiment: str) -> Path:
    return folder / "study" / experiment


def newest(folder: Path, experiment: str) -> Checkpoint | None:
    return store_for(str(folder), "study", experiment, warn=lambda _: None).newest()


def version_in(folder: Path, experiment: str) -> int:
    with suppress(CheckpointFailed):  # a server that lives has newer ones, and deleted this one
        if checkpoint := newest(folder, experiment):
            return int(checkpoint.facts["version"])
    return -1


def wait_for_version(running: Experiment, folder: Path, version: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while version_in(folder, running.name) < version:
        assert time.monotonic() < deadline
        assert running.server.process.is_alive(), running.server.errors
        time.sleep(0.02)


def kill(task: Task) -> None:
    os.kill(task.pid, signal.SIGKILL)
    task.process.join()


def with_checkpoints(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "CHECKPOINT_SECONDS": 0.1,
        "CHECKPOINT_LOCATION": folder,
        "SERVER_PORT": free_ports(),
        "LEARNING_RATE": 0.02,
        **settings,
    }


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("mode", ["sync", "async", "ssp", "ksync"])
def test_a_server_that_is_started_again_resumes(mode: str, torn: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    settings = with_checkpoints(folder, EPOCHS=4, TRANSPORT="tcp", **LONGER, **MODES[mode])
    if mode == "ksync":
        settings["AGGREGATION_K"] = 1
    steps = 4 * PER_EPOCH[2]
    with experiment(tmp_path / "run", 2, SERVER_MODE=mode, **settings) as running:
        # When the server is killed in the middle, also while it writes
        wait_for_version(running, folder, 40)
        kill(running.server)
        if torn:
            last = max(checkpoints_in(folder, running.name).glob("*.safetensors"))
            last.write_bytes(last.read_bytes()[:-100])
        left_at = version_in(folder, running.name)
        # Then another one takes its place, and its workers carry on
        running.start_server()
        assert running.exit_codes(PATIENCE) == [0, 0, 0], [task.errors for task in running.tasks]
        server = summary(running)
        workers = [worker.records(WorkerSummary)[0] for worker in running.workers]
        notes = running.server.output
    assert server.resumed_from_version == left_at
    assert server.attempt == 1
    assert ("is skipped" in notes) is torn
    # Then the fate of every step is known, and none was applied twice
    assert accounted(server) == 2 * steps
    assert sum(server.staleness_histogram.values()) == server.gradients_processed
    if mode == "sync":
        assert 2 * server.global_steps_completed == server.gradients_processed
    if mode in {"async", "ssp"}:
        assert server.global_steps_completed == server.gradients_processed
    # Then workers had one life and one count of epochs
    for worker in workers:
        assert (worker.attempt, worker.epochs) == (0, 4)
        assert worker.steps <= steps
        assert worker.sent_bytes >= worker.steps * GRADIENT_BYTES
    assert (
        sorted(path.suffix for path in checkpoints_in(folder, running.name).iterdir()) == [".safetensors"] * 2
    )


def test_a_server_that_is_started_again_goes_on_without_a_worker_that_stays_away(tmp_path: Path) -> None:
    # Given a worker that has crashed for good
    folder = tmp_path / "checkpoints"
    settings = with_checkpoints(folder, EPOCHS=4, **LONGER, ON_WORKER_LOSS="continue")
    settings["FAULTS_CRASHES"] = '[{"rank": 1, "step": 20}]'
    with experiment(tmp_path / "run", 3, **settings) as running:
        # When the server is killed some time after, and started again
        wait_for_version(running, folder, 30)
        kill(running.server)
        running.start_server()
        # Then nobody waits for the lost one
        assert running.exit_codes(PATIENCE) == [0, 0, -signal.SIGKILL, 0], [t.errors for t in running.tasks]
        server = summary(running)
    steps = 4 * PER_EPOCH[3]
    assert server.attempt == 1
    assert (server.lost_workers, server.rejoined_workers) == ([1], [])
    assert accounted(server) == 3 * steps


def test_a_server_that_was_killed_before_training_began_counts_no_time(tmp_path: Path) -> None:
    # Given a checkpoint from before all workers were there
    began = time.monotonic()
    folder = tmp_path / "checkpoints"
    with served(tmp_path / "run", 1, EPOCHS=1, **with_checkpoints(folder)) as running:
        wait_for_version(running, folder, 0)
        kill(running.server)
        running.start_server()
        running.start_workers()
        assert running.exit_codes(PATIENCE) == [0, 0]
        server = summary(running)
    # Then what passed before the start, of the machine's life even, is no time of training
    assert server.resumed_from_version == 0
    assert server.total_training_time_seconds < time.monotonic() - began


def test_a_server_that_is_told_to_stop_leaves_a_checkpoint(tmp_path: Path) -> None:
    # Given a server that would write the next checkpoint long after the end
    folder = tmp_path / "checkpoints"
    settings = with_checkpoints(folder, EPOCHS=6, CHECKPOINT_SECONDS=3600, **EMULATED)
    with experiment(tmp_path / "run", 2, **settings) as running:
        for worker in running.workers:
            worker.wait_for('"kind":"worker_epoch"')
        # When it is told to stop, as before a Spot instance is taken away, and another one is started
        running.server.process.terminate()
        assert running.server.wait(PATIENCE) == 128 + signal.SIGTERM
        running.start_server()
        assert running.exit_codes(PATIENCE) == [0, 0, 0], [task.errors for task in running.tasks]
        server = summary(running)
    # Then what was done since the last checkpoint is not lost
    assert (server.resumed_from_version or 0) >= PER_EPOCH[2]
    assert accounted(server) == 2 * 6 * PER_EPOCH[2]


def test_nobody_waits_for_another_server_where_the_first_one_gave_up(tmp_path: Path) -> None:
    settings = with_checkpoints(tmp_path / "checkpoints", EPOCHS=1000, EXPERIMENT_TIMEOUT_SECONDS=10)
    with experiment(tmp_path / "run", 2, **settings, **EMULATED) as running:
        assert running.exit_codes(PATIENCE) == [1, 1, 1]
        reasons = {task.records(TaskFailed)[0].reason for task in running.tasks}
    assert reasons == {"training did not end within EXPERIMENT_TIMEOUT_SECONDS=10"}


def test_a_worker_in_the_middle_of_a_long_step_waits_for_another_server_too(tmp_path: Path) -> None:
    # Given a worker that sees and hears nothing, for longer than a server's loss may go unseen
    settings = with_checkpoints(tmp_path / "checkpoints", EPOCHS=1, NETWORK_LATENCY_MS=7_000)
    with experiment(tmp_path / "run", 1, **settings) as running:
        running.server.wait_for('"kind":"server_interval"')
        kill(running.server)
        assert running.workers[0].wait_for("waiting for another server: the server vanished")
        assert running.workers[0].process.is_alive()


def test_a_worker_that_has_finished_need_not_come_back(tmp_path: Path) -> None:
    # Given a fast worker, which has finished, and a slow one, which has not
    folder = tmp_path / "checkpoints"
    settings = with_checkpoints(folder, EPOCHS=1, CHECKPOINT_SECONDS=3600, **EMULATED, SERVER_MODE="async")
    settings["COMPUTE_STRAGGLERS"] = '[{"rank": 1, "slowdown": 40}]'
    with experiment(tmp_path / "run", 2, **settings) as running:
        assert running.workers[0].wait(PATIENCE) == 0
        # When the server is killed, long before its next checkpoint is due, and started again
        kill(running.server)
        running.start_server()
        # Then it goes on with the slow one alone
        assert running.exit_codes(PATIENCE) == [0, 0, 0], [task.errors for task in running.tasks]
        server = summary(running)
    assert accounted(server) == 2 * PER_EPOCH[2]
