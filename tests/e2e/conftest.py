"""One embedded cloud for the tests that can share it; each of them runs studies of its own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local.cloud import Cloud, start_cloud
from tests.e2e.machine import client, until


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    state = tmp_path_factory.mktemp("cloud") / "state"
    running = start_cloud(state, tied=True, progress=print)
    yield running
    running.stop()


@pytest.fixture
def start(cloud: Cloud, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Start a study by the state machine alone; returns the execution's ARN."""

    def start_execution(document: dict[str, Any], suffix: str = "") -> str:
        name = f"{request.node.name[:60]}{suffix}"
        started: dict[str, str] = client(cloud, "stepfunctions").start_execution(
            stateMachineArn=cloud.outputs["StateMachineArn"], name=name, input=json.dumps(document)
        )
        return started["executionArn"]

    return start_execution


@pytest.fixture
def ended(cloud: Cloud) -> Callable[..., dict[str, Any]]:
    """Wait for the end of an execution; returns its description."""

    def await_end(execution_arn: str, patience_seconds: float = 120) -> dict[str, Any]:
        states = client(cloud, "stepfunctions")

        def description() -> dict[str, Any] | None:
            described: dict[str, Any] = states.describe_execution(executionArn=execution_arn)
            return described if described["status"] != "RUNNING" else None

        result: dict[str, Any] = until(description, patience_seconds, f"the end of {execution_arn}")
        return result

    return await_end


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a study document to a file."""

    def write(document: dict[str, Any]) -> Path:
        file = tmp_path / "study.json"
        file.write_text(json.dumps(document))
        return file

    return write
