"""Train with Lockstep's own tasks: a server and workers, as processes of this machine.

Runs in the bench's main process; `run_task` in the children of a run.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.case import RoundFailed
from bench.processes import Child, Processes, Target
from bench.workload import Epoch
from contract.metrics import (
    Record,
    TaskFailed,
    TaskStarted,
    WorkerEpoch,
    WorkerSummary,
    from_line,
    is_metric_line,
)
from contract.task import TaskEnvironment
from runtime.__main__ import main

LISTEN_SECONDS = 30.0
CAUSE_SECONDS = 5.0
"""How long the task that failed first may take to say why, after another has noticed."""
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Trained:
    """What the tasks of one training said."""

    workers: Sequence[Sequence[Record]]
    """By rank, in the order in which they were printed."""

    @property
    def by_rank(self) -> list[list[WorkerEpoch]]:
        """Each rank's epochs."""
        return [[record for record in rank if isinstance(record, WorkerEpoch)] for rank in self.workers]

    @property
    def parameters(self) -> int:
        """Of the model."""
        return next(record.parameters for record in self.workers[0] if isinstance(record, TaskStarted))

    @property
    def bytes_per_step(self) -> float:
        """What one worker sent and received, on average."""
        travelled = sum(summary.sent_bytes + summary.received_bytes for summary in self._summaries)
        return travelled / sum(summary.steps for summary in self._summaries)

    @property
    def accuracy(self) -> float:
        """Of the final parameters on the whole test set, per cent."""
        for summary in self._summaries:
            if summary.final_test_correct is not None and summary.final_test_samples:
                return 100 * summary.final_test_correct / summary.final_test_samples
        # Those that the last epoch's shares were tested with are the final ones.
        last = [epochs[-1] for epochs in self.by_rank]
        return 100 * sum(e.test_correct for e in last) / sum(e.test_samples for e in last)

    @property
    def epochs(self) -> list[list[Epoch]]:
        """Each rank's epochs, as those of other systems."""
        return [
            [
                Epoch(
                    record.epoch_seconds,
                    record.loss if record.loss is not None else float("nan"),
                    record.steps,
                )
                for record in rank
            ]
            for rank in self.by_rank
        ]

    @property
    def _summaries(self) -> list[WorkerSummary]:
        return [record for rank in self.workers for record in rank if isinstance(record, WorkerSummary)]


def run_task(pipe: "Connection[Any, Any]", role: str, environ: dict[str, str]) -> None:
    """Run a task as it runs anywhere; sends its exit code, and nothing beside it."""
    pipe.send((run_main(role, environ), None))
    pipe.recv()


def run_main(role: str, environ: dict[str, str]) -> int:
    """Run a task with these variables and no others; returns its exit code."""
    os.environ.clear()
    os.environ.update(environ)
    return main([role])


def train(
    environment: TaskEnvironment, folder: Path, task: Target = run_task, *args: Any
) -> tuple[Trained, list[Any]]:
    """Train as `environment` says, to the end. Raises RoundFailed.

    `task`: runs in each child, as `run_task` does, with `args` after the role and the variables. Returns also what each
    child sent beside its exit code; the server's comes last.
    """
    environ = environment.to_environ()
    # Tasks tune malloc themselves.
    with Processes(folder, TIMEOUT_SECONDS, tuned=False) as processes:
        server = processes.start("server", task, "server", environ, *args)
        environ["PARAMETER_SERVER_ADDRESS"] = _address(server)
        workers = [
            processes.start(f"worker{rank}", task, "worker", environ | {"WORKER_RANK": str(rank)}, *args)
            for rank in range(environment.total_workers_expected)
        ]
        said = []
        for child in [*workers, server]:
            code, answer = processes.receive(child)
            if code:
                raise RoundFailed(_first_cause([*workers, server]) or f"{child.name}: {child.last_words()}")
            said.append(answer)
        return Trained([_records(worker.log) for worker in workers]), said


def _address(server: Child) -> str:
    """Where the server says that it listens. Raises RoundFailed."""
    give_up_at = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < give_up_at and not server.pipe.poll():
        if server.log.exists() and (found := re.search(r"listening on (\S+)", server.log.read_text())):
            return found[1]
        time.sleep(0.02)
    raise RoundFailed(f"the server does not listen: {server.last_words()}")


def _first_cause(children: Sequence[Child]) -> str:
    """Why a training failed: the reason of a task that gave up on its own account. The others lost it."""
    give_up_at = time.monotonic() + CAUSE_SECONDS
    while time.monotonic() < give_up_at:
        for child in children:
            for record in _records(child.log):
                if isinstance(record, TaskFailed) and not record.lost_peer:
                    return f"{child.name}: {record.reason}"
        time.sleep(0.02)
    return ""


def _records(log: Path) -> list[Record]:
    return [from_line(line) for line in log.read_text().splitlines() if is_metric_line(line)]
