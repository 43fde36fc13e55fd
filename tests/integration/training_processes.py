"""Start parameter servers and workers as processes on loopback, and read what they print.

Processes are forked by a parent that has imported the runtime, as the embedded cloud does it: importing torch
would cost each of them two seconds.
"""

import multiprocessing
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from contract.metrics import MetricRecord, Record, from_line, is_metric_line
from runtime.__main__ import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["runtime.server", "runtime.worker", "preloaded"])

START_SECONDS = 60.0
"""For a process to say what is waited for, on however slow a machine."""

R = TypeVar("R", bound=Record)


def _run(role: str, environ: dict[str, str], stem: Path) -> None:
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(stem.with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environ)
    os._exit(main([role]))


class Task:
    """One server or worker process."""

    def __init__(self, role: str, environ: dict[str, str], stem: Path) -> None:
        self._stem = stem
        self.process: BaseProcess = CONTEXT.Process(target=_run, args=(role, environ, stem), daemon=True)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        return self._read(".out")

    @property
    def errors(self) -> str:
        return self._read(".err")

    def all_records(self) -> list[MetricRecord]:
        """Its records, in order; every metric line must parse."""
        return [from_line(line) for line in self.output.splitlines() if is_metric_line(line)]

    def records(self, kind: type[R]) -> list[R]:
        """Its records of one kind."""
        return [record for record in self.all_records() if isinstance(record, kind)]

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it still runs after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches `pattern`."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            # Asked first: what a process says last, it may say between the two looks.
            alive = self.process.is_alive()
            if match := re.search(pattern, self.output):
                return match
            assert alive, f"ended with {self.process.exitcode}: {self.errors}"
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.output!r}"
            time.sleep(0.02)

    def _read(self, suffix: str) -> str:
        path = self._stem.with_suffix(suffix)
        return path.read_text() if path.exists() else ""


_claims: list[socket.socket] = []
"""UDP sockets at ports that were handed out: tests in other processes then draw others."""


def free_ports() -> int:
    """A port that is free, as the next one is, and stays so: for who listens later, and perhaps again.

    Below the ports that the kernel gives away.
    """
    while True:
        port = random.randrange(20_000, 32_000, 2)
        claim = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as first, socket.socket() as second:
            try:
                claim.bind(("127.0.0.1", port))
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                claim.close()
                continue
        _claims.append(claim)
        return port


class Experiment:
    """A server, or one for each of `SHARDS`, and its workers, each with the same settings."""

    def __init__(self, folder: Path, workers: int, **settings: object) -> None:
        """`settings`: variables of the task environment."""
        self._folder = folder
        self.environ = {
            "PATH": os.environ.get("PATH", ""),
            "STUDY_ID": "study",
            "EXPERIMENT_NAME": folder.name,
            "TOTAL_WORKERS_EXPECTED": str(workers),
            "SERVER_PORT": "0",
            **{name: str(value) for name, value in settings.items()},
        }
        self.name = self.environ["EXPERIMENT_NAME"]
        self.workers: list[Task] = []
        self.servers: list[Task] = []
        """By shard."""
        self._started = 0
        for shard in range(int(self.environ.get("SHARDS", 1))):
            self.start_server(shard)

    @property
    def server(self) -> Task:
        """The only one, or that of the first shard."""
        return self.servers[0]

    def start_server(self, shard: int = 0) -> Task:
        """Start a shard's server, also in place of one that is gone."""
        environ = self.environ | {"SHARD_INDEX": str(shard)}
        server = Task("server", environ, self._folder / f"server-{self._started}")
        self._started += 1
        self.servers[shard : shard + 1] = [server]
        self.address = ",".join(each.wait_for(r"listening on (\S+)\n")[1] for each in self.servers)
        return server

    def start_worker(self, rank: int, **settings: object) -> Task:
        """Start the worker of a rank, with other settings where they are given."""
        environ = {
            **self.environ,
            "PARAMETER_SERVER_ADDRESS": self.address,
            "WORKER_RANK": str(rank),
            **{name: str(value) for name, value in settings.items()},
        }
        worker = Task("worker", environ, self._folder / f"worker{rank}-{len(self.workers)}")
        self.workers.append(worker)
        return worker

    def start_workers(self, **settings: object) -> None:
        """Start those of all ranks."""
        for rank in range(int(self.environ["TOTAL_WORKERS_EXPECTED"])):
            self.start_worker(rank, **settings)

    @property
    def tasks(self) -> list[Task]:
        return [*self.servers, *self.workers]

    def exit_codes(self, seconds: float) -> list[int | None]:
        """Servers' and workers' exit codes, when all have ended or `seconds` are over."""
        deadline = time.monotonic() + seconds
        return [task.wait(max(deadline - time.monotonic(), 0)) for task in self.tasks]

    def kill(self) -> None:
        """Leave nothing of it running."""
        for task in self.tasks:
            task.process.kill()
            task.process.join()


@contextmanager
def served(folder: Path, workers: int, **settings: object) -> Iterator[Experiment]:
    """An experiment whose workers are yet to be started; nothing of it is left running."""
    folder.mkdir(exist_ok=True)
    running = Experiment(folder, workers, **settings)
    try:
        yield running
    finally:
        running.kill()


@contextmanager
def experiment(folder: Path, workers: int, **settings: object) -> Iterator[Experiment]:
    """An experiment with all its workers started; nothing of it is left running."""
    with served(folder, workers, **settings) as running:
        running.start_workers()
        yield running
