"""How the end-to-end tests provoke what happens seldom; each provocation is undone when its block ends.

A function that waits, or that has no time; a worker that nothing can run; a task that does nothing.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contract.table import rendezvous_sort, study_partition
from local.cloud import Cloud
from local.deploy import STACK
from tests.e2e.machine import PATIENCE_SECONDS, client, study_of

TIMED_OUT = "Sandbox.Timedout"
"""What Lambda calls it when a function has run out of time."""


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
    """Stands between a function and the table: what it asks about a study waits while the gate is shut to that.

    Other studies pass: their last requests may come at any time.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, endpoint: str) -> None:
        self.upstream = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
        self.kept_out: str | None = None
        """The study that the gate is shut to."""
        self.reached = threading.Event()
        """The function has asked about it."""
        self.opened = threading.Event()
        self.opened.set()
        super().__init__(("127.0.0.1", 0), _Passage)

    @contextmanager
    def shut(self, study: str) -> Iterator[None]:
        """For as long as this lasts, or until it is `opened`: the function's state lasts until then."""
        self.opened.clear()
        self.reached.clear()
        self.kept_out = study
        try:
            yield
        finally:
            self.kept_out = None
            self.opened.set()

    def await_leave(self, data: bytes) -> None:
        """Wait as long as the gate is shut to what is asked about."""
        study = self.kept_out
        if study is not None and study.encode() in data:
            self.reached.set()
            self.opened.wait(PATIENCE_SECONDS)


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
                        self.server.await_leave(data)
                        if _is_closed(self.request):  # whoever asked was ended meanwhile
                            return
                    ways[end].sendall(data)


def _is_closed(connection: socket.socket) -> bool:
    """Whether nobody is at the other end; who waits for an answer says nothing."""
    return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(1, socket.MSG_PEEK)


@contextmanager
def gated(cloud: Cloud, folder: str) -> Iterator[Gate]:
    """A function reaches the table through a gate, and has time to wait there.

    For many tests at once: to change a function's configuration is to end its processes, whatever they do.
    """
    functions, name = client(cloud, "lambda"), function_name(cloud, folder)
    usual = functions.get_function_configuration(FunctionName=name)
    variables, timeout = usual["Environment"]["Variables"], usual["Timeout"]
    with Gate(cloud.endpoint) as gate:
        threading.Thread(target=gate.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"http://127.0.0.1:{gate.server_address[1]}"
        gated_variables = {**variables, "AWS_ENDPOINT_URL_DYNAMODB": address}
        functions.update_function_configuration(
            FunctionName=name, Environment={"Variables": gated_variables}, Timeout=900
        )
        try:
            yield gate
        finally:
            functions.update_function_configuration(
                FunctionName=name, Environment={"Variables": variables}, Timeout=timeout
            )
            gate.shutdown()


@contextmanager
def out_of_time(cloud: Cloud, folder: str, gate: Gate, study: str) -> Iterator[None]:
    """A function has a second, and is held at its gate for longer; where it is tried again, then once and soon.

    For one study alone: no other may need the function meanwhile. What it was about to ask is never asked.
    """
    functions, name = client(cloud, "lambda"), function_name(cloud, folder)
    usual = functions.get_function_configuration(FunctionName=name)["Timeout"]
    with machine_redefined(cloud, _trying_again_once), gate.shut(study):
        functions.update_function_configuration(FunctionName=name, Timeout=1)
        try:
            yield
        finally:
            functions.update_function_configuration(FunctionName=name, Timeout=usual)


def _trying_again_once(definition: str) -> str:
    def once(found: dict[str, Any]) -> dict[str, Any]:
        if TIMED_OUT in found.get("ErrorEquals", []):
            return {**found, "IntervalSeconds": 1, "MaxAttempts": 1}
        return found

    return json.dumps(json.loads(definition, object_hook=once))


@contextmanager
def frozen(cloud: Cloud, role: str, log_before: str) -> Iterator[int]:
    """The next task of a role, which has more than a moment's work to do, does not get to do it. Its process.

    `log_before`: what stood in the engine's log before anything was started that it may be.
    """
    log, begin = Path(cloud.state, "engine.log"), time.monotonic()
    started = re.compile(rf"started ministack-ecs-\w+-{role} at \S+ \(pid (\d+)\)")
    while not (found := started.search(log.read_text().removeprefix(log_before))):
        assert time.monotonic() - begin < PATIENCE_SECONDS, f"no {role} was started"
        time.sleep(0.005)
    pid = int(found[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):  # clean-up may end it at any moment
            os.kill(pid, signal.SIGCONT)


@contextmanager
def machine_redefined(cloud: Cloud, change: Callable[[str], str]) -> Iterator[None]:
    """Executions that start meanwhile are of another definition."""
    states, machine = client(cloud, "stepfunctions"), cloud.outputs["StateMachineArn"]
    usual = states.describe_state_machine(stateMachineArn=machine)["definition"]
    states.update_state_machine(stateMachineArn=machine, definition=change(usual))
    try:
        yield
    finally:
        states.update_state_machine(stateMachineArn=machine, definition=usual)


@contextmanager
def idle_servers(cloud: Cloud) -> Iterator[None]:
    """The state machine starts servers that do nothing: none says where it is."""
    with container_redefined(cloud, "server", environment=[{"name": "WORKER_AWAY_SECONDS", "value": "3600"}]):
        yield


@contextmanager
def container_redefined(cloud: Cloud, role: str, **changes: Any) -> Iterator[None]:
    """The state machine starts tasks of a role whose container is defined otherwise."""
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
        if task["containerDefinitions"][0]["name"] == role
    )
    kept = ["family", "cpu", "memory", "networkMode", "requiresCompatibilities", "runtimePlatform"]
    kept += ["executionRoleArn", "taskRoleArn"]
    (container,) = usual["containerDefinitions"]
    other = ecs.register_task_definition(
        **{name: usual[name] for name in kept if name in usual},
        containerDefinitions=[{**container, **changes}],
    )["taskDefinition"]["taskDefinitionArn"]
    try:
        with machine_redefined(
            cloud, lambda usual_machine: usual_machine.replace(usual["taskDefinitionArn"], other)
        ):
            yield
    finally:
        ecs.deregister_task_definition(taskDefinition=other)
