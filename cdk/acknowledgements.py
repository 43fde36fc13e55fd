"""Acknowledgements: findings of cdk-nag that stay as they are, each with its reason beside the resource."""

from collections.abc import Mapping

import aws_cdk as cdk
from constructs import IConstruct


def acknowledge(construct: IConstruct, findings: Mapping[str, str]) -> None:
    """Answer findings (rule → reason) of `construct` and of what is inside it.

    By metadata: `Validations.acknowledge` refuses the names of findings that tell what they found
    (`AwsSolutions-IAM5[Resource::*]`).
    """
    for rule, reason in findings.items():
        construct.node.add_metadata(cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY, {rule: reason})
