"""Settings of a deployment: what is said is checked as a whole, before anything is made."""

import json
from typing import Any

import pytest

from cdk.settings import Settings, SettingsRefused
from contract.prices import US_EAST_1, overridden

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/lockstep@sha256:" + 64 * "0"
ELSEWHERE = "docker.io/example/lockstep:1"
PRICES = {"date": "2026-11-01", "region": "eu-west-1", "arm64": {"vcpu_hour": 0.04}}
VPC, SUBNETS = "vpc-0123456789abcdef0", "subnet-01234567, subnet-0123456789abcdef1"


def refused(**context: Any) -> list[str]:
    with pytest.raises(SettingsRefused) as caught:
        Settings.from_context(context)
    return list(caught.value.problems)


def test_nothing_said_is_everything_by_default() -> None:
    settings = Settings.from_context({})
    assert settings == Settings()
    assert (settings.stack_name, settings.cpu_architecture, settings.network) == (
        "Lockstep",
        "x86_64",
        "public",
    )


def test_what_cdk_itself_puts_into_the_context_is_none_of_ours() -> None:
    context = {
        "aws:cdk:bundling-stacks": [],
        "@aws-cdk/core:checkSecretUsage": True,
        "availability-zones:account=123456789012:region=eu-west-1": ["eu-west-1a"],
        "acknowledged-issue-numbers": [34892],
        "image": "",  # `-c image=`
    }
    assert Settings.from_context(context) == Settings()


@pytest.mark.parametrize("subnets", [SUBNETS, SUBNETS.split(", ")], ids=["command line", "cdk.json"])
def test_lists_may_be_written_with_commas(subnets: Any) -> None:
    settings = Settings.from_context({"vpc_id": VPC, "subnet_ids": subnets})
    assert settings.subnet_ids == ("subnet-01234567", "subnet-0123456789abcdef1")


@pytest.mark.parametrize("given", [PRICES, json.dumps(PRICES)], ids=["cdk.json", "command line"])
def test_prices_are_handed_on_as_json(given: Any) -> None:
    prices = overridden(US_EAST_1, Settings.from_context({"prices": given}).prices)
    assert (prices.region, prices.date, prices.arm64.vcpu_hour) == ("eu-west-1", "2026-11-01", 0.04)
    assert prices.x86_64 == US_EAST_1.x86_64


def test_every_problem_is_named_at_once() -> None:
    problems = refused(
        cpu_architecture="arm",
        network="hidden",
        vpc_id="my-vpc",
        subnet_ids="subnet-01234567,mine",
        alarm_email="people",
        stack_name="my stack",
        cpu_architectur="arm64",
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "cpu_architectur",
        "stack_name",
        "cpu_architecture",
        "network",
        "vpc_id",
        "subnet_ids[1]",
        "alarm_email",
    ]
    assert problems[0] == "cpu_architectur: unknown setting; did you mean 'cpu_architecture'?"
    assert problems[2] == "cpu_architecture: must be 'x86_64' or 'arm64', not 'arm'"


@pytest.mark.parametrize(
    ("context", "problem"),
    [
        ({"vpc_id": VPC}, "subnet_ids: missing"),
        ({"subnet_ids": SUBNETS}, "vpc_id: missing"),
        ({"image": ECR, "torch_index": "https://index.example"}, "torch_index: has no effect with image"),
        ({"network": "private", "image": ELSEWHERE}, f"image: {ELSEWHERE} cannot be pulled"),
        ({"vcpu_quota": "0"}, "vcpu_quota: "),
        ({"prices": "{"}, "prices: not JSON"),
        ({"prices": '{"arm64": {"vcpu_hour": 0.04}}'}, "prices: date: missing"),
        ({"prices": "[]"}, "prices: must be a JSON object"),
    ],
)
def test_settings_that_exclude_or_call_for_one_another(context: dict[str, str], problem: str) -> None:
    [found] = refused(**context)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "context",
    [
        {"network": "private"},
        {"network": "private", "image": ECR},
        {"network": "private", "image": ELSEWHERE, "vpc_id": VPC, "subnet_ids": SUBNETS},
        {"image": ELSEWHERE},
    ],
)
def test_images_that_can_be_pulled(context: dict[str, str]) -> None:
    assert Settings.from_context(context).model_dump(exclude_unset=True).keys() == context.keys()
