"""A peer that vanishes, in whatever way, is noticed by every other process within 15 s, with the cause."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from training_processes import Experiment, Task, experiment, served

from contract.metrics import TaskFailed

NOTICED_WITHIN = 15.0

DEADLINE_SECONDS = 10
"""Of an experiment that is to reach it: all its workers join before, on however slow a machine."""
AFTER_IT = 60.0

LONG = {"EPOCHS": 1000, "COMPUTE_MODE": "emulated", "COMPUTE_MEAN_MS": 20}
"""Training that would go on for minutes."""


def wait_until_training(running: Experiment) -> None:
    for worker in running.workers:
        worker.wait_for('"kind":"worker_epoch"')


def wait_all(tasks: list[Task], seconds: float = NOTICED_WITHIN) -> None:
    deadline = time.monotonic() + seconds
    for task in tasks:
        task.wait(max(deadline - time.monotonic(), 0))


def assert_failed(task: Task, cause: str, *, lost_peer: str = "", exit_code: int = 1) -> None:
    """Its exit code, its one line and its last record say the same."""
    assert task.process.exitcode == exit_code
    failures = task.records(TaskFailed)
    assert [failure.lost_peer for failure in failures] == [lost_peer]
    assert re.search(cause, failures[0].reason)
    [failure] = failures
    whose = f"{failure.study}/{failure.experiment}"
    assert task.errors.splitlines() == [f"lockstep-{failure.role} {whose}: {failure.reason}"]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_vanished_worker_ends_every_process(mode: str, signum: signal.Signals, tmp_path: Path) -> None:
    with experiment(tmp_path, 3, SERVER_MODE=mode, **LONG) as running:
        wait_until_training(running)
        # When one worker is killed, or stands still
        os.kill(running.workers[1].pid, signum)
        # Then all others end in time and name it
        others = [running.server, running.workers[0], running.workers[2]]
        wait_all(others)
        for task in others:
            assert_failed(
                task,
                r"worker 1 vanished: its connection closed after \d+ of 29000 steps",
                lost_peer="worker 1",
            )


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_vanished_server_ends_every_worker(signum: signal.Signals, tmp_path: Path) -> None:
    # Steps as long as the test: a worker that computes notices too
    with experiment(tmp_path, 2, **{**LONG, "COMPUTE_MEAN_MS": 600_000}) as running:
        for worker in running.workers:
            worker.wait_for('"kind":"task_started"')
        running.server.wait_for('"kind":"server_interval"')
        os.kill(running.server.pid, signum)
        wait_all(running.workers)
        for worker in running.workers:
            assert_failed(worker, "the server vanished", lost_peer="server")


def test_a_server_that_is_told_to_stop_tells_its_workers(tmp_path: Path) -> None:
    with experiment(tmp_path, 2, **LONG) as running:
        wait_until_training(running)
        running.server.process.terminate()
        wait_all(running.tasks)
        assert_failed(running.server, "stopped by SIGTERM", exit_code=128 + signal.SIGTERM)
        for worker in running.workers:
            assert_failed(worker, "the server was stopped by SIGTERM", lost_peer="server")


def test_a_worker_that_is_told_to_stop_does_so_at_its_barrier(tmp_path: Path) -> None:
    with experiment(tmp_path, 2, **LONG) as running:
        wait_until_training(running)
        running.workers[0].process.terminate()
        wait_all(running.tasks)
        assert_failed(running.workers[0], "stopped by SIGTERM", exit_code=128 + signal.SIGTERM)
        assert_failed(running.server, "worker 0 vanished", lost_peer="worker 0")
        assert_failed(running.workers[1], "worker 0 vanished", lost_peer="worker 0")


def test_the_deadline_ends_a_training_that_does_not_end(tmp_path: Path) -> None:
    with experiment(tmp_path, 1, EXPERIMENT_TIMEOUT_SECONDS=DEADLINE_SECONDS, **LONG) as running:
        wait_all(running.tasks, AFTER_IT)
        cause = f"training did not end within EXPERIMENT_TIMEOUT_SECONDS={DEADLINE_SECONDS}"
        assert_failed(running.server, cause)
        assert_failed(running.workers[0], cause, lost_peer="server")


def test_a_server_names_the_workers_that_never_came(tmp_path: Path) -> None:
    with served(tmp_path, 3, EXPERIMENT_TIMEOUT_SECONDS=DEADLINE_SECONDS) as running:
        worker = running.start_worker(1)
        wait_all(running.tasks, AFTER_IT)
        cause = r"not all workers joined within \d+ s: missing ranks 0, 2"
        assert_failed(running.server, cause)
        assert_failed(worker, cause, lost_peer="server")
