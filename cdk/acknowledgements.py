"""Acknowledgements: findings of cdk-nag that stay as they are, each with its reason.

cdk-nag itself runs in the tests alone.
"""

import json
from collections.abc import Mapping
from typing import Any

import aws_cdk as cdk
from constructs import IConstruct


def acknowledge(construct: IConstruct, findings: Mapping[str, str]) -> None:
    """Answer findings (rule → reason) of `construct` and of what is inside it.

    By metadata: `Validations.acknowledge` refuses the names of findings that tell what they found
    (`AwsSolutions-IAM5[Resource::*]`).
    """
    for rule, reason in findings.items():
        construct.node.add_metadata(cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY, {rule: reason})


def acknowledge_wildcards(stack: cdk.Stack, resources: Mapping[str, str]) -> None:
    """Answer that policies of `stack` allow something on these ARNs, which end in * (ARN → reason)."""
    acknowledge(
        stack,
        {
            f"AwsSolutions-IAM5[Resource::{_flat(stack.resolve(arn))}]": reason
            for arn, reason in resources.items()
        },
    )


def _flat(value: Any) -> str:
    """An ARN as cdk-nag writes it: `<LogicalId.Attribute>` for what is known when the stack is deployed."""
    match value:
        case str():
            return value
        case {"Fn::Join": [separator, parts]}:
            return str(separator).join(map(_flat, parts))
        case {"Ref": name}:
            return f"<{name}>"
        case {"Fn::GetAtt": [name, attribute]}:
            return f"<{name}.{attribute}>"
        case _:
            return json.dumps(value, separators=(",", ":"))
