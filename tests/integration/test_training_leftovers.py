"""What is left when tasks end, in whatever way: nothing but checkpoints. And a worker that ends before it trains."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training_processes import Experiment, Task, experiment, served

from contract.metrics import TaskFailed

PATIENCE = 180.0
NOTICED_WITHIN = 15.0

LONG = {"EPOCHS": 1000, "COMPUTE_MODE": "emulated", "COMPUTE_MEAN_MS": 20}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_training(running: Experiment) -> None:
    for worker in running.workers:
        worker.wait_for('"kind":"worker_epoch"')


def shared_memory_of(task: Task) -> int:
    """How many workers' vectors a process has mapped."""
    maps = Path(f"/proc/{task.pid}/maps").read_text()
    return len({line.split()[4] for line in maps.splitlines() if "memfd:lockstep-vectors" in line})


def descriptors_of(task: Task) -> int:
    return len(os.listdir(f"/proc/{task.pid}/fd"))  # noqa: PTH208 - of a process, not of files


def threads_of(task: Task) -> int:
    return len(os.listdir(f"/proc/{task.pid}/task"))  # noqa: PTH208 - as above


def test_a_server_keeps_nothing_of_workers_that_come_and_go(tmp_path: Path) -> None:
    # Given a worker that is killed, and one in its place, time and again
    with experiment(tmp_path, 2, ON_WORKER_LOSS="continue", **LONG) as running:
        wait_until_training(running)
        assert shared_memory_of(running.server) == 2
        descriptors, threads = descriptors_of(running.server), threads_of(running.server)
        for attempt in range(1, 4):
            running.workers[-1].process.kill()
            wait_until(lambda: shared_memory_of(running.server) == 1)
            running.start_worker(1, WORKER_ATTEMPT=attempt).wait_for('"kind":"worker_epoch"')
            wait_until(lambda: shared_memory_of(running.server) == 2)
        # Then the server has as many descriptors and threads as before, but for those of gRPC's pool
        wait_until(lambda: descriptors_of(running.server) <= descriptors + 2)
        wait_until(lambda: threads_of(running.server) <= threads + 4)


@pytest.mark.parametrize("transport", ["shared-memory", "tcp"])
def test_tasks_that_are_told_to_stop_leave_nothing_behind(transport: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {"CHECKPOINT_SECONDS": 0.1, "CHECKPOINT_LOCATION": tmp_path / "checkpoints", "TMPDIR": folder}
    with experiment(folder, 2, TRANSPORT=transport, **settings, **LONG) as running:
        wait_until_training(running)
        # When all are told to stop, whatever their threads do
        for task in running.tasks:
            task.process.terminate()
        # Then they do so, in the time that they have
        assert running.exit_codes(NOTICED_WITHIN) == [128 + signal.SIGTERM] * 3
        for task in running.tasks:
            assert [failure.reason for failure in task.records(TaskFailed)] == ["stopped by SIGTERM"]
            assert len(task.errors.splitlines()) == 1
    # Then there are what they printed and whole checkpoints
    outputs = {
        f"{name}{suffix}" for name in ("server-0", "worker0-0", "worker1-1") for suffix in (".out", ".err")
    }
    assert {path.name for path in folder.iterdir()} == outputs
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".safetensors"] * 2


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_lost_before_it_is_ready_is_noticed(signum: signal.Signals, tmp_path: Path) -> None:
    # Given a worker whose data never comes: it waits for S3 to answer
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = {
            "DATASET": "mnist",
            "MODEL": "mlp",
            "DATA_DIRECTORY": "s3://bucket/mnist",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        with served(tmp_path, 2, **settings) as running:
            running.start_worker(1)
            silent.settimeout(PATIENCE)
            connection, _ = silent.accept()
            with connection:
                # When it is killed, or stands still
                began = time.monotonic()
                os.kill(running.workers[0].pid, signum)
                # Then the server does not wait for the rest of the 300 s that workers have to come
                assert running.server.wait(NOTICED_WITHIN) == 1
                assert time.monotonic() - began < NOTICED_WITHIN
        [failure] = running.server.records(TaskFailed)
    assert failure.reason == "worker 1 vanished: its connection closed before training began"
    assert failure.lost_peer == "worker 1"
