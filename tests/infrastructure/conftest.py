"""One synthesis for all tests, in a process of its own with nothing in its environment."""

import fcntl
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import statemachine

REPOSITORY = Path(__file__).resolve().parents[2]
STACK = "Lockstep"
NOWHERE = "http://127.0.0.1:9"
"""The discard port: whoever calls anything through this proxy fails at once."""


@dataclass(frozen=True)
class Assembly:
    """The cloud assembly that `app.py` wrote."""

    folder: Path

    @cached_property
    def template(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / f"{STACK}.template.json").read_text())
        return loaded

    @cached_property
    def assets(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / f"{STACK}.assets.json").read_text())
        return loaded

    def resources(self, resource_type: str) -> dict[str, dict[str, Any]]:
        """Logical id → resource, of one type. There is at least one."""
        found = {
            logical_id: resource
            for logical_id, resource in self.template["Resources"].items()
            if resource["Type"] == resource_type
        }
        assert found, f"no {resource_type} in the template"
        return found

    def only(self, resource_type: str) -> tuple[str, dict[str, Any]]:
        """Logical id and properties of the one resource of a type."""
        ((logical_id, resource),) = self.resources(resource_type).items()
        return logical_id, resource["Properties"]

    def functions(self) -> dict[str, dict[str, Any]]:
        """Name as in its handler (`plan_study`) → properties."""
        found = [resource["Properties"] for resource in self.resources("AWS::Lambda::Function").values()]
        return {properties["Handler"].split(".")[1]: properties for properties in found}

    def statements(self, role: dict[str, Any]) -> list[dict[str, Any]]:
        """What the policies say that are attached to a role, given as a reference to it."""
        logical_id = role["Fn::GetAtt"][0] if "Fn::GetAtt" in role else role["Ref"]
        return [
            statement
            for policy in self.resources("AWS::IAM::Policy").values()
            if {"Ref": logical_id} in policy["Properties"]["Roles"]
            for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        ]


def actions_of(statement: dict[str, Any]) -> list[str]:
    """A statement's actions, of which IAM writes a single one as a string."""
    actions = statement["Action"]
    return [actions] if isinstance(actions, str) else actions


@pytest.fixture(scope="session")
def assembly(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Assembly:
    """Synthesized once, whichever of pytest-xdist's workers comes first."""
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "assembly"
    with (shared / "assembly.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "manifest.json").exists():
            _synthesize(folder)
    return Assembly(folder)


def _synthesize(folder: Path) -> None:
    """No credentials, no Docker on the path, no way to any service."""
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=REPOSITORY,
        env={
            "PATH": str(Path(sys.executable).parent),
            "HOME": str(folder.parent),
            "CDK_OUTDIR": str(folder),
            "CDK_CONTEXT_JSON": json.dumps({"aws:cdk:bundling-stacks": []}),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """The state machine as it stands in the repository."""
    loaded: dict[str, Any] = json.loads(statemachine.definition())
    return loaded
