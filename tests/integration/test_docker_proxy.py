"""The Docker proxy between docker-py, as MiniStack uses it, and an engine: the task engine, which speaks Docker's API.

With a real Docker engine behind it, the proxy is tested by tests/e2e/test_real_containers.py.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, NotFound

from local.docker_proxy.rewriting import CLOUD_LABEL
from local.processes import await_announcement, spawn
from tests.processes import DEADLINE_SECONDS, eventually

# docker-py leaves the sockets of streams and of surplus pooled connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

CLOUD = "a cloud"


@dataclass
class Behind:
    """An engine with a proxy before it, and a client of each."""

    engine: docker.DockerClient
    proxied: docker.DockerClient
    proxy: subprocess.Popen[bytes]
    engine_url: str
    socket: Path


def start(
    folder: Path, name: str, module: str, *options: str, **environment: str
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    announcement, log = folder / f"{name}.json", folder / f"{name}.log"
    process = spawn(
        [sys.executable, "-m", module, "--announce", str(announcement), *options],
        log=log,
        env={**os.environ, **environment},
    )
    return process, await_announcement(announcement, process, log, DEADLINE_SECONDS)


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    engine, announced = start(
        tmp_path,
        "engine",
        "local.engine",
        *("--entry", "engine_entry:main"),
        PYTHONPATH=str(Path(__file__).parent),
    )
    url, socket = f"tcp://127.0.0.1:{announced['port']}", tmp_path / "docker.sock"
    proxy, _ = start(
        tmp_path,
        "proxy",
        "local.docker_proxy",
        *("--engine", url, "--socket", str(socket), "--cloud", CLOUD, "--self-name", "the-emulator"),
    )
    direct = docker.DockerClient(base_url=url, timeout=DEADLINE_SECONDS)
    proxied = docker.DockerClient(base_url=f"unix://{socket}", timeout=DEADLINE_SECONDS)
    yield Behind(direct, proxied, proxy, url, socket)
    direct.close()
    proxied.close()
    for process in (proxy, engine):
        process.terminate()
        process.wait(DEADLINE_SECONDS)
    gc.collect()  # here, where the warning about those sockets is still ignored


def run(client: docker.DockerClient, *command: str, **options: Any) -> Any:
    return client.containers.run("any/image:1", list(command), detach=True, network="lockstep", **options)


def test_a_container_runs_through_the_proxy_as_without_it(behind: Behind) -> None:
    container = run(behind.proxied, "polite", name="worker", labels={"k": "v"})
    lines = container.logs(stream=True, follow=True)
    assert next(lines) == b"waiting\n"

    container.stop(timeout=DEADLINE_SECONDS)

    assert list(lines) == [b"leaving\n"]
    assert container.wait()["StatusCode"] == 7
    container.reload()
    assert (container.status, container.attrs["State"]["ExitCode"]) == ("exited", 7)
    assert container.labels == {"k": "v", CLOUD_LABEL: CLOUD}
    container.remove(v=True)
    with pytest.raises(NotFound):
        behind.engine.containers.get(container.id)


def test_the_engines_errors_pass_as_they_are(behind: Behind) -> None:
    with pytest.raises(NotFound, match="No such container: nobody"):
        behind.proxied.containers.get("nobody")
    run(behind.proxied, "sleep", name="twice")
    with pytest.raises(APIError, match="already in use"):
        run(behind.proxied, "sleep", name="twice")


def test_each_container_has_a_loopback_address_of_its_own(behind: Behind) -> None:
    containers = [run(behind.proxied, "sleep") for _ in range(3)]

    addresses = set()
    for container in containers:
        container.reload()
        addresses.add(container.attrs["NetworkSettings"]["Networks"]["host"]["IPAddress"])

    assert len(addresses) == 3
    assert all(address.startswith("127.") and address != "127.0.0.1" for address in addresses)


def test_the_emulator_finds_itself_on_loopback(behind: Behind) -> None:
    networks = behind.proxied.containers.get("the-emulator").attrs["NetworkSettings"]["Networks"]

    assert [network["IPAddress"] for network in networks.values()] == ["127.0.0.1"]


def test_a_poller_that_is_held_hears_of_an_exit(behind: Behind) -> None:
    # Given a container that a poller asks for in the emulator's rhythm
    container = run(behind.proxied, "sleep")
    killed = False
    with ThreadPoolExecutor(1) as pool:
        while container.status != "exited":
            asking = pool.submit(container.reload)
            # When a request is held, and the container ends
            if not killed and wait([asking], 0.3).not_done:
                behind.engine.api.kill(container.id)
                killed = True
            asking.result(DEADLINE_SECONDS)
            time.sleep(0.1)

    # Then it hears of that
    assert container.attrs["State"]["ExitCode"] == 128 + signal.SIGKILL


def test_foreign_containers_are_neither_listed_nor_removed(behind: Behind) -> None:
    own, foreign = run(behind.proxied, "sleep"), run(behind.engine, "sleep")
    assert [c.id for c in behind.proxied.containers.list(all=True)] == [own.id]

    behind.proxy.terminate()
    assert behind.proxy.wait(DEADLINE_SECONDS) == 0

    assert [c.id for c in behind.engine.containers.list(all=True)] == [foreign.id]


def test_the_proxy_takes_its_containers_along_when_its_parent_is_killed(
    tmp_path: Path, behind: Behind
) -> None:
    # Given a proxy that another process has started, and a container of its cloud
    socket, announcement = tmp_path / "other.sock", tmp_path / "other.json"
    command = [sys.executable, "-m", "local.docker_proxy", "--announce", str(announcement)]
    command += ["--engine", behind.engine_url, "--socket", str(socket)]
    command += ["--cloud", "another", "--self-name", "x"]
    starter = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    log = tmp_path / "other.log"
    parent = spawn([sys.executable, "-c", starter, *command], log=log)
    await_announcement(announcement, parent, log, DEADLINE_SECONDS)
    client = docker.DockerClient(base_url=f"unix://{socket}", timeout=DEADLINE_SECONDS)
    run(client, "sleep", name="orphan")
    client.close()

    # When that process is killed
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    # Then the container is removed; sparse: without another look at each, which may be gone by then
    eventually(lambda: not behind.engine.containers.list(all=True, sparse=True), "the container is removed")


def test_the_socket_is_for_its_owner_only(behind: Behind) -> None:
    assert stat.S_IMODE(behind.socket.stat().st_mode) & 0o077 == 0


def test_an_engine_that_has_gone_is_an_error_to_the_client(tmp_path: Path) -> None:
    socket = tmp_path / "docker.sock"
    proxy, _ = start(
        tmp_path,
        "proxy",
        "local.docker_proxy",
        *("--engine", f"unix://{tmp_path / 'gone.sock'}", "--socket", str(socket)),
        *("--cloud", CLOUD, "--self-name", "x"),
    )
    client = docker.APIClient(base_url=f"unix://{socket}", version="1.41", timeout=DEADLINE_SECONDS)

    with pytest.raises(APIError, match=r"the Docker engine does not answer: .*No such file"):
        client.inspect_container("any")

    client.close()
    proxy.terminate()
    assert proxy.wait(DEADLINE_SECONDS) == 1  # it cannot say that no container is left
