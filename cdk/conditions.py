"""Conditions: what of the template is for AWS alone."""

import aws_cdk as cdk
from constructs import IConstruct


def for_aws_alone(part: IConstruct, on_aws: cdk.CfnCondition) -> None:
    """Everything inside `part` is made on AWS and left out in the embedded cloud, which cannot take it."""
    for construct in part.node.find_all():
        if isinstance(construct, cdk.CfnResource):
            construct.cfn_options.condition = on_aws
