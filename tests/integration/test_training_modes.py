"""Whole experiments on loopback: what the modes promise, in figures."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_processes import Experiment, experiment

from contract.catalogue import Dataset, ModelName, images_of
from contract.metrics import (
    ServerInterval,
    ServerSummary,
    TaskFailed,
    TaskStarted,
    WorkerEpoch,
    WorkerSummary,
)
from contract.task import TaskEnvironment
from runtime.blocks import blocks_of
from runtime.connection import Connection
from runtime.data_connection import wires_for
from runtime.model import build_model
from runtime.parameters import FlatModel
from runtime.sharded_connection import ShardedConnection
from runtime.sharding import Sharding
from runtime.split import Split
from runtime.training import Training
from runtime.trust import Trust
from runtime.wire.parameter_server_pb2 import Sender
from tests.unit.torchvision_files import write_idx

PATIENCE = 180.0


def assert_all_succeed(running: Experiment) -> None:
    codes = running.exit_codes(PATIENCE)
    assert codes == [0] * len(running.tasks), [task.errors for task in running.tasks]


def test_sync_workers_train_and_test_one_model(tmp_path: Path) -> None:
    # Given three workers that share the digits
    with experiment(tmp_path, 3, EPOCHS=2) as running:
        assert_all_succeed(running)
        epochs = [worker.records(WorkerEpoch) for worker in running.workers]
        summaries = [worker.records(WorkerSummary)[0] for worker in running.workers]
        started = [worker.records(TaskStarted)[0] for worker in running.workers]
        server = running.server.records(ServerSummary)[0]
        intervals = running.server.records(ServerInterval)
    # Then their shards and shares make up the data set
    assert sum(record.train_samples for record in started) == 1437
    assert sum(record.test_samples for record in started) == 360
    # Then gradients were computed where torch is fastest, and the server stayed on the CPU
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert {record.device.split()[0] for record in started} == {device}
    assert running.server.records(TaskStarted)[0].device == "cpu"
    # Then each epoch tested one version, every image of the test set once, and the model learned
    steps = 1437 // 3 // 16
    for epoch, records in enumerate(zip(*epochs, strict=True), start=1):
        assert {record.epoch for record in records} == {epoch}
        assert {record.version for record in records} == {epoch * steps}
        assert {record.steps for record in records} == {steps}
        assert sum(record.test_samples for record in records) == 360
    assert sum(records[-1].test_correct for records in epochs) > 0.6 * 360
    assert all(records[1].loss < records[0].loss for records in epochs)
    # Then nobody tested the final parameters again
    assert {summary.final_test_samples for summary in summaries} == {None}
    # Then one update was made of three gradients, none of them stale
    assert (server.global_steps_completed, server.gradients_processed) == (2 * steps, 6 * steps)
    assert server.staleness_histogram == {0: 6 * steps}
    assert sum(record.updates for record in intervals) == server.global_steps_completed
    # Then the times add up
    for record in (record for records in epochs for record in records):
        parts = record.compute_seconds + record.push_pull_seconds + record.waiting_seconds
        assert parts <= record.epoch_seconds
        assert min(record.compute_seconds, record.push_pull_seconds) > 0


def test_the_same_seed_gives_the_same_sync_training_bit_for_bit(tmp_path: Path) -> None:
    # Given two runs of one experiment, and one of another seed
    losses, digests = [], []
    for name, seed in (("first", 7), ("second", 7), ("other", 8)):
        (tmp_path / name).mkdir()
        with experiment(tmp_path / name, 3, EPOCHS=1, SEED=seed) as running:
            assert_all_succeed(running)
            losses.append([[r.loss for r in worker.records(WorkerEpoch)] for worker in running.workers])
            digests.append(running.server.records(ServerSummary)[0].parameters_sha256)
    # Then the final parameters of the two are the same, to the last bit
    assert len(digests[0]) == 64
    assert digests[0] == digests[1] != digests[2]
    assert losses[0] == losses[1] != losses[2]


def test_async_gradients_are_as_stale_as_there_are_other_workers(tmp_path: Path) -> None:
    workers, steps = 3, 2 * (1437 // 3 // 16)
    settings = {"LEARNING_RATE": 0.02, "COMPUTE_MODE": "emulated", "COMPUTE_MEAN_MS": 4}
    with experiment(tmp_path, workers, SERVER_MODE="async", EPOCHS=2, **settings) as running:
        assert_all_succeed(running)
        summaries = [worker.records(WorkerSummary)[0] for worker in running.workers]
        server = running.server.records(ServerSummary)[0]
    # Then each gradient made an update of its own
    assert server.global_steps_completed == server.gradients_processed == workers * steps
    assert sum(server.staleness_histogram.values()) == workers * steps
    # Then while all trained, total staleness was (N−1) per update, but for the gradients still under way
    assert server.average_gradient_staleness_all_training is not None
    total = server.average_gradient_staleness_all_training * server.gradients_all_training
    missing = (workers - 1) * server.gradients_all_training - total
    assert 0 <= round(missing) <= 2 * workers * (workers - 1)
    # Then the worker that finished last tested the final parameters on the whole test set
    final = [s.final_test_samples for s in summaries if s.final_test_samples is not None]
    assert final == [360]
    # Then every step lasted as long as its draw at least
    assert all(0 < s.emulated_seconds <= s.compute_seconds for s in summaries)


def test_a_model_of_megabytes_travels_in_one_piece_and_learns(tmp_path: Path) -> None:
    settings = {"DATASET": "synthetic", "MODEL": "cifar-cnn", "BATCH_SIZE": 32, "LEARNING_RATE": 0.02}
    with experiment(tmp_path, 2, EPOCHS=1, TRANSPORT="tcp", **settings) as running:
        assert_all_succeed(running)
        summaries = [worker.records(WorkerSummary)[0] for worker in running.workers]
        parameters = running.server.records(TaskStarted)[0].parameters
        epochs = [worker.records(WorkerEpoch)[-1] for worker in running.workers]
    assert parameters * 4 > 1 << 20
    assert len(blocks_of(parameters)) == 1
    for summary in summaries:
        assert summary.sent_bytes > summary.steps * parameters * 4
        assert summary.received_bytes > (summary.steps + 1) * parameters * 4
    assert sum(record.test_correct for record in epochs) > 0.5 * 512


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_torchvision_model_travels_in_blocks_and_trains_on_images_from_a_folder(
    mode: str, tmp_path: Path
) -> None:
    # Given a few images in MNIST's format
    write_idx(tmp_path / "MNIST" / "raw", train=[0, 1] * 8)
    settings = {"DATASET": "mnist", "DATA_DIRECTORY": tmp_path, "MODEL": "resnet18", "BATCH_SIZE": 4}
    settings |= {"SERVER_MODE": mode, "TRANSPORT": "tcp"}
    with experiment(tmp_path, 2, EPOCHS=1, LEARNING_RATE=0.01, **settings) as running:
        assert_all_succeed(running)
        started = [task.records(TaskStarted)[0] for task in running.tasks]
        server = running.server.records(ServerSummary)[0]
        workers = [worker.records(WorkerSummary)[0] for worker in running.workers]
    parameters = 11_172_810
    assert {record.parameters for record in started} == {parameters}
    assert len(blocks_of(parameters)) > 20
    assert [record.train_samples for record in started] == [0, 8, 8]
    assert server.gradients_processed == 4
    for worker in workers:
        # As many bytes as there are parameters, and a frame's head for each block
        assert 0 < worker.sent_bytes - 2 * 4 * parameters < 2 * 13 * len(blocks_of(parameters)) + 1000
        assert worker.received_bytes > 3 * 4 * parameters


def train_here(folder: Path, augment: bool) -> float | None:
    """Mean loss of one epoch on a few images in CIFAR10's shape, of a worker in this process."""
    folder.mkdir()
    settings: dict[str, Any] = {
        "dataset": Dataset.CIFAR10,
        "model": ModelName.LOGISTIC_REGRESSION,
        "epochs": 1,
    }
    environment = TaskEnvironment(augment=augment, **settings)
    split = Split(torch.arange(64 * 3072).view(64, 3, 32, 32) % 251, torch.arange(64) % 10, 125.0, 70.0)
    model = FlatModel(
        build_model(environment.model, images_of(environment.dataset, environment.model), seed=0)
    )
    sharding = Sharding(len(split), workers=1, batch_size=16, seed=0)
    running = Experiment(folder, 1, **{name.upper(): value for name, value in settings.items()})
    try:
        connection = Connection(
            running.address,
            Sender(study="study", experiment=running.name, rank=0),
            trust=Trust(),
            timeout_seconds=PATIENCE,
            abandon=lambda error: pytest.fail(str(error)),
        )
        with ShardedConnection([connection]) as server:
            wires = wires_for(environment, [model.length])
            training = Training(environment, sharding, split, model, wires[0].vectors)
            training.begin(server, server.ready(wires, training.steps, next_step=0))
            [epoch] = training.epochs()
            loss: float | None = epoch["loss"]
            training.finish()
        assert running.server.wait(PATIENCE) == 0
    finally:
        running.server.process.kill()
    return loss


def test_a_worker_augments_where_it_is_told_to_and_the_same_every_time(tmp_path: Path) -> None:
    plain, augmented, again = (
        train_here(tmp_path / name, augment=name != "plain") for name in ("plain", "augmented", "again")
    )
    assert augmented == again != plain


def test_records_are_numbered_without_a_gap(tmp_path: Path) -> None:
    with experiment(tmp_path, 1, EPOCHS=1) as running:
        assert_all_succeed(running)
        for task in running.tasks:
            numbers = [record.seq for record in task.all_records()]
            assert numbers == list(range(len(numbers)))


def test_the_command_line_runs_both_roles() -> None:
    # Given a server and a worker, started as the image starts them
    def start(role: str, **settings: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "EPOCHS": "1", "SERVER_PORT": "0", **settings}
        return subprocess.Popen(
            [sys.executable, "-m", "runtime", role], env=environ, text=True, stdout=subprocess.PIPE
        )

    with start("server") as server:
        assert server.stdout is not None
        address = next(line for line in server.stdout if "listening on" in line).split()[-1]
        with start("worker", PARAMETER_SERVER_ADDRESS=address) as worker:
            output, _ = worker.communicate(timeout=PATIENCE)
        server.communicate(timeout=PATIENCE)
    assert (server.returncode, worker.returncode) == (0, 0)
    assert '"kind":"worker_summary"' in output


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"EPOCHS": "none"}, "task environment refused: 1 problem; EPOCHS:"),
        ({"DATASET": "cifar10", "MODEL": "cifar-cnn"}, "DATA_DIRECTORY: cifar10 is not built in"),
        (
            {"DATASET": "cifar10", "MODEL": "cifar-cnn", "DATA_DIRECTORY": "/nowhere"},
            "cifar10: 7 of 7 files are not in DATA_DIRECTORY /nowhere: cifar-10-batches-py/data_batch_1, ",
        ),
        (
            {"DATASET": "mnist", "MODEL": "mlp", "DATA_DIRECTORY": "/data", "AUGMENT": "1"},
            "AUGMENT: does not fit mnist; it is for cifar10, cifar100",
        ),
        ({"MODEL": "resnet18"}, "MODEL: resnet18 does not fit digits; choose digits-cnn, mlp, logistic"),
        ({"OMP_NUM_THREADS": "many"}, "OMP_NUM_THREADS is 'many'; expected a number of threads"),
        ({"PARAMETER_SERVER_ADDRESS": ""}, "PARAMETER_SERVER_ADDRESS has 0 addresses; expected host:port of"),
    ],
)
def test_a_task_that_cannot_start_says_why_in_one_line(
    settings: dict[str, str], reason: str, tmp_path: Path
) -> None:
    running = Experiment(tmp_path, 1)
    try:
        worker = running.start_worker(0, **settings)
        assert worker.wait(PATIENCE) == 1
    finally:
        running.server.process.kill()
    [failure] = worker.records(TaskFailed)
    assert failure.reason.startswith(reason)
    whose = f"{failure.study}/{failure.experiment}"
    assert worker.errors == f"lockstep-worker {whose}: {failure.reason}\n"


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("backup", {"AGGREGATION_BACKUP_WORKERS": 1}),
        ("ksync", {"AGGREGATION_K": 2}),
        ("kasync", {"AGGREGATION_K": 2}),
        ("ssp", {"AGGREGATION_STALENESS_BOUND": 1}),
        ("staleness-aware", {}),
        ("dc-asgd", {"AGGREGATION_DC_LAMBDA": 0.04}),
    ],
)
def test_every_other_mode_trains_to_the_end(mode: str, settings: dict[str, object], tmp_path: Path) -> None:
    # Given three workers, the first of which is slow
    workers, steps = 3, 1437 // 3 // 16
    cancels = mode in {"backup", "ksync"}
    # Where it is cancelled, it must keep up with draws of the others: those last longer than what is computed
    mean_ms = 20 if cancels else 4
    settings |= {
        "COMPUTE_MODE": "emulated",
        "COMPUTE_MEAN_MS": mean_ms,
        "COMPUTE_STRAGGLERS": '[{"rank": 0, "slowdown": 20}]',
        "LEARNING_RATE": 0.02,
        "SCHEDULE": "cosine",
        "WEIGHT_DECAY": 1e-4,
    }
    with experiment(tmp_path, workers, SERVER_MODE=mode, EPOCHS=1, **settings) as running:
        assert_all_succeed(running)
        server = running.server.records(ServerSummary)[0]
        summaries = [worker.records(WorkerSummary)[0] for worker in running.workers]
    # Then every step of every worker came to the server, once, and was applied or dropped
    assert server.gradients_processed + server.dropped_gradients == workers * steps
    assert server.repeated_pushes == 0
    assert sum(summary.dropped_gradients for summary in summaries) == server.dropped_gradients
    if cancels:
        # Then the slow worker was cancelled in most of its steps, and slowed nobody down
        slow = summaries[0]
        assert slow.dropped_gradients > 0.5 * steps
        assert 0 < slow.cancelled_steps <= slow.dropped_gradients
        assert slow.compute_seconds < 0.5 * 20 * mean_ms / 1000 * steps
        assert set(server.staleness_histogram) == {0}
    else:
        assert server.dropped_gradients == 0
        assert sum(summary.cancelled_steps for summary in summaries) == 0
        assert server.average_gradient_staleness > 0
