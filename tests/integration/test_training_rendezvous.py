"""The server answers the task token of a waiting state machine and lets its workers in, against an emulator of AWS."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session
from training_processes import Task, free_ports

from contract.errors import PeerLost, TrainingFailed
from contract.metrics import ServerSummary, TaskFailed, WorkerSummary
from contract.table import PARTITION_KEY, SORT_KEY
from contract.task import TaskEnvironment
from runtime.connection import Connection
from runtime.ending import NotLetIn
from runtime.frames import ConnectionClosed, Outgoing, Stream
from runtime.rendezvous import Rendezvous, ServerLookup
from runtime.trust import Identity, Trust
from runtime.wire.parameter_server_pb2 import HELLO, REFUSED, Hello, JoinRequest, Sender
from runtime.wire.parameter_server_pb2_grpc import ParameterServerStub

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions.type_defs import DescribeExecutionOutputTypeDef

PATIENCE = 60.0
TABLE = "lockstep"
ROLE = "arn:aws:iam::000000000000:role/states"

ADDRESS = "10.73.0.9:8000"


def wait_for_address(experiment: str) -> dict[str, Any]:
    """What the state machine of a study does at its rendezvous, and nothing else."""
    return {
        "StartAt": "AwaitServer",
        "States": {
            "AwaitServer": {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:dynamodb:putItem.waitForTaskToken",
                "Parameters": {
                    "TableName": TABLE,
                    "Item": {
                        "pk": {"S": "STUDY#study-1"},
                        "sk": {"S": f"RENDEZVOUS#{experiment}#0"},
                        "task_token": {"S.$": "$$.Task.Token"},
                    },
                },
                "End": True,
            }
        },
    }


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables that point boto3 at an emulator with the table in it."""
    folder = tmp_path_factory.mktemp("emulator")
    port = free_ports()
    client = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    emulator = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "TMPDIR": str(folder),
        "STATE_DIR": str(folder),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env={**os.environ, **client, **emulator},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_ready(client["AWS_ENDPOINT_URL"])
        with pytest.MonkeyPatch.context() as environment:
            for name, value in client.items():
                environment.setenv(name, value)
            boto3.client("dynamodb").create_table(
                TableName=TABLE,
                KeySchema=[
                    {"AttributeName": PARTITION_KEY, "KeyType": "HASH"},
                    {"AttributeName": SORT_KEY, "KeyType": "RANGE"},
                ],
                AttributeDefinitions=[
                    {"AttributeName": PARTITION_KEY, "AttributeType": "S"},
                    {"AttributeName": SORT_KEY, "AttributeType": "S"},
                ],
                BillingMode="PAY_PER_REQUEST",
            )
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def wait_until_ready(endpoint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=2):  # noqa: S310 - loopback
                return
        except OSError:
            assert time.monotonic() < deadline, "the emulator did not start"
            time.sleep(0.1)


def start_waiting(experiment: str) -> str:
    """An execution that waits for the address of an experiment's server."""
    stepfunctions = boto3.client("stepfunctions")
    machine = stepfunctions.create_state_machine(
        name=experiment, definition=json.dumps(wait_for_address(experiment)), roleArn=ROLE
    )
    return stepfunctions.start_execution(stateMachineArn=machine["stateMachineArn"])["executionArn"]


def ended(execution: str) -> "DescribeExecutionOutputTypeDef":
    stepfunctions = boto3.client("stepfunctions")
    deadline = time.monotonic() + PATIENCE
    while (described := stepfunctions.describe_execution(executionArn=execution))["status"] == "RUNNING":
        assert time.monotonic() < deadline, "nobody answered the task token"
        time.sleep(0.1)
    return described


def settings_of(experiment: str) -> dict[str, str]:
    """What both sides of a rendezvous are told."""
    return {"STUDY_ID": "study-1", "EXPERIMENT_NAME": experiment, "TABLE_NAME": TABLE}


def environment_of(experiment: str) -> TaskEnvironment:
    return TaskEnvironment.from_environ(settings_of(experiment))


def start_server(aws: dict[str, str], folder: Path, experiment: str, **settings: str) -> Task:
    environ = {
        **aws,
        **settings_of(experiment),
        "PATH": os.environ.get("PATH", ""),
        "SERVER_PORT": "0",
        "TASK_ADDRESS": "127.0.0.1",
        **settings,
    }
    return Task("server", environ, folder / "server")


def history(execution: str) -> str:
    """All that Step Functions keeps of an execution."""
    stepfunctions = boto3.client("stepfunctions")
    events = stepfunctions.get_execution_history(executionArn=execution)["events"]
    return json.dumps([stepfunctions.describe_execution(executionArn=execution), events], default=str)


def test_the_server_answers_the_token_with_the_address_it_listens_on(
    aws: dict[str, str], tmp_path: Path
) -> None:
    # Given a server that listens before anybody waits for it
    server = start_server(aws, tmp_path, "answered")
    try:
        address = server.wait_for(r"listening on (\S+)")[1]
        # When the state machine writes its token, the server answers
        execution = start_waiting("answered")
        described = ended(execution)
        assert described["status"] == "SUCCEEDED"
        assert json.loads(described["output"]) == {"address": address}
        # Then the address is one that a worker can use
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        # And a worker can read what lets it in, which stands nowhere else
        [announced] = ServerLookup(environment_of("answered")).current()
        assert announced.address == address
        for text in (history(execution), server.output, server.errors):
            assert announced.trust.token not in text
    finally:
        server.process.kill()
        server.process.join()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("tls", [True, False])
def test_what_lets_workers_in_goes_through_the_table_alone(tls: bool) -> None:
    experiment = f"announced-{tls}"
    identity = Identity.make("10.73.0.9", tls=tls)
    execution = start_waiting(experiment)
    Rendezvous(environment_of(experiment)).announce(ADDRESS, identity.trust)
    described = ended(execution)
    # The state machine is told the address
    assert json.loads(described["output"]) == {"address": ADDRESS}
    # A worker reads the rest
    [announced] = ServerLookup(environment_of(experiment)).current()
    assert announced == (ADDRESS, identity.trust)
    assert (announced.trust.certificate_pem is not None) is tls
    [row] = rows(f"SERVER#study-1/{experiment}")
    assert time.time() + 86400 < float(row["expires_at"]["N"]) < time.time() + 3 * 86400
    # And there is nothing of it where others look, nor anywhere the key
    for text in (history(execution), json.dumps(rows("STUDY#study-1"))):
        assert identity.trust.token not in text
        assert "BEGIN" not in text
    assert "PRIVATE KEY" not in json.dumps(row)


@pytest.mark.usefixtures("aws")
def test_a_restarted_server_replaces_what_the_one_before_it_announced() -> None:
    # Given a server that has answered the token
    environment = environment_of("restarted")
    execution = start_waiting("restarted")
    Rendezvous(environment).announce(ADDRESS, Identity.make("10.73.0.9").trust)
    ended(execution)
    lookup = ServerLookup(environment)
    before = lookup.current()
    # When another one takes its place, the answer stands and workers find the new one
    second = Identity.make("10.73.0.10", tls=False)
    Rendezvous(environment).announce("10.73.0.10:8000", second.trust)
    assert lookup.current() == [("10.73.0.10:8000", second.trust)]
    assert lookup.current() != before
    assert json.loads(ended(execution)["output"]) == {"address": ADDRESS}


@pytest.mark.usefixtures("aws")
def test_an_answer_that_came_although_nobody_heard_so_stands() -> None:
    # Given an answer to the token that arrives, but what Step Functions says to it does not
    execution = start_waiting("unheard")
    rendezvous, lost = Rendezvous(environment_of("unheard")), list[int]()

    def lose_the_first(request: Any, **_: Any) -> None:
        if not lost:
            lost.append(URLLib3Session().send(request).status_code)
            raise ConnectionClosedError(endpoint_url=request.url)

    rendezvous._stepfunctions.meta.events.register("before-send.sfn.SendTaskSuccess", lose_the_first)
    # When the client tries again by itself, and is refused
    rendezvous.announce(ADDRESS, Identity.make("10.73.0.9").trust)
    # Then the server goes on
    assert lost == [200]
    assert json.loads(ended(execution)["output"]) == {"address": ADDRESS}


@pytest.mark.usefixtures("aws")
def test_a_first_server_whose_token_is_refused_fails_without_saying_its_own() -> None:
    boto3.client("dynamodb").put_item(
        TableName=TABLE, Item={**rendezvous_key("refused"), "task_token": {"S": "nobody's"}}
    )
    identity = Identity.make("10.73.0.9")
    with pytest.raises(TrainingFailed, match="the server's address could not be announced: ") as failed:
        Rendezvous(environment_of("refused")).announce(ADDRESS, identity.trust)
    assert identity.trust.token not in str(failed.value)


@pytest.mark.usefixtures("aws")
def test_a_worker_without_an_announcement_says_where_it_looked() -> None:
    with pytest.raises(TrainingFailed) as failed:
        ServerLookup(environment_of("never")).current()
    assert str(failed.value) == (
        "the server has not announced its address and experiment_token:"
        f" table {TABLE}, key SERVER#study-1/never SERVER#0"
    )


def test_without_a_table_a_worker_is_told_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingFailed, match="PARAMETER_SERVER_ADDRESS has 0 addresses"):
        ServerLookup(TaskEnvironment.from_environ({})).current()
    lookup = ServerLookup(TaskEnvironment.from_environ({"PARAMETER_SERVER_ADDRESS": ADDRESS}))
    assert lookup.current() == [(ADDRESS, Trust())]
    monkeypatch.setenv("EXPERIMENT_TOKEN", "by-hand")
    assert lookup.current() == [(ADDRESS, Trust(token="by-hand"))]  # noqa: S106 - made up


def start_workers(aws: dict[str, str], folder: Path, experiment: str, **settings: str) -> list[Task]:
    """Those of both ranks, which learn from the table alone where their server is."""
    environ = {**aws, **settings_of(experiment), "PATH": os.environ.get("PATH", ""), **settings}
    return [
        Task("worker", {**environ, "WORKER_RANK": str(rank)}, folder / f"worker-{rank}") for rank in range(2)
    ]


def stop(tasks: list[Task]) -> None:
    for task in tasks:
        task.process.kill()
        task.process.join()


SENDER = Sender(study="study-1", experiment="tls", rank=0)


def test_workers_train_over_tls_and_nobody_else_gets_in(
    aws: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"TLS": "true", "TRANSPORT": "tcp", "TOTAL_WORKERS_EXPECTED": "2", "EPOCHS": "1"}
    server = start_server(aws, tmp_path, "tls", **settings)
    tasks = [server]
    try:
        assert ended(start_waiting("tls"))["status"] == "SUCCEEDED"
        [announced] = ServerLookup(environment_of("tls")).current()
        certificate, token = announced.trust.certificate_pem, announced.trust.token
        # Neither with another token, nor with another certificate, nor in plain text
        another = Identity.make("10.73.0.9", tls=True).trust.certificate_pem
        with pytest.raises(NotLetIn, match="the call's lockstep-token is another one's"):
            join(announced.address, Trust(certificate, "another"), seconds=PATIENCE)
        monkeypatch.setattr("runtime.liveness.JOIN_CALL_SECONDS", 1.0)
        for trust in (Trust(another, token), Trust(None, token)):
            with pytest.raises(PeerLost, match="no server at"):
                join(announced.address, trust, seconds=0.5)
        # The same on the connections that tensors travel on
        with announced.trust.grpc_channel(announced.address, ()) as channel:
            request = JoinRequest(sender=SENDER)
            reply = ParameterServerStub(channel).Join(request, metadata=announced.trust.metadata)
        data = (announced.address.partition(":")[0], reply.data_port)
        assert answer_to_hello(data, Trust(certificate, "another")) == REFUSED
        with pytest.raises(ssl.SSLCertVerificationError):
            answer_to_hello(data, Trust(another, token))
        with pytest.raises(ConnectionClosed):
            answer_to_hello(data, Trust(None, token))
        # The workers of the experiment do
        tasks += start_workers(aws, tmp_path, "tls", **settings)
        assert [task.wait(PATIENCE) for task in tasks] == [0, 0, 0], [task.errors for task in tasks]
        assert {task.records(WorkerSummary)[0].transport for task in tasks[1:]} == {"tls"}
        for task in tasks:
            assert token not in task.output + task.errors
    finally:
        stop(tasks)


def join(address: str, trust: Trust, seconds: float) -> Connection:
    """Join as rank 0 would."""
    return Connection(
        address,
        SENDER,
        trust=trust,
        timeout_seconds=PATIENCE,
        abandon=lambda error: pytest.fail(str(error)),
        join_seconds=seconds,
    )


def answer_to_hello(address: tuple[str, int], trust: Trust) -> int:
    """What kind of frame the server answers to a worker that says hello."""
    connection = trust.wrap(socket.create_connection(address, timeout=PATIENCE))
    with contextlib.closing(connection):
        stream = Stream(connection)
        stream.send(Outgoing.of(HELLO, Hello(sender=SENDER, token=trust.token, down=True)))
        return stream.receive().kind


@pytest.mark.parametrize("tls", ["true", "false"])
def test_workers_find_a_server_that_was_started_again(tls: str, aws: dict[str, str], tmp_path: Path) -> None:
    # Given workers that train, and a server that has another token, and certificate, each time it is started
    experiment = f"again-{tls}"
    settings = {
        "TLS": tls,
        "SERVER_PORT": str(free_ports()),
        "TOTAL_WORKERS_EXPECTED": "2",
        "EPOCHS": "10",
        "COMPUTE_MODE": "emulated",
        "COMPUTE_MEAN_MS": "4",
        "CHECKPOINT_SECONDS": "0.1",
        "CHECKPOINT_LOCATION": str(tmp_path / "checkpoints"),
    }
    (tmp_path / "again").mkdir()
    tasks = [start_server(aws, tmp_path, experiment, **settings)]
    try:
        ended(start_waiting(experiment))
        tasks += start_workers(aws, tmp_path, experiment, **settings)
        for worker in tasks[1:]:
            worker.wait_for('"kind":"worker_epoch"')
        # When it is killed and started again, at the same address
        stop(tasks[:1])
        tasks[0] = start_server(aws, tmp_path / "again", experiment, **settings)
        # Then they are let in by the new one
        assert [task.wait(PATIENCE) for task in tasks] == [0, 0, 0], [task.errors for task in tasks]
        assert tasks[0].records(ServerSummary)[0].resumed_from_version is not None
    finally:
        stop(tasks)


def test_a_server_that_cannot_listen_fails_the_token(aws: dict[str, str], tmp_path: Path) -> None:
    # Given a token that waits, and a port that is taken
    execution = start_waiting("failed")
    with socket.socket() as taken:
        # The next one, where data would come, is free: one above a port that the kernel gave may be anybody's
        port = str(free_ports())
        taken.bind(("127.0.0.1", int(port)))
        taken.listen()
        wait_for_token("failed")
        server = start_server(aws, tmp_path, "failed", SERVER_PORT=port)
        assert server.wait(PATIENCE) == 1
    # Then nobody waits for the address of a dead server, and all are told the same reason
    described = ended(execution)
    [failure] = server.records(TaskFailed)
    assert described["status"] == "FAILED"
    assert (described["error"], described["cause"]) == ("ServerFailed", failure.reason)
    assert failure.reason == f"the server cannot listen on 127.0.0.1:{port}: is the port taken?"


def wait_for_token(experiment: str) -> None:
    dynamodb = boto3.client("dynamodb")
    deadline = time.monotonic() + PATIENCE
    while "Item" not in dynamodb.get_item(TableName=TABLE, Key=rendezvous_key(experiment)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def rendezvous_key(experiment: str) -> dict[str, Any]:
    return {PARTITION_KEY: {"S": "STUDY#study-1"}, SORT_KEY: {"S": f"RENDEZVOUS#{experiment}#0"}}


def rows(partition: str) -> list[dict[str, Any]]:
    found = boto3.client("dynamodb").query(
        TableName=TABLE,
        KeyConditionExpression="pk = :partition",
        ExpressionAttributeValues={":partition": {"S": partition}},
    )
    return list(found["Items"])
