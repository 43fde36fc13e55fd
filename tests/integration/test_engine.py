"""The task engine as MiniStack uses it: through the docker client library, and through MiniStack itself."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import docker
import psutil
import pytest
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from training_processes import free_ports

from tests.processes import DEADLINE_SECONDS, eventually, has_ended

# docker-py leaves the sockets of streams and of surplus pooled connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

ROOT = Path(__file__).parents[2]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "callers-key",
    "AWS_SECRET_ACCESS_KEY": "callers-secret",
    "AWS_PROFILE": "callers-profile",
}


@dataclass
class RunningEngine:
    """A started engine and a docker client for it."""

    process: subprocess.Popen[bytes]
    port: int
    subnet: str
    client: docker.DockerClient
    log: Path

    def run(self, *command: str, **options: Any) -> Container:
        return self.client.containers.run(
            "any/image:1", list(command), detach=True, network="lockstep", **options
        )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def start_engine(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "local.engine", "--entry", "engine_entry:main"]
    with (folder / "engine.log").open(
        "wb"
    ) as log:  # a file, as the demo keeps it: streams behave unlike on a pipe
        return subprocess.Popen(
            [*command, "--announce", str(folder / "engine.json"), *options],
            cwd=ROOT,
            env={**os.environ, **CREDENTIALS, "PYTHONPATH": str(Path(__file__).parent)},
            stderr=log,
            stdout=log,
        )


@contextlib.contextmanager
def running_engine(folder: Path, *options: str) -> Iterator[RunningEngine]:
    process = start_engine(folder, *options)
    announcement = folder / "engine.json"
    try:
        eventually(lambda: announcement.exists() or process.poll() is not None, "announcement")
        found = json.loads(announcement.read_text())
        assert found["pid"] == process.pid
        client = docker.DockerClient(base_url=f"tcp://127.0.0.1:{found['port']}", timeout=DEADLINE_SECONDS)
        yield RunningEngine(process, found["port"], found["subnet"], client, folder / "engine.log")
        client.close()
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)
        gc.collect()  # here, where the warning about those sockets is still ignored


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("engine"), "--self-name", "the-emulator") as running:
        yield running


def address_of(container: Container) -> str:
    container.reload()
    return str(container.attrs["NetworkSettings"]["Networks"]["lockstep"]["IPAddress"])


def first_line(container: Container) -> bytes:
    """Wait for it: then the program has come to where it prints."""
    with contextlib.closing(container.logs(stream=True, follow=True)) as lines:
        return bytes(next(lines))


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        (["say", "hello"], 0, b"hello\nhello on stderr\n"),
        (["say", "hello", "3"], 3, b"hello\nhello on stderr\n"),
        (["leave", "no data"], 1, b"no data\n"),
        (["unfinished"], 0, b"no newline at the end"),
    ],
)
def test_a_container_runs_its_command_to_its_exit_code(
    engine: RunningEngine, command: list[str], code: int, output: bytes
) -> None:
    container = engine.run(*command)

    assert container.wait() == {"StatusCode": code, "Error": None}
    assert sorted(container.logs().splitlines()) == sorted(output.splitlines())
    container.reload()
    assert container.status == "exited"
    assert container.attrs["State"]["ExitCode"] == code
    assert container.attrs["State"]["FinishedAt"] >= container.attrs["State"]["StartedAt"] > "2000"
    container.remove(v=True)


def test_an_uncaught_exception_is_a_traceback_on_stderr_and_exit_code_1(engine: RunningEngine) -> None:
    container = engine.run("crash")

    assert container.wait()["StatusCode"] == 1
    assert container.logs(stdout=True, stderr=False) == b""
    assert container.logs(stdout=False, stderr=True).endswith(b"LookupError: no such luck\n")
    assert container.logs(tail=1) == b"LookupError: no such luck\n"


def test_followed_logs_arrive_line_by_line_and_end_with_the_container(engine: RunningEngine) -> None:
    container = engine.run("polite")
    lines = container.logs(stream=True, follow=True, stdout=True, stderr=True)

    assert next(lines) == b"waiting\n"
    container.stop(timeout=DEADLINE_SECONDS)
    assert list(lines) == [b"leaving\n"]
    assert container.wait()["StatusCode"] == 7
    assert list(container.logs(stream=True, follow=True)) == [b"waiting\n", b"leaving\n"]


def test_a_long_line_stays_one_chunk(engine: RunningEngine) -> None:
    container = engine.run("big", "200000")

    assert list(container.logs(stream=True, follow=True)) == [b"x" * 200_000 + b"\n", b"small\n"]


def test_a_log_beyond_its_bound_says_what_is_missing(engine: RunningEngine) -> None:
    container = engine.run("flood", "60000")
    container.wait()

    notice, *lines = container.logs().splitlines()

    assert f"{60_000 - len(lines)} lines dropped".encode() in notice
    assert lines[-1] == b"line 59999"
    assert lines[0] == f"line {60_000 - len(lines)}".encode()


def test_ways_to_end_a_container(engine: RunningEngine) -> None:
    killed, stopped, stubborn = engine.run("sleep"), engine.run("sleep"), engine.run("stubborn")
    for container in (killed, stopped, stubborn):
        first_line(container)  # so that it handles its signals

    killed.kill()
    stopped.stop(timeout=DEADLINE_SECONDS)
    stubborn.stop(timeout=0)

    assert killed.wait()["StatusCode"] == 128 + signal.SIGKILL
    assert stopped.wait()["StatusCode"] == 128 + signal.SIGTERM
    assert stubborn.wait()["StatusCode"] == 128 + signal.SIGKILL
    stopped.stop()  # not modified, and no error
    with pytest.raises(APIError, match="is not running"):
        stopped.kill()


def test_a_containers_other_processes_end_with_it(engine: RunningEngine) -> None:
    container = engine.run("family")
    child = psutil.Process(int(first_line(container).split()[1]))

    container.kill(signal.SIGTERM)
    container.wait()

    eventually(lambda: has_ended(child), "end of the grandchild")


def test_names_and_ids(engine: RunningEngine) -> None:
    container = engine.run("sleep", name="worker-1")

    with pytest.raises(APIError, match="already in use") as conflict:
        engine.run("sleep", name="worker-1")
    assert conflict.value.status_code == 409
    assert engine.client.containers.get("worker-1").id == container.id
    assert engine.client.containers.get(container.id[:12]).id == container.id
    with pytest.raises(APIError, match="container is running"):
        container.remove()
    container.remove(force=True)
    with pytest.raises(NotFound, match="No such container"):
        engine.client.containers.get("worker-1")
    engine.run("say", "x", name="worker-1").remove(force=True)


def test_listing_by_state_and_label(engine: RunningEngine) -> None:
    labels = {"study": "listing", "role": "worker"}
    running = engine.run("sleep", labels=labels)
    exited = engine.run("say", "x", labels=labels)
    exited.wait()
    other = engine.run("sleep", labels={"study": "another"})

    def listed(**options: Any) -> set[str]:
        return {str(c.id) for c in engine.client.containers.list(**options)}

    wanted = {"label": ["study=listing", "role"]}
    assert listed(filters=wanted) == {running.id}
    assert listed(filters=wanted, all=True) == {running.id, exited.id}
    assert listed(filters=wanted, all=True, sparse=True) == {running.id, exited.id}
    assert {running.id, other.id} <= listed()
    for container in (running, exited, other):
        container.remove(force=True)


def test_an_address_is_used_again_only_after_removal(tmp_path: Path) -> None:
    with running_engine(tmp_path) as engine:
        first = engine.run("sleep")
        address = address_of(first)
        assert address == f"{engine.subnet}.2"
        first.kill()
        first.wait()
        with ThreadPoolExecutor(8) as pool:
            others = list(pool.map(lambda _: engine.client.api.create_container("x"), range(252)))
        first.remove()
        again = engine.run("sleep")

        assert address_of(again) == address
        assert len(others) == 252


def test_each_container_sees_only_its_own_world(engine: RunningEngine) -> None:
    containers = [
        engine.run("report", "a b", environment={"GIVEN": "1=2", "AWS_REGION": "r"}) for _ in range(2)
    ]
    outputs = [b"".join(c.logs(stream=True, follow=True)).decode() for c in containers]
    reports = [json.loads(output) for output in outputs]

    for output, report in zip(outputs, reports, strict=True):
        assert not [secret for secret in CREDENTIALS.values() if secret in output]
        environment = report["environment"]
        assert (environment["GIVEN"], environment["AWS_REGION"]) == ("1=2", "r")
        assert environment["TASK_ADDRESS"].startswith(f"{engine.subnet}.")
        assert not environment.keys() & CREDENTIALS.keys()
        assert environment["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
        assert not any(link.startswith("socket:") for link in report["descriptors"])
        assert report["forked"]
        assert report["session"]
        assert report["argv"] == ["report", "a b"]
    assert reports[0]["draw"] != reports[1]["draw"]
    assert reports[0]["environment"]["TASK_ADDRESS"] != reports[1]["environment"]["TASK_ADDRESS"]


def test_twenty_containers_at_once(engine: RunningEngine) -> None:
    def one(number: int) -> tuple[int, list[bytes], str]:
        container = engine.run("say", f"number {number}", str(number))
        address = address_of(container)
        lines = sorted(container.logs(stream=True, follow=True))
        code = container.wait()["StatusCode"]
        container.remove()
        return code, lines, address

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(20)))

    assert [code for code, _, _ in results] == list(range(20))
    for number, (_, lines, _) in enumerate(results):
        assert lines == [f"number {number}\n".encode(), f"number {number} on stderr\n".encode()]


def test_two_engines_do_not_clash(engine: RunningEngine, tmp_path: Path) -> None:
    with running_engine(tmp_path) as other:
        assert other.subnet != engine.subnet
        mine, theirs = engine.run("sleep"), other.run("sleep")
        assert address_of(mine).rpartition(".")[0] == engine.subnet
        assert address_of(theirs).rpartition(".")[0] == other.subnet
        with pytest.raises(NotFound):
            engine.client.containers.get(theirs.id)
        mine.remove(force=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_engine(tmp_path: Path, number: signal.Signals) -> None:
    with running_engine(tmp_path) as engine:
        for word in ("sleep", "stubborn", "family"):
            first_line(engine.run(word))
        family = engine.family()
        assert len(family) == 1 + 3 + 1  # the warm parent, three containers, one child

        engine.process.send_signal(number)
        engine.process.wait(DEADLINE_SECONDS)

        gone, alive = psutil.wait_procs(family, DEADLINE_SECONDS)
        assert not alive
        assert len(gone) == len(family)


def test_the_engine_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    announcement = tmp_path / "engine.json"
    command = [sys.executable, "-m", "local.engine", "--entry", "json:loads", "--announce", str(announcement)]
    starter = f"import subprocess, time; subprocess.Popen({command!r}); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        eventually(announcement.exists, "announcement")
        engine = psutil.Process(json.loads(announcement.read_text())["pid"])
        family = [engine, *engine.children()]
        parent.kill()

    assert not psutil.wait_procs(family, DEADLINE_SECONDS)[1]


def test_the_death_of_the_warm_parent_ends_the_engine_with_an_error(tmp_path: Path) -> None:
    with running_engine(tmp_path) as engine:
        engine.run("sleep")
        family = engine.family()
        family[0].kill()

        assert engine.process.wait(DEADLINE_SECONDS) == 1
        assert not psutil.wait_procs(family, DEADLINE_SECONDS)[1]
        assert "the warm parent died" in engine.log.read_text()
        assert "code 137" in engine.log.read_text()


def test_what_cannot_be_imported_is_said_and_nothing_is_announced(tmp_path: Path) -> None:
    process = start_engine(tmp_path, "--preload", "no_such_module,neither_this")

    assert process.wait(DEADLINE_SECONDS) == 1
    said = (tmp_path / "engine.log").read_text()
    assert "no_such_module" in said
    assert "neither_this" in said
    assert not (tmp_path / "engine.json").exists()


def test_exited_containers_leave_no_zombies_and_followers_that_leave_no_connection(
    engine: RunningEngine,
) -> None:
    process = psutil.Process(engine.process.pid)
    container = engine.run("sleep")
    before = process.num_fds()
    for _ in range(5):
        lines = container.logs(stream=True, follow=True)
        next(lines)
        lines.close()
        engine.run("say", "x").wait()

    # One idle connection more or less is the client's pool; five followers or ten pipes would be a leak.
    eventually(lambda: process.num_fds() <= before + 2, "closed connections")
    eventually(lambda: not any(has_ended(p) for p in engine.family()), "no zombies")
    container.remove(force=True)


def test_the_emulator_finds_itself_at_127_0_0_1(engine: RunningEngine) -> None:
    attributes = engine.client.containers.get("the-emulator").attrs

    assert attributes["NetworkSettings"]["Networks"]["lockstep"]["IPAddress"] == "127.0.0.1"
    assert attributes["State"]["Running"]


def test_the_rest_of_the_api(engine: RunningEngine) -> None:
    assert engine.client.ping()
    assert engine.client.images.get("registry/some/image:tag").tags == ["registry/some/image:tag"]
    with pytest.raises(NotFound, match="not a part of this engine's API"):
        engine.client.volumes.list()
    with pytest.raises(APIError, match="Binds is not supported"):
        engine.run("say", "x", volumes=["/a:/b"])
    created = engine.client.containers.create("x", ["say", "x"])
    assert created.status == "created"
    created.start()
    created.wait()
    with pytest.raises(APIError, match="has run already"):
        created.start()
    created.remove()


def test_a_request_that_a_web_page_could_make_is_refused(engine: RunningEngine) -> None:
    with socket.create_connection(("127.0.0.1", engine.port)) as rebound:
        rebound.sendall(b"GET /containers/json HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert rebound.makefile("rb").readline() == b"HTTP/1.1 403 Forbidden\r\n"


def test_a_poller_waits_for_news_and_gets_it_at_once(engine: RunningEngine) -> None:
    container = engine.run("polite")
    first_line(container)
    answers = 0
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        stopping = None
        while container.status != "exited":
            container.reload()
            container.reload()
            answers += 1
            if stopping is None and time.monotonic() - began > 2:
                stopping = pool.submit(container.stop)
            time.sleep(0.1)

    # Unpaced it would be about 20; the bound says only that some were held, however slow the machine is.
    assert answers < 15


def test_grpc_and_torch_work_in_containers_of_a_parent_that_imported_them(tmp_path: Path) -> None:
    with running_engine(tmp_path, "--preload", "grpc,torch") as engine:
        server = engine.run("grpc", "server", "8000", "")
        first_line(server)
        address = address_of(server)
        clients = [engine.run("grpc", "client", "8000", address) for _ in range(3)]

        assert [client.wait()["StatusCode"] for client in clients] == [0, 0, 0]
        assert [client.logs() for client in clients] == [b"echo True 8192.0\n"] * 3


@contextlib.contextmanager
def ministack(folder: Path, engine: RunningEngine, name: str) -> Iterator[str]:
    """MiniStack on a free port, with the engine as its Docker: its endpoint."""
    port = free_ports()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DOCKER_"))},
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "DOCKER_HOST": f"tcp://127.0.0.1:{engine.port}",
        "HOSTNAME": name,
        "IOT_MTLS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1,localhost",
        "TMPDIR": str(folder),
    }
    with (folder / "ministack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, stdout=log, stderr=log
        )
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return process.poll() is not None

        eventually(answers, "MiniStack")
        yield f"http://127.0.0.1:{port}"
        listening = {c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", port)}
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)


def test_a_task_run_by_ministack_stops_with_its_exit_code_and_its_lines_in_the_log_group(
    tmp_path: Path,
) -> None:
    with (
        running_engine(tmp_path, "--self-name", "the-emulator") as engine,
        ministack(tmp_path, engine, "the-emulator") as endpoint,
    ):
        session = boto3.Session("test", "test", region_name="us-east-1")
        ecs, logs = (session.client(service, endpoint_url=endpoint) for service in ("ecs", "logs"))
        logs.create_log_group(logGroupName="/lockstep")
        options = {"awslogs-group": "/lockstep", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "t"}
        ecs.create_cluster(clusterName="lockstep")
        ecs.register_task_definition(
            family="worker",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu="256",
            memory="512",
            containerDefinitions=[
                {
                    "name": "main",
                    "image": "lockstep/runtime:1",
                    "command": ["report"],
                    "environment": [{"name": "FROM_DEFINITION", "value": "1"}],
                    "logConfiguration": {"logDriver": "awslogs", "options": options},
                }
            ],
        )

        def task(*command: str) -> dict[str, Any]:
            override = {"name": "main", "command": list(command)}
            started = ecs.run_task(
                cluster="lockstep",
                taskDefinition="worker",
                launchType="FARGATE",
                networkConfiguration={"awsvpcConfiguration": {"subnets": ["subnet-1"]}},
                overrides={"containerOverrides": [override]},
            )
            return dict(started["tasks"][0])

        def described(arn: str) -> dict[str, Any]:
            return dict(ecs.describe_tasks(cluster="lockstep", tasks=[arn])["tasks"][0])

        def lines(arn: str) -> list[str]:
            stream = f"t/main/{arn.rpartition('/')[2]}"
            try:
                events = logs.get_log_events(
                    logGroupName="/lockstep", logStreamName=stream, startFromHead=True
                )
            except logs.exceptions.ResourceNotFoundException:
                return []
            return [event["message"] for event in events["events"]]

        arns = [task(*command)["taskArn"] for command in (("say", "METRICS", "3"), ("report",), ("sleep",))]
        eventually(
            lambda: [described(a)["lastStatus"] for a in arns] == ["STOPPED", "STOPPED", "RUNNING"], "states"
        )
        ecs.stop_task(cluster="lockstep", task=arns[2])

        assert [described(arn)["containers"][0].get("exitCode") for arn in arns[:2]] == [3, 0]
        attachment = {d["name"]: d["value"] for d in described(arns[0])["attachments"][0]["details"]}
        assert attachment["privateIPv4Address"].startswith(f"{engine.subnet}.")
        eventually(lambda: sorted(lines(arns[0])) == ["METRICS", "METRICS on stderr"], "log lines")
        eventually(lambda: len(lines(arns[1])) == 1, "the report's line")
        environment = json.loads(lines(arns[1])[0])["environment"]
        assert environment["AWS_ENDPOINT_URL"] == endpoint
        assert environment["ECS_CONTAINER_METADATA_URI_V4"].startswith(f"{endpoint}/v4/")
        assert environment["FROM_DEFINITION"] == "1"
        assert "AWS_SECRET_ACCESS_KEY" not in environment
        # Sparse: without another look at each, which may be gone by then
        eventually(lambda: not engine.client.containers.list(sparse=True), "the stopped task's container")
