"""Crashes that a study asks for, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.faults import stay_away

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120.0
PROGRAM = """
import json, os, sys
from contract.task import TaskEnvironment
from runtime.faults import crash_if_due

environment = TaskEnvironment.from_environ(os.environ)
sys.executable = os.environ["INTERPRETER"]
for step in range(5):
    print("step", step, flush=True)
    crash_if_due(environment, step)
"""


TELL = """
import os
print(*(os.environ[name] for name in ('WORKER_ATTEMPT', 'WORKER_AWAY_SECONDS', 'PYTHONPATH')))
"""


FIRST_OF_ITS_CONTAINER = "import os\nos.kill = lambda *_: None\n"
"""Signals to itself do nothing: man 7 pid_namespaces."""


def run(
    tmp_path: Path, *, rank: int = 1, attempt: int = 0, before: str = "", **crash: object
) -> "subprocess.CompletedProcess[str]":
    """A worker that pushes five steps, where a crash is planned. In its place starts what tells its variables."""
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(f'#!/bin/sh\necho "arguments $@"\nexec {sys.executable} -c "{TELL}"\n')
    interpreter.chmod(0o755)
    environ = os.environ | {
        "TOTAL_WORKERS_EXPECTED": "2",
        "WORKER_RANK": str(rank),
        "WORKER_ATTEMPT": str(attempt),
        "ON_WORKER_LOSS": "continue",
        "FAULTS_CRASHES": json.dumps([{"rank": 1, "step": 3, **crash}]),
        "INTERPRETER": str(interpreter),
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.run(
        [sys.executable, "-c", before + PROGRAM],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_worker_dies_without_a_word_before_it_pushes_that_step(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines() == [f"step {step}" for step in range(4)]
    assert done.stderr == ""


def test_the_first_process_of_a_container_dies_as_well(tmp_path: Path) -> None:
    done = run(tmp_path, before=FIRST_OF_ITS_CONTAINER)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stdout.splitlines() == [f"step {step}" for step in range(4)]
    assert done.stderr == ""


@pytest.mark.parametrize(("rank", "attempt"), [(0, 0), (1, 1)], ids=["another rank", "a later life"])
def test_nobody_else_dies(tmp_path: Path, rank: int, attempt: int) -> None:
    done = run(tmp_path, rank=rank, attempt=attempt)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "step 4")


def test_one_that_comes_back_is_started_anew_in_its_place(tmp_path: Path) -> None:
    done = run(tmp_path, restart_after_seconds=2.5)
    assert done.returncode == 0, done.stderr
    *steps, arguments, told = done.stdout.splitlines()
    assert steps == [f"step {step}" for step in range(4)]
    assert arguments == "arguments -m runtime worker"
    assert told == f"1 2.5 {REPOSITORY}"


def test_who_was_not_told_to_stay_away_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    stay_away({})
    stay_away({"WORKER_AWAY_SECONDS": "2.5"})
    assert slept == [0.0, 2.5]
