"""The embedded cloud: task engine, emulator and the deployed stack as one thing that starts and stops.

A supervisor process (`python -m local`) owns the parts; whoever starts it talks to the AWS endpoint only.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from cdk import REPOSITORY
from contract.errors import LockstepError
from local.processes import ProcessFailed, announce, kill_session, spawn, stop, tail

STATE = REPOSITORY / ".lockstep"
"""Everything that embedded clouds write lies below it."""

Engine = Literal["process", "docker"]

STEP_SECONDS: Mapping[Engine, float] = {"process": 180, "docker": 900}
"""How long one step of the start may take; a Docker engine's builds the training image."""
STOP_SECONDS = 90
"""Its parts take 15 s at most, before a Docker engine 60 s; the rest is for a busy machine. What is killed leaves its
files, and its containers."""
RUN_PREFIX = "run-"
STEP = "==> "
"""Before each line of the supervisor's log that tells how far the start has come."""


class CloudAlreadyUp(LockstepError):
    """`up` was called twice, or while the cloud before it is ending."""


class OtherCloudUp(LockstepError):
    """The cloud that is up runs tasks otherwise, or from other sources, than what is asked for."""


@dataclass(frozen=True)
class Cloud:
    """A running embedded cloud, as its supervisor announces it."""

    pid: int
    endpoint: str
    outputs: dict[str, str]
    state: str
    engine: Engine
    sources: str
    """The hash of the sources that it was started from."""
    supervisor: subprocess.Popen[bytes] | None = field(default=None, compare=False, repr=False)
    """Its process, where this process has started it."""

    @classmethod
    def load(cls, state: Path) -> Self | None:
        """The cloud whose files lie under `state`, or None where none is running."""
        try:
            cloud = cls(**json.loads(_announcement(state).read_text()))
        except FileNotFoundError:
            return None
        return cloud if cloud.is_alive() else None

    def save(self) -> None:
        """Announce it."""
        names = ("pid", "endpoint", "outputs", "state", "engine", "sources")
        announce(_announcement(Path(self.state)), {name: getattr(self, name) for name in names})

    def is_alive(self) -> bool:
        """Whether its supervisor runs: process ids are used again by others."""
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return b"local" in command and os.fsencode(self.state) in command

    def require(self, engine: Engine | None, sources: str) -> None:
        """Raise OtherCloudUp unless it runs tasks with that engine (None: with any), from those sources."""
        differences = []
        if engine not in {None, self.engine}:
            differences.append(f"tasks with --engine {self.engine}, not {engine}")
        if sources != self.sources:
            differences.append("other code than this checkout has now")
        if differences:
            raise OtherCloudUp(
                f"the cloud that is up runs {' and '.join(differences)}; run ./lockstep down first"
            )

    def stop(self) -> None:
        """End it and everything that it runs; the supervisor takes its files along."""
        if self.supervisor is not None:
            stop(self.supervisor, STOP_SECONDS)
        elif self.is_alive():
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.is_alive():
            if time.monotonic() > deadline:
                kill_session(self.pid)
            time.sleep(0.05)


def start_cloud(
    state: Path, *, engine: Engine = "process", tied: bool, progress: Callable[[str], None]
) -> Cloud:
    """Start an embedded cloud with its files under `state`.

    `engine`: "process" runs tasks as processes, "docker" in the Docker engine of this machine. `tied`: it
    ends with the calling process. Raises ProcessFailed with the reason when it does not come up, and
    CloudAlreadyUp when one is running there.
    """
    log = supervisor_log(state)
    with owned(state) as lock:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        supervisor = spawn(
            [sys.executable, "-m", "local", "--state", str(state), "--engine", engine],
            log=log,
            on_parent_death=signal.SIGTERM if tied else None,
            keep_open=[lock],  # and so the lock is the supervisor's, for as long as that lives
        )
    try:
        return _await_cloud(state, supervisor, log, progress, STEP_SECONDS[engine])
    except BaseException:
        stop(supervisor, STOP_SECONDS)
        raise


def remove_files(state: Path) -> None:
    """Remove everything that a cloud wrote; for its owner only."""
    shutil.rmtree(state, ignore_errors=True)
    _lock_file(state).unlink(missing_ok=True)


def supervisor_log(state: Path) -> Path:
    """Where a cloud's supervisor says what it does."""
    return state / "supervisor.log"


def run_state(pid: int) -> Path:
    """The folder of the cloud that one run starts for itself."""
    return STATE / f"{RUN_PREFIX}{pid}"


def prune_runs(below: Path = STATE) -> None:
    """Remove what runs have left that failed or were killed, once neither they nor their clouds live."""
    for state in {entry.with_suffix("") for entry in below.glob(f"{RUN_PREFIX}*")}:  # folders and their locks
        if Path("/proc", state.name.removeprefix(RUN_PREFIX)).exists():
            continue
        with suppress(CloudAlreadyUp), owned(state):
            remove_files(state)


def _await_cloud(
    state: Path,
    supervisor: subprocess.Popen[bytes],
    log: Path,
    progress: Callable[[str], None],
    step_seconds: float,
) -> Cloud:
    deadline = time.monotonic() + step_seconds
    told = 0
    while time.monotonic() < deadline:
        steps = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(STEP)]
        for step in steps[told:]:
            progress(step.removeprefix(STEP))
            deadline = time.monotonic() + step_seconds
        told = len(steps)
        if cloud := Cloud.load(state):
            return replace(cloud, supervisor=supervisor)
        if supervisor.poll() is not None:
            raise ProcessFailed(f"the embedded cloud did not start:\n{tail(log)}")
        time.sleep(0.05)
    raise ProcessFailed(f"the embedded cloud got no further for {step_seconds:.0f} s:\n{tail(log)}")


def _announcement(state: Path) -> Path:
    return state / "cloud.json"


def _lock_file(state: Path) -> Path:
    """Beside the folder: the folder is removed by whoever owns it."""
    return state.with_name(f"{state.name}.lock")


@contextmanager
def owned(state: Path) -> Iterator[int]:
    """Own a cloud's folder, which need not exist; the lock's descriptor. Raises CloudAlreadyUp.

    Whoever inherits the descriptor owns the folder from then on.
    """
    state.parent.mkdir(parents=True, exist_ok=True)
    lock = _locked(_lock_file(state))
    if lock is None:
        if Cloud.load(state):
            raise CloudAlreadyUp(
                f"an embedded cloud is running already; stop it with: ./lockstep down ({state})"
            )
        raise CloudAlreadyUp(f"an embedded cloud is starting, or ending, in {state}; try again when it has")
    try:
        yield lock
    finally:
        os.close(lock)


def _locked(file: Path) -> int | None:
    """The descriptor of a lock that nobody else holds now; None where somebody does."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # An owner removes the file when it ends: what was locked may be no longer what others would lock.
        if os.path.samestat(os.fstat(lock), file.stat()):
            return lock
    os.close(lock)
    return None
