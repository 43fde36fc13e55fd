"""One synthesis for each choice of settings, in a process of its own with nothing in its environment."""

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import statemachine

REPOSITORY = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"
"""The discard port: whoever calls anything through this proxy fails at once."""

VPC, SUBNETS = "vpc-0123456789abcdef0", ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]

CHOICES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "arm64": {"cpu_architecture": "arm64", "alarm_email": "people@example.com"},
    "private": {"network": "private"},
    "imported": {
        "vpc_id": VPC,
        "subnet_ids": ",".join(SUBNETS),
        "network": "private",
        "image": "public.ecr.aws/example/lockstep-runtime@sha256:" + 64 * "0",
        "stack_name": "Second",
    },
}
"""Every setting that changes what is in a stack, with another value than its default."""


@dataclass(frozen=True)
class Assembly:
    """The cloud assembly that `app.py` wrote."""

    folder: Path
    stack: str = "Lockstep"

    @cached_property
    def template(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / f"{self.stack}.template.json").read_text())
        return loaded

    @cached_property
    def assets(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / f"{self.stack}.assets.json").read_text())
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

    def has(self, resource_type: str) -> bool:
        """Whether there is any of a type."""
        return any(resource["Type"] == resource_type for resource in self.template["Resources"].values())

    def only(self, resource_type: str) -> tuple[str, dict[str, Any]]:
        """Logical id and properties of the one resource of a type."""
        ((logical_id, resource),) = self.resources(resource_type).items()
        return logical_id, resource["Properties"]

    def results_bucket(self) -> tuple[str, dict[str, Any]]:
        """Logical id and resource of the bucket that reports go to."""
        logical_id = self.template["Outputs"]["BucketName"]["Value"]["Ref"]
        return logical_id, self.resources("AWS::S3::Bucket")[logical_id]

    def functions(self) -> dict[str, dict[str, Any]]:
        """Name as in its handler (`plan_study`) → properties."""
        found = [resource["Properties"] for resource in self.resources("AWS::Lambda::Function").values()]
        return {properties["Handler"].split(".")[1]: properties for properties in found}

    def function_named(self, reference: dict[str, Any]) -> str:
        """Name of the function that a reference to it, or to its ARN, means."""
        logical_id = reference["Fn::GetAtt"][0] if "Fn::GetAtt" in reference else reference["Ref"]
        handler: str = self.resources("AWS::Lambda::Function")[logical_id]["Properties"]["Handler"]
        return handler.split(".")[1]

    def containers(self) -> list[dict[str, Any]]:
        """The one container of each task definition."""
        definitions = self.resources("AWS::ECS::TaskDefinition").values()
        return [container for d in definitions for container in d["Properties"]["ContainerDefinitions"]]

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


def run_app(
    folder: Path, context: Mapping[str, Any], script: str = "app.py"
) -> subprocess.CompletedProcess[str]:
    """Synthesize into `folder`: no credentials, no Docker on the path, no way to any service."""
    return subprocess.run(
        [sys.executable, script],
        cwd=REPOSITORY,
        env={
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": str(REPOSITORY),
            "HOME": str(folder.parent),
            "CDK_OUTDIR": str(folder),
            "CDK_CONTEXT_JSON": json.dumps({"aws:cdk:bundling-stacks": [], **context}),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Assembly]:
    """The assembly of a choice, synthesized once, whichever of pytest-xdist's workers comes first."""
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent

    def of(choice: str) -> Assembly:
        folder, context = shared / f"assembly-{choice}", CHOICES[choice]
        with (shared / f"assembly-{choice}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "manifest.json").exists():
                done = run_app(folder, context)
                assert done.returncode == 0, done.stderr
        return Assembly(folder, context.get("stack_name", "Lockstep"))

    return of


@pytest.fixture(scope="session")
def assembly(synthesized: Callable[[str], Assembly]) -> Assembly:
    """With every setting's default."""
    return synthesized("default")


@pytest.fixture(scope="session", params=CHOICES)
def every_assembly(synthesized: Callable[[str], Assembly], request: pytest.FixtureRequest) -> Assembly:
    """Each choice in turn."""
    return synthesized(request.param)


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """The state machine as it stands in the repository."""
    loaded: dict[str, Any] = json.loads(statemachine.definition())
    return loaded
