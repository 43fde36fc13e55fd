"""Settings: each changes what it names, and one that is wrong makes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.conftest import SUBNETS, VPC, Assembly, run_app

Synthesized = Callable[[str], Assembly]


def substitutions(assembly: Assembly) -> dict[str, Any]:
    """What the state machine is told of the stack."""
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    found: dict[str, Any] = properties["DefinitionSubstitutions"]
    return found


def test_wrong_settings_are_one_message_that_names_each(tmp_path: Path) -> None:
    done = run_app(
        tmp_path / "out", {"cpu_architecture": "arm", "vpc_id": VPC, "alarm_emial": "a@example.com"}
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "settings refused: 2 problems"
    assert "alarm_emial: unknown setting; did you mean 'alarm_email'?" in done.stderr
    assert "cpu_architecture: must be 'x86_64' or 'arm64', not 'arm'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("choice", "task", "docker", "told"),
    [("default", "X86_64", "linux/amd64", "x86_64"), ("arm64", "ARM64", "linux/arm64", "arm64")],
)
def test_tasks_image_and_prices_are_of_one_processor(
    synthesized: Synthesized, choice: str, task: str, docker: str, told: str
) -> None:
    assembly = synthesized(choice)
    for definition in assembly.resources("AWS::ECS::TaskDefinition").values():
        assert definition["Properties"]["RuntimePlatform"] == {
            "CpuArchitecture": task,
            "OperatingSystemFamily": "LINUX",
        }
    (image,) = assembly.assets["dockerImages"].values()
    assert image["source"]["platform"] == docker
    assert assembly.functions()["plan_study"]["Environment"]["Variables"]["CPU_ARCHITECTURE"] == told


def test_tasks_may_run_on_demand_and_on_spot(every_assembly: Assembly) -> None:
    _, cluster = every_assembly.only("AWS::ECS::Cluster")
    assert cluster["CapacityProviders"] == ["FARGATE", "FARGATE_SPOT"]


def test_public_subnets_have_a_way_out_and_nothing_that_costs_by_the_hour(assembly: Assembly) -> None:
    assert substitutions(assembly)["AssignPublicIp"] == "ENABLED"
    for subnet in assembly.resources("AWS::EC2::Subnet").values():
        assert subnet["Properties"]["MapPublicIpOnLaunch"] is False, "tasks ask for their address themselves"
    endpoints = assembly.resources("AWS::EC2::VPCEndpoint").values()
    assert {endpoint["Properties"]["VpcEndpointType"] for endpoint in endpoints} == {"Gateway"}
    assert services(assembly) == {"s3", "dynamodb"}


def test_private_subnets_have_no_way_out_but_endpoints_for_tasks_alone(synthesized: Synthesized) -> None:
    assembly = synthesized("private")
    assert substitutions(assembly)["AssignPublicIp"] == "DISABLED"
    for way_out in ("InternetGateway", "NatGateway", "EIP", "Route"):
        assert not assembly.has(f"AWS::EC2::{way_out}")
    assert services(assembly) == {"s3", "dynamodb", "ecr.api", "ecr.dkr", "logs", "states"}
    subnets = [{"Ref": logical_id} for logical_id in assembly.resources("AWS::EC2::Subnet")]
    tasks = substitutions(assembly)["SecurityGroup"]
    guards = []
    for endpoint in assembly.resources("AWS::EC2::VPCEndpoint").values():
        properties = endpoint["Properties"]
        if properties["VpcEndpointType"] == "Interface":
            assert endpoint["Condition"] == "OnAws"
            assert properties["PrivateDnsEnabled"] is True
            assert properties["SubnetIds"] == subnets
            guards += properties["SecurityGroupIds"]
    (guard,) = {str(guard): guard for guard in guards}.values()
    rules = [rule["Properties"] for rule in assembly.resources("AWS::EC2::SecurityGroupIngress").values()]
    (ingress,) = (rule for rule in rules if rule["GroupId"] == guard)
    assert (ingress["SourceSecurityGroupId"], ingress["FromPort"], ingress["ToPort"]) == (tasks, 443, 443)


def services(assembly: Assembly) -> set[str]:
    """What the endpoints lead to: `com.amazonaws.<region>.<service>`."""
    names = (e["Properties"]["ServiceName"] for e in assembly.resources("AWS::EC2::VPCEndpoint").values())
    last = (name["Fn::Join"][1][-1] if isinstance(name, dict) else name for name in names)
    return {service.removeprefix("com.amazonaws.").strip(".") for service in last}


def test_a_vpc_of_ones_own_is_used_as_it_is(synthesized: Synthesized) -> None:
    assembly = synthesized("imported")
    for kind in ("VPC", "Subnet", "VPCEndpoint", "FlowLog", "InternetGateway", "RouteTable"):
        assert not assembly.has(f"AWS::EC2::{kind}")
    _, group = assembly.only("AWS::EC2::SecurityGroup")
    assert group["VpcId"] == VPC
    assert substitutions(assembly)["Subnets"] == ",".join(SUBNETS)
    assert substitutions(assembly)["AssignPublicIp"] == "DISABLED"
    assert "missing" not in (assembly.folder / "manifest.json").read_text(), "a lookup would call AWS"


def test_an_image_of_ones_own_is_run_and_none_is_built(synthesized: Synthesized) -> None:
    assembly = synthesized("imported")
    assert not assembly.assets.get("dockerImages")
    assert {container["Image"] for container in assembly.containers()} == {
        "public.ecr.aws/example/lockstep-runtime@sha256:" + 64 * "0"
    }


def test_two_stacks_have_no_name_in_common(synthesized: Synthesized) -> None:
    """What is named by hand holds the stack's name; CloudFormation makes up the rest."""
    kinds = (
        "LogGroup",
        "Dashboard",
        "Queue",
        "Topic",
        "Bucket",
        "Table",
        "Function",
        "Role",
        "Cluster",
        "Alarm",
    )
    given = {"Family", "StateMachineName", *(f"{kind}Name" for kind in kinds)}
    names: list[set[str]] = []
    for choice in ("default", "imported"):
        assembly = synthesized(choice)
        found = {
            value
            for resource in assembly.template["Resources"].values()
            for key, value in resource.get("Properties", {}).items()
            if key in given and isinstance(value, str)
        }
        names.append(found)
        assert found
    assert not names[0] & names[1]
