"""Planning: what plan_study is told of the deployment, and what it may ask AWS.

Context `prices` (JSON of prices that differ from the table's), `vcpu_quota` (in place of what Service Quotas says) and
`cpu_architecture` (of the tasks) override; a mistake in them is told at synthesis.
"""

import json

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct, Node

from contract.prices import US_EAST_1, overridden

EMBEDDED_VCPUS = 128
"""Of the embedded cloud, as its quota: a task of the default size is one vCPU there, and some 150 MB of memory."""


def planning_environment(node: Node, on_aws: cdk.CfnCondition) -> dict[str, str]:
    """Variables of plan_study. Raises PricesRefused and ValueError where the context is wrong."""
    quota = node.try_get_context("vcpu_quota")
    fixed = "" if quota is None else f"{float(quota):g}"

    def by_cloud(aws: str, embedded: str) -> str:
        return cdk.Token.as_string(cdk.Fn.condition_if(on_aws.logical_id, aws, embedded))

    return {
        "EMBEDDED_CLOUD": by_cloud("false", "true"),
        "VCPU_QUOTA": by_cloud(fixed, fixed or str(EMBEDDED_VCPUS)),
        "PRICES": _prices(node.try_get_context("prices")),
        "CPU_ARCHITECTURE": node.try_get_context("cpu_architecture") or "x86_64",
    }


def let_it_ask(scope: Construct, function: lambda_.Function, on_aws: cdk.CfnCondition) -> None:
    """Quotas and their use, on AWS alone: the embedded cloud's is fixed.

    Neither service knows a resource or a condition for these actions. Source: Service Authorization Reference.
    """
    role = function.role
    assert role is not None  # noqa: S101 - tells the type checker what CDK made
    policy = iam.Policy(
        scope,
        "AskForQuotas",
        roles=[role],
        statements=[
            iam.PolicyStatement(
                actions=[
                    "servicequotas:GetServiceQuota",
                    "servicequotas:GetAWSDefaultServiceQuota",
                    "cloudwatch:GetMetricStatistics",
                ],
                resources=["*"],
            )
        ],
    )
    resource = policy.node.default_child
    assert isinstance(resource, iam.CfnPolicy)  # noqa: S101 - tells the type checker what CDK made
    resource.cfn_options.condition = on_aws


def _prices(given: object) -> str:
    """As JSON; the command line gives a text, cdk.json an object."""
    text = given if isinstance(given, str) else json.dumps(given) if given else ""
    overridden(US_EAST_1, text)
    return text
