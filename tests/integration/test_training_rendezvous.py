"""The server answers the task token of a waiting state machine, against an emulator of AWS."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from training_processes import Task

from contract.metrics import TaskFailed
from contract.table import PARTITION_KEY, SORT_KEY

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions.type_defs import DescribeExecutionOutputTypeDef

PATIENCE = 60.0
TABLE = "lockstep"
ROLE = "arn:aws:iam::000000000000:role/states"

# What the state machine of a study does at its rendezvous, and nothing else.
WAIT_FOR_ADDRESS = {
    "StartAt": "AwaitServer",
    "States": {
        "AwaitServer": {
            "Type": "Task",
            "Resource": "arn:aws:states:::aws-sdk:dynamodb:putItem.waitForTaskToken",
            "Parameters": {
                "TableName": TABLE,
                "Item": {
                    "pk": {"S": "STUDY#study-1"},
                    "sk": {"S": "RENDEZVOUS#sync_1worker"},
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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


def start_waiting(name: str) -> str:
    """An execution that waits for the server's address."""
    stepfunctions = boto3.client("stepfunctions")
    machine = stepfunctions.create_state_machine(
        name=name, definition=json.dumps(WAIT_FOR_ADDRESS), roleArn=ROLE
    )
    return stepfunctions.start_execution(stateMachineArn=machine["stateMachineArn"])["executionArn"]


def ended(execution: str) -> "DescribeExecutionOutputTypeDef":
    stepfunctions = boto3.client("stepfunctions")
    deadline = time.monotonic() + PATIENCE
    while (described := stepfunctions.describe_execution(executionArn=execution))["status"] == "RUNNING":
        assert time.monotonic() < deadline, "nobody answered the task token"
        time.sleep(0.1)
    return described


def start_server(aws: dict[str, str], folder: Path, **settings: str) -> Task:
    environ = {
        **aws,
        "PATH": os.environ.get("PATH", ""),
        "STUDY_ID": "study-1",
        "EXPERIMENT_NAME": "sync_1worker",
        "TABLE_NAME": TABLE,
        "SERVER_PORT": "0",
        "TASK_ADDRESS": "127.0.0.1",
        **settings,
    }
    return Task("server", environ, folder / "server")


def test_the_server_answers_the_token_with_the_address_it_listens_on(
    aws: dict[str, str], tmp_path: Path
) -> None:
    # Given a server that listens before anybody waits for it
    server = start_server(aws, tmp_path)
    try:
        address = server.wait_for(r"listening on (\S+)")[1]
        # When the state machine writes its token, the server answers
        described = ended(start_waiting("answered"))
        assert described["status"] == "SUCCEEDED"
        assert json.loads(described["output"]) == {"address": address}
        # Then the address is one that a worker can use
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    finally:
        server.process.kill()
        server.process.join()


def test_a_server_that_cannot_listen_fails_the_token(aws: dict[str, str], tmp_path: Path) -> None:
    # Given a token that waits, and a port that is taken
    execution = start_waiting("failed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wait_for_token()
        server = start_server(aws, tmp_path, SERVER_PORT=port)
        assert server.wait(PATIENCE) == 1
    # Then nobody waits for the address of a dead server, and all are told the same reason
    described = ended(execution)
    [failure] = server.records(TaskFailed)
    assert described["status"] == "FAILED"
    assert (described["error"], described["cause"]) == ("ServerFailed", failure.reason)
    assert failure.reason == f"the server cannot listen on 127.0.0.1:{port}: is the port taken?"


def wait_for_token() -> None:
    dynamodb = boto3.client("dynamodb")
    key = {PARTITION_KEY: {"S": "STUDY#study-1"}, SORT_KEY: {"S": "RENDEZVOUS#sync_1worker"}}
    deadline = time.monotonic() + PATIENCE
    while "Item" not in dynamodb.get_item(TableName=TABLE, Key=key):
        assert time.monotonic() < deadline
        time.sleep(0.1)
