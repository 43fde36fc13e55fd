"""Several servers, each with a part of the parameters: together they train as one does, and end as one does."""

import hashlib
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_processes import Experiment, experiment, served

from contract.catalogue import images_of
from contract.metrics import ServerSummary, TaskFailed, TaskStarted, WorkerSummary
from contract.task import TaskEnvironment
from runtime.connection import Connection
from runtime.data_connection import wires_for
from runtime.dataset import load_dataset
from runtime.model import build_model
from runtime.parameters import FlatModel, memory_of
from runtime.sharded_connection import ShardedConnection, shard_slices
from runtime.sharding import Sharding
from runtime.training import Training
from runtime.trust import Trust
from runtime.wire.parameter_server_pb2 import Sender

PATIENCE = 120.0
NOTICED_WITHIN = 15.0
WORKERS, SHARDS = 3, 3
STEPS = 1437 // WORKERS // 16
"""Of an epoch of the digits."""


def finish(running: Experiment) -> list[ServerSummary]:
    """What the servers say in the end, by shard."""
    codes = running.exit_codes(PATIENCE)
    assert codes == [0] * len(running.tasks), [task.errors for task in running.tasks]
    return [server.records(ServerSummary)[0] for server in running.servers]


def train_as_worker(running: Experiment, rank: int) -> Tensor:
    """Be one worker of an experiment, in this process; returns the parameters that it ends with."""
    environment = TaskEnvironment.from_environ(running.environ | {"WORKER_RANK": str(rank)})
    images = images_of(environment.dataset, environment.model)
    data = load_dataset(environment.dataset, images, "")
    model = FlatModel(build_model(environment.model, images, environment.seed))
    sharding = Sharding(len(data.train), WORKERS, environment.batch_size, environment.seed)
    connection = Connection(
        running.address,
        Sender(study=environment.study_id, experiment=running.name, rank=rank),
        trust=Trust(),
        timeout_seconds=PATIENCE,
        abandon=lambda error: pytest.fail(str(error)),
    )
    with ShardedConnection([connection]) as server:
        wires = wires_for(environment, [model.length])
        training = Training(environment, sharding, data.train, model, wires[0].vectors)
        training.begin(server, server.ready(wires, training.steps, next_step=0))
        assert len(list(training.epochs())) == environment.epochs
        training.finish()
    return model.parameters


def digest(parameters: Tensor) -> str:
    return hashlib.sha256(memory_of(parameters)).hexdigest()


@pytest.fixture
def _one_thread() -> object:
    """As the processes have: sums are made in another order with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("transport", ["tcp", "auto"])
def test_sync_training_on_shards_has_the_bits_of_training_on_one_server(
    transport: str, tmp_path: Path
) -> None:
    settings = {"EPOCHS": 2, "SEED": 3, "EXPERIMENT_NAME": "same", "TRANSPORT": transport}
    # Given the parameters that one server ends with, which in sync mode every worker holds
    with served(tmp_path / "one", WORKERS, **settings) as running:
        for rank in range(1, WORKERS):
            running.start_worker(rank)
        parameters = train_as_worker(running, 0)
        [alone] = finish(running)
    assert digest(parameters) == alone.parameters_sha256
    # When the same is trained on several servers
    with experiment(tmp_path / "many", WORKERS, SHARDS=SHARDS, **settings) as running:
        servers = finish(running)
        lengths = [server.records(TaskStarted)[0].parameters for server in running.servers]
    # Then each server has its part of them, at the same version
    parts = shard_slices(len(parameters), SHARDS)
    assert lengths == [part.stop - part.start for part in parts]
    assert [server.parameters_sha256 for server in servers] == [digest(parameters[part]) for part in parts]
    assert {server.global_steps_completed for server in servers} == {2 * STEPS}
    assert {server.rank for server in servers} == set(range(SHARDS))


@pytest.mark.parametrize(("mode", "told"), [("async", {}), ("ssp", {"AGGREGATION_STALENESS_BOUND": 1})])
def test_shards_end_at_the_same_version_in_the_modes_without_a_barrier(
    mode: str, told: dict[str, object], tmp_path: Path
) -> None:
    settings = told | {"EPOCHS": 1, "SHARDS": SHARDS, "LEARNING_RATE": 0.02, "COMPUTE_MODE": "emulated"}
    settings |= {"COMPUTE_MEAN_MS": 4, "COMPUTE_STRAGGLERS": '[{"rank": 0, "slowdown": 4}]'}
    with experiment(tmp_path, WORKERS, SERVER_MODE=mode, **settings) as running:
        servers = finish(running)
        workers = [worker.records(WorkerSummary)[0] for worker in running.workers]
    assert {server.global_steps_completed for server in servers} == {WORKERS * STEPS}
    assert {server.gradients_processed for server in servers} == {WORKERS * STEPS}
    assert [worker.steps for worker in workers] == [STEPS] * WORKERS
    # Then whoever finished last, on some server, tested the parameters of all
    assert 360 in [worker.final_test_samples for worker in workers]


@pytest.mark.parametrize("role", ["server", "worker"])
def test_the_loss_of_one_server_or_worker_ends_them_all(role: str, tmp_path: Path) -> None:
    long = {"EPOCHS": 1000, "COMPUTE_MODE": "emulated", "COMPUTE_MEAN_MS": 20}
    with experiment(tmp_path, 2, SHARDS=2, **long) as running:
        for worker in running.workers:
            worker.wait_for('"kind":"worker_epoch"')
        lost = running.servers[1] if role == "server" else running.workers[1]
        os.kill(lost.pid, signal.SIGKILL)
        running.exit_codes(NOTICED_WITHIN)
        others = [task for task in running.tasks if task is not lost]
        assert [task.process.exitcode for task in others] == [1] * 3
        reasons = [task.records(TaskFailed)[0].reason for task in others]
    assert any("the server vanished" in reason or "worker 1 vanished" in reason for reason in reasons)
