"""Conditions: what of the template is for AWS alone, or other there than in the embedded cloud."""

import aws_cdk as cdk
from constructs import IConstruct


def for_aws_alone(part: IConstruct, on_aws: cdk.CfnCondition) -> None:
    """Everything inside `part` is made on AWS and left out in the embedded cloud, which cannot take it."""
    for construct in part.node.find_all():
        if isinstance(construct, cdk.CfnResource):
            construct.cfn_options.condition = on_aws


def by_cloud(on_aws: cdk.CfnCondition, aws: str, embedded: str) -> str:
    """The one value on AWS, and the other in the embedded cloud."""
    return cdk.Token.as_string(cdk.Fn.condition_if(on_aws.logical_id, aws, embedded))
