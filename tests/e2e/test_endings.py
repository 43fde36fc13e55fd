"""However the command ends, and however many run at once: no process stays, no port clashes."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.cloud import Cloud, CloudAlreadyUp, run_state, start_cloud
from tests.e2e.machine import (
    LONG,
    PATIENCE_SECONDS,
    QUICK,
    client,
    processes_of,
    running_tasks,
    started,
    until,
)
from tests.processes import has_ended

ENDLESS = {
    "experiments": [{"mode": "sync", "workers": 2}],
    "training": {**QUICK, "epochs": 100},
    "compute": LONG,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_leaves_nothing(
    number: signal.Signals, study_file: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    # Given a run with a cloud of its own, in the middle of training
    log = tmp_path / "log"
    with started("run", str(study_file(ENDLESS)), "--local", log=log) as process:
        state = run_state(process.pid)
        cloud = until(lambda: Cloud.load(state), "its cloud is up")
        until(lambda: len(running_tasks(cloud)) == 3, "its tasks are running")
        tasks = [psutil.Process(task.pid) for task in running_tasks(cloud)]

        # When it is told to end, or killed
        os.kill(process.pid, number)
        status = process.wait(PATIENCE_SECONDS)

    # Then its exit status says so, and neither its cloud nor a task is left
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    until(lambda: not processes_of(str(state)), "no process of its cloud left")
    until(lambda: all(map(has_ended, tasks)), "no task left")
    assert b"Traceback" not in log.read_bytes()


def test_interrupt_while_the_cloud_is_starting_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started("demo", log=log) as process:
        state = run_state(process.pid)
        until((state / "engine.log").exists, "its cloud has begun to start")
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130
    until(lambda: not processes_of(str(state)), "no process of its cloud left")
    assert not state.exists()
    assert b"Traceback" not in log.read_bytes()


def test_two_runs_at_once_do_not_clash(study_file: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    study = str(study_file({"experiments": [{"mode": "async", "workers": 2}], "training": QUICK}))
    logs = [tmp_path / name for name in ("one", "two")]
    outputs = [str(tmp_path / f"results-{name}") for name in ("one", "two")]
    with (
        started("run", study, "--local", "--output", outputs[0], log=logs[0]) as one,
        started("run", study, "--local", "--output", outputs[1], log=logs[1]) as two,
    ):
        ends = [run.wait(PATIENCE_SECONDS) for run in (one, two)]
        assert ends == [0, 0], [log.read_text() for log in logs]
    for output in outputs:
        assert Path(output, "latest", "report.html").exists()


def test_second_cloud_in_the_same_place_is_refused(cloud: Cloud) -> None:
    with pytest.raises(CloudAlreadyUp, match="lockstep down"):
        start_cloud(Path(cloud.state), tied=True, progress=print)


def test_second_cloud_is_refused_from_the_first_moment_and_a_killed_supervisor_leaves_nothing(
    tmp_path: Path,
) -> None:
    # Given a cloud that somebody tries to start once more at every step of its start
    state = tmp_path / "state"
    refusals: list[str] = []

    def start_another(_: str) -> None:
        with pytest.raises(CloudAlreadyUp) as refused:
            start_cloud(state, tied=True, progress=print)
        refusals.append(str(refused.value))

    cloud = start_cloud(state, tied=True, progress=start_another)
    try:
        assert len(refusals) >= 3
        # Not all of them: it may have started before this process heard of the last step
        assert "starting" in refusals[0]
        # And which is in the middle of a study
        client(cloud, "stepfunctions").start_execution(
            stateMachineArn=cloud.outputs["StateMachineArn"], name="endless", input=json.dumps(ENDLESS)
        )
        until(lambda: len(running_tasks(cloud)) == 3, "its tasks are running")
        supervisor = psutil.Process(cloud.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        assert len(processes) > 1 + 3 + 3  # it, the parts, the tasks

        # When its supervisor is killed
        supervisor.kill()

        # Then every process of it is soon gone
        assert cloud.supervisor is not None
        cloud.supervisor.wait(PATIENCE_SECONDS)
        until(lambda: all(map(has_ended, processes)), "no process of it left")
        # Nor one that was started since they were counted
        until(lambda: not processes_of(str(state)), "no process of its cloud left")
    finally:
        cloud.stop()
        for process in processes_of(str(state)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_death_of_the_emulator_is_told_in_few_lines(
    study_file: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    # Given a run in the middle of training
    log = tmp_path / "log"
    with started("run", str(study_file(ENDLESS)), "--local", "--output", str(tmp_path), log=log) as process:
        state = run_state(process.pid)
        cloud = until(lambda: Cloud.load(state), "its cloud is up")
        until(lambda: running_tasks(cloud), "a task is running")

        # When the emulator dies
        (emulator,) = (p for p in psutil.Process(cloud.pid).children() if "local.emulation" in p.cmdline())
        emulator.kill()

        # Then the command ends and says what it could not reach, and what became of the study
        assert process.wait(PATIENCE_SECONDS) == 1
    said = log.read_text()
    assert "Traceback" not in said
    assert "Could not connect to the endpoint" in said.splitlines()[-1]
    assert f"the embedded cloud at {cloud.endpoint} ends, and with it the study" in said
    until(lambda: not processes_of(str(state)), "no process of its cloud left")
