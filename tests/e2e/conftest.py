"""One embedded cloud for the tests that can share it; each of them runs studies of its own."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from local.cloud import Cloud, start_cloud
from tests.e2e.lifetimes import STATES
from tests.e2e.machine import await_end, start_study
from tests.e2e.provocations import Gate, gated


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    state = tmp_path_factory.mktemp("cloud") / "state"
    running = start_cloud(state, tied=True, progress=print)
    yield running
    running.stop()


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    """Name of the study that a test starts; those of parametrized tests have brackets."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", request.node.name[:60])


@pytest.fixture
def start(cloud: Cloud, study: str) -> Callable[..., str]:
    """Start a study by the state machine alone; returns the execution's ARN."""

    def start_execution(document: dict[str, Any], suffix: str = "") -> str:
        return start_study(cloud, f"{study}{suffix}", document)

    return start_execution


@pytest.fixture
def ended(cloud: Cloud) -> Callable[..., dict[str, Any]]:
    """Wait for the end of an execution; returns its description."""
    return partial(await_end, cloud)


@pytest.fixture(scope="module")
def gates(cloud: Cloud) -> Iterator[dict[str, Gate]]:
    """Function → what it reaches the table through, in all tests of this file."""
    folders = [*STATES, "sweep_tasks"]
    with ExitStack() as all_of_them:
        yield {folder: all_of_them.enter_context(gated(cloud, folder)) for folder in folders}


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a study document to a file."""

    def write(document: dict[str, Any]) -> Path:
        file = tmp_path / "study.json"
        file.write_text(json.dumps(document))
        return file

    return write
