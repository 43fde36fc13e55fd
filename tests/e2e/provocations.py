"""How the end-to-end tests provoke what happens seldom; each provocation is undone when its block ends.

A function that waits, or that has no time; a worker that nothing can run; a server that never says where
it is.
"""

import json
import os
import re
import select
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contract.table import rendezvous_sort, study_partition
from local.cloud import Cloud
from local.deploy import STACK
from tests.e2e.machine import client, study_of

STARTED_SERVER = re.compile(r"started ministack-ecs-\w+-server at \S+ \(pid (\d+)\)")


def function_name(cloud: Cloud, folder: str) -> str:
    """The deployed function whose handler lies there."""
    resources = client(cloud, "cloudformation").describe_stack_resources(StackName=STACK)["StackResources"]
    names = {r["PhysicalResourceId"] for r in resources if r["ResourceType"] == "AWS::Lambda::Function"}
    (name,) = (
        function["FunctionName"]
        for function in client(cloud, "lambda").list_functions()["Functions"]
        if function["FunctionName"] in names and function["Handler"] == f"lambdas.{folder}.handler.handler"
    )
    return str(name)


def task_token(cloud: Cloud, arn: str, experiment: str) -> str | None:
    """The token with which the state machine waits for an experiment's server."""
    row = client(cloud, "dynamodb").get_item(
        TableName=cloud.outputs["TableName"],
        Key={"pk": {"S": study_partition(study_of(arn))}, "sk": {"S": rendezvous_sort(experiment, 0)}},
    )
    token: str | None = row.get("Item", {}).get("task_token", {}).get("S")
    return token


class Gate(socketserver.ThreadingTCPServer):
    """Stands between a function and the table: while it is shut, what the function asks waits."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, endpoint: str) -> None:
        self.upstream = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
        self.reached = threading.Event()
        """The function has asked since the gate was shut."""
        self.opened = threading.Event()
        self.opened.set()
        super().__init__(("127.0.0.1", 0), _Passage)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """For as long as this lasts, or until it is `opened`: the function's state lasts until then."""
        self.opened.clear()
        self.reached.clear()
        try:
            yield
        finally:
            self.opened.set()


class _Passage(socketserver.BaseRequestHandler):
    """One connection through a gate, which a function keeps for many requests."""

    server: Gate
    request: socket.socket

    def handle(self) -> None:
        with socket.create_connection(self.server.upstream) as upstream:
            ways = {self.request: upstream, upstream: self.request}
            while readable := select.select([*ways], [], [], 600)[0]:
                for end in readable:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    if end is self.request:
                        self.server.reached.set()
                        self.server.opened.wait(60)
                    ways[end].sendall(data)


@contextmanager
def gated(cloud: Cloud, folder: str) -> Iterator[Gate]:
    """A function reaches the table through a gate.

    For many tests at once: to change a function's configuration is to end its processes, whatever they do.
    """
    functions, name = client(cloud, "lambda"), function_name(cloud, folder)
    usual = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    with Gate(cloud.endpoint) as gate:
        threading.Thread(target=gate.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"http://127.0.0.1:{gate.server_address[1]}"
        variables = {**usual, "AWS_ENDPOINT_URL_DYNAMODB": address}
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
        try:
            yield gate
        finally:
            functions.update_function_configuration(FunctionName=name, Environment={"Variables": usual})
            gate.shutdown()


@contextmanager
def out_of_time(cloud: Cloud, folder: str) -> Iterator[None]:
    """A function has a second, less than it takes to import what it needs."""
    functions, name = client(cloud, "lambda"), function_name(cloud, folder)
    usual = functions.get_function_configuration(FunctionName=name)["Timeout"]
    functions.update_function_configuration(FunctionName=name, Timeout=1)
    try:
        yield
    finally:
        functions.update_function_configuration(FunctionName=name, Timeout=usual)


@contextmanager
def frozen_server(cloud: Cloud, log_before: str) -> Iterator[int]:
    """The next server that is started does not get to say where it is; its process.

    `log_before`: what stood in the engine's log before anything was started that it may be.
    """
    log, begin = Path(cloud.state, "engine.log"), time.monotonic()
    while not (found := STARTED_SERVER.search(log.read_text().removeprefix(log_before))):
        assert time.monotonic() - begin < 60, "no server was started"
        time.sleep(0.005)  # it has some tenths of a second to go
    pid = int(found[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


@contextmanager
def worker_container(cloud: Cloud, **changes: Any) -> Iterator[None]:
    """The state machine starts workers whose container is defined otherwise."""
    ecs, states = client(cloud, "ecs"), client(cloud, "stepfunctions")
    machine = cloud.outputs["StateMachineArn"]
    definition = states.describe_state_machine(stateMachineArn=machine)["definition"]
    (usual,) = (
        task
        for task in (
            ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]
            for arn in ecs.list_task_definitions()["taskDefinitionArns"]
            if f'"{arn}"' in definition
        )
        if task["containerDefinitions"][0]["name"] == "worker"
    )
    kept = ["family", "cpu", "memory", "networkMode", "requiresCompatibilities", "runtimePlatform"]
    kept += ["executionRoleArn", "taskRoleArn"]
    (container,) = usual["containerDefinitions"]
    other = ecs.register_task_definition(
        **{name: usual[name] for name in kept if name in usual},
        containerDefinitions=[{**container, **changes}],
    )["taskDefinition"]["taskDefinitionArn"]
    states.update_state_machine(
        stateMachineArn=machine, definition=definition.replace(usual["taskDefinitionArn"], other)
    )
    role = states.describe_state_machine(stateMachineArn=machine)["roleArn"].rsplit("/", 1)[1]
    statement = {"Effect": "Allow", "Action": "ecs:RunTask", "Resource": other}
    policy = {"RoleName": role, "PolicyName": "RunTheOther"}
    client(cloud, "iam").put_role_policy(
        **policy, PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    )
    try:
        yield
    finally:
        client(cloud, "iam").delete_role_policy(**policy)
        states.update_state_machine(stateMachineArn=machine, definition=definition)
        ecs.deregister_task_definition(taskDefinition=other)
