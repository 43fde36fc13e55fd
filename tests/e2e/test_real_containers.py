"""A study in real containers: where a Docker engine answers and an image can be built; see docs/embedded-cloud.md."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from local.cloud import STATE
from local.docker_proxy.rewriting import CLOUD_LABEL
from local.docker_proxy.upstream import engine_url
from tests.e2e.machine import LOCKSTEP, LONG, QUICK, ROOT, bare_environment, until

# docker-py leaves the sockets of surplus pooled connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

BUILD_SECONDS = 240
"""For a run to be under way where the image has to be built first."""


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    if not os.environ.get("LOCKSTEP_BASE_IMAGE"):
        pytest.skip("set LOCKSTEP_BASE_IMAGE to a base image of a Docker engine, see docs/embedded-cloud.md")
    try:
        client = docker.DockerClient(base_url=engine_url())
    except DockerException:
        pytest.skip(f"no Docker engine answers at {engine_url()}; start one, or name it with DOCKER_HOST")
    yield client
    client.close()


@contextmanager
def running(study: Path, output: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`lockstep run` in real containers, as in a terminal of its own; killed when the test is done."""
    settings = {k: v for k, v in os.environ.items() if k == "DOCKER_HOST" or k.startswith("LOCKSTEP_")}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [LOCKSTEP, "run", str(study), "--local", "--engine", "docker", "--output", str(output)],
            cwd=ROOT,
            env=bare_environment() | settings,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def containers_of(engine: docker.DockerClient, process: subprocess.Popen[bytes]) -> set[str]:
    """The names of the containers that belong to a run's cloud, in whatever state."""
    own = {"label": f"{CLOUD_LABEL}={STATE / f'run-{process.pid}'}"}
    found = engine.api.containers(all=True, filters=own)
    return {name for container in found for name in container["Names"]}


def test_a_study_runs_in_real_containers(
    engine: docker.DockerClient, study_file: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    # Given a study of one sync experiment
    study = study_file({"experiments": [{"name": "real", "mode": "sync", "workers": 2}], "training": QUICK})
    log, output = tmp_path / "log", tmp_path / "results"
    seen: set[str] = set()

    # When it is run
    with running(study, output, log) as process:

        def ended() -> bool:
            seen.update(containers_of(engine, process))
            return process.poll() is not None

        until(ended, BUILD_SECONDS + 120, "the run has ended")

        # Then it completed, in one container for each task, and none is left
        assert process.returncode == 0, log.read_text()
        assert sorted(name.rsplit("-", 1)[1] for name in seen) == ["server", "worker", "worker"]
        assert containers_of(engine, process) == set()
    summary = next(iter((output / "latest").glob("summary.csv"))).read_text()
    assert "COMPLETED" in summary
    assert (output / "latest" / "report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_container(
    number: signal.Signals,
    engine: docker.DockerClient,
    study_file: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    endless = {
        "experiments": [{"mode": "sync", "workers": 2}],
        "training": {**QUICK, "epochs": 100},
        "compute": LONG,
    }
    with running(study_file(endless), tmp_path / "results", tmp_path / "log") as process:
        until(lambda: len(containers_of(engine, process)) == 3, BUILD_SECONDS, "its tasks are running")

        os.kill(process.pid, number)
        process.wait(90)

        until(lambda: not containers_of(engine, process), 60, "no container of its cloud left")
