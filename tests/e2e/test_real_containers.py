"""The demo in real containers: where a Docker engine answers and an image can be built; see docs/embedded-cloud.md.

`.ci/with-docker` puts up an engine and says here, in LOCKSTEP_NO_DOCKER, why there is none.
"""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException
from docker.models.images import Image

from local.cloud import STATE
from local.docker_proxy.rewriting import CLOUD_LABEL
from local.docker_proxy.upstream import engine_url
from tests.e2e.machine import LOCKSTEP, LONG, PATIENCE_SECONDS, QUICK, ROOT, bare_environment, until

# docker-py leaves the sockets of surplus pooled connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

BUILD_SECONDS = 600
"""For a run to be under way where the image has to be built first."""

IMAGE_BYTES = 900_000_000
"""What docs/embedded-cloud.md says that the image takes, with some room; on that page's base image."""


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    if not os.environ.get("LOCKSTEP_BASE_IMAGE"):
        pytest.skip(
            os.environ.get("LOCKSTEP_NO_DOCKER")
            or "run `.ci/with-docker make test` as root, or see docs/embedded-cloud.md, The image"
        )
    try:
        client = docker.DockerClient(base_url=engine_url())
    except DockerException:
        pytest.skip(f"no Docker engine answers at {engine_url()}; start one, or name it with DOCKER_HOST")
    yield client
    client.close()


@contextmanager
def running(*arguments: str, output: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`lockstep` with real containers, as in a terminal of its own; killed when the test is done."""
    settings = {k: v for k, v in os.environ.items() if k == "DOCKER_HOST" or k.startswith("LOCKSTEP_")}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [LOCKSTEP, *arguments, "--engine", "docker", "--output", str(output)],
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


def test_the_demo_runs_in_real_containers(engine: docker.DockerClient, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "results"
    seen: set[str] = set()

    # When the demo is run
    with running("demo", output=output, log=log) as process:

        def ended() -> bool:
            seen.update(containers_of(engine, process))
            return process.poll() is not None

        until(ended, "the demo has ended", BUILD_SECONDS + PATIENCE_SECONDS)

        # Then its six experiments completed, in one container for each task, and none is left
        assert process.returncode == 0, log.read_text()
        assert Counter(name.rsplit("-", 1)[1] for name in seen) == {"server": 6, "worker": 14}
        assert containers_of(engine, process) == set()
    assert (output / "latest" / "summary.csv").read_text().count("COMPLETED") == 6
    assert (output / "latest" / "report.html").exists()


@pytest.fixture
def image(engine: docker.DockerClient) -> Image:
    """The runtime image, which the demo has built."""
    tagged = [image for image in engine.images.list() if any("container-assets" in tag for tag in image.tags)]
    assert tagged, "no runtime image: run the whole file"
    return max(tagged, key=lambda image: str(image.attrs["Created"]))


def test_the_image_is_as_small_as_its_documentation_says(image: Image) -> None:
    assert image.attrs["Size"] < IMAGE_BYTES, f"{image.attrs['Size']:,} bytes"


SURVEY = """
import os, pathlib, shutil, sys
assert os.getuid() == 10001, os.getuid()
packages = pathlib.Path(sys.prefix)
assert packages == pathlib.Path("/packages")
left = [p for pattern in ("*.a", "*.h", "tests", "test", "pip") for p in packages.rglob(pattern)]
assert not left, left[:20]
assert not [tool for tool in ("gcc", "cc", "make", "ld") if shutil.which(tool)]
writable = [p for p in ("/app", "/packages", "/etc", "/usr") if os.access(p, os.W_OK)]
assert not writable, writable
import torch, runtime.server, runtime.worker, runtime.vision
runtime.vision.import_torchvision()
assert torch.version.cuda is None, "not the CPU build"
cached = [getattr(module, "__cached__", None) for module in list(sys.modules.values())]
compiled = [path for path in cached if isinstance(path, str)]
missing = [path for path in compiled if not os.path.exists(path)]
assert len(compiled) > 1000 and len(missing) < 10, (len(compiled), missing)
"""


def test_nothing_is_left_in_the_image_that_no_task_needs(engine: docker.DockerClient, image: Image) -> None:
    engine.containers.run(
        image.id, ["-c", SURVEY], entrypoint="python3", network_mode="none", remove=True, stderr=True
    )


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
    study = str(study_file(endless))
    output, log = tmp_path / "results", tmp_path / "log"
    with running("run", study, "--local", output=output, log=log) as process:
        until(lambda: len(containers_of(engine, process)) == 3, "its tasks are running", BUILD_SECONDS)

        os.kill(process.pid, number)
        process.wait(PATIENCE_SECONDS)

        until(lambda: not containers_of(engine, process), "no container of its cloud left")
