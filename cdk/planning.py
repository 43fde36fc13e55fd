"""Planning: what plan_study is told of the deployment, and what it may ask AWS."""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from cdk.conditions import by_cloud
from cdk.settings import Settings

EMBEDDED_VCPUS = 128
"""Of the embedded cloud, as its quota: a task of the default size is one vCPU there, and some 150 MB of memory."""


def planning_environment(settings: Settings, on_aws: cdk.CfnCondition) -> dict[str, str]:
    """Variables of plan_study."""
    fixed = "" if settings.vcpu_quota is None else f"{settings.vcpu_quota:g}"
    return {
        "EMBEDDED_CLOUD": by_cloud(on_aws, "false", "true"),
        "VCPU_QUOTA": by_cloud(on_aws, fixed, fixed or str(EMBEDDED_VCPUS)),
        "PRICES": settings.prices,
        "CPU_ARCHITECTURE": settings.cpu_architecture,
        "PUBLIC_IPV4": str(settings.network == "public").lower(),
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
