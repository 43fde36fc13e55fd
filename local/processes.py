"""Child processes that cannot outlive their parent, and the files in which they announce themselves.

Used by the embedded cloud and by the command line; Linux only where it says so.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from contract.errors import LockstepError

_PR_SET_PDEATHSIG = 1


class ProcessFailed(LockstepError):
    """A part of the embedded cloud did not start or died; the message ends with what it said last."""


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Linux: have the kernel send this process a signal when the thread that started it ends (prctl(2)).

    `parent`: its process, which may be dead by now.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def spawn(
    arguments: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    on_parent_death: signal.Signals | None = signal.SIGTERM,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output in `log`; a terminal's Ctrl-C does not reach it.

    `on_parent_death`: what it is sent when the calling thread ends, however that ends; call from the main
    thread then. None: it lives on. `keep_open`: file descriptors that it inherits.
    """
    # PR_SET_PDEATHSIG works for programs that know nothing of it, and from their first instruction on. Servers
    # of ours that others start without it watch their parent themselves: local/engine/lifetime.py.
    prepare = partial(die_with_parent, os.getpid(), on_parent_death) if on_parent_death else None
    with log.open("ab") as output:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env) if env is not None else None,
            start_new_session=True,
            pass_fds=keep_open,
            preexec_fn=prepare,  # noqa: PLW1509 - called before threads are started
        )


def stop(process: subprocess.Popen[bytes], grace_seconds: float = 10) -> None:
    """SIGTERM, then after the grace SIGKILL for its whole session. Returns when the process is gone."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill_session(process.pid)
        process.wait()


def kill_session(leader: int) -> None:
    """SIGKILL whatever is left in the process group of a session leader."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def await_announcement(
    file: Path, process: subprocess.Popen[bytes], log: Path, patience_seconds: float
) -> dict[str, Any]:
    """The JSON object that a process writes when it is ready. Raises ProcessFailed when it never does."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if file.exists():
            announcement: dict[str, Any] = json.loads(file.read_text())
            return announcement
        if process.poll() is not None:
            raise ProcessFailed(f"{process.args!r} ended with code {process.returncode}:\n{tail(log)}")
        time.sleep(0.05)
    raise ProcessFailed(f"{process.args!r} was not ready after {patience_seconds:.0f} s:\n{tail(log)}")


def announce(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees all of it or nothing."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    draft.replace(file)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file."""
    if not log.exists():
        return "(it said nothing)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A loopback port that is free at present. Whoever takes it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
