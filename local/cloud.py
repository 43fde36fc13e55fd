"""The embedded cloud: task engine, emulator and the deployed stack as one thing that starts and stops.

A supervisor process (`python -m local`) owns the parts; whoever starts it talks to the AWS endpoint only.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from cdk import REPOSITORY
from contract.errors import LockstepError
from local.processes import ProcessFailed, kill_session, spawn, stop, tail

STATE = REPOSITORY / ".lockstep"
"""Everything that embedded clouds write lies below it."""

Engine = Literal["process", "docker"]

STEP_SECONDS: Mapping[Engine, float] = {"process": 180, "docker": 900}
"""How long one step of the start may take; a Docker engine's builds the training image."""
STOP_SECONDS = 20
STEP = "==> "
"""Before each line of the supervisor's log that tells how far the start has come."""


class CloudAlreadyUp(LockstepError):
    """`up` was called twice."""


@dataclass(frozen=True)
class Cloud:
    """A running embedded cloud, as its supervisor announces it."""

    pid: int
    endpoint: str
    outputs: dict[str, str]
    state: str
    supervisor: subprocess.Popen[bytes] | None = field(default=None, compare=False, repr=False)
    """Its process, where this process has started it."""

    @classmethod
    def load(cls, state: Path) -> Self | None:
        """The cloud whose files lie under `state`, or None where none is running."""
        try:
            cloud = cls(**json.loads(_announcement(state).read_text()))
        except FileNotFoundError:
            return None
        return cloud if _is_supervisor(cloud.pid) else None

    def save(self) -> None:
        """Announce it, all at once."""
        file = _announcement(Path(self.state))
        draft = file.with_suffix(".draft")
        draft.write_text(
            json.dumps({name: getattr(self, name) for name in ("pid", "endpoint", "outputs", "state")})
        )
        draft.replace(file)

    def stop(self) -> None:
        """End it and everything that it runs; the supervisor takes its files along."""
        if self.supervisor is not None:
            stop(self.supervisor, STOP_SECONDS)
        elif _is_supervisor(self.pid):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _is_supervisor(self.pid):
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
    if Cloud.load(state) is not None:
        raise CloudAlreadyUp(f"an embedded cloud is running already; stop it with: ./lockstep down ({state})")
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    log = state / "supervisor.log"
    supervisor = spawn(
        [sys.executable, "-m", "local", "--state", str(state), "--engine", engine], log=log, tied=tied
    )
    try:
        return _await_cloud(state, supervisor, log, progress, STEP_SECONDS[engine])
    except BaseException:
        stop(supervisor, STOP_SECONDS)
        raise


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


def _is_supervisor(pid: int) -> bool:
    """Whether that process runs and is a supervisor of ours: process ids are used again by others."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"local" in command and b"--state" in command
