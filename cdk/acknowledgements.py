"""Acknowledgements: findings of cdk-nag and checkov that stay as they are, each with its reason.

Both run in the tests alone. What checkov finds everywhere is answered in .checkov.yaml.
"""

import json
from collections.abc import Mapping
from typing import Any

import aws_cdk as cdk
from constructs import IConstruct

_CHECKOV = "CKV"


def acknowledge(construct: IConstruct, findings: Mapping[str, str]) -> None:
    """Answer findings (rule → reason): cdk-nag's of `construct` and of what is inside it, checkov's of its resource.

    By metadata: `Validations.acknowledge` refuses the names of findings that tell what they found
    (`AwsSolutions-IAM5[Resource::*]`). Checkov reads that of the template.
    """
    if skipped := [
        {"id": rule, "comment": why} for rule, why in findings.items() if rule.startswith(_CHECKOV)
    ]:
        resource = construct.node.default_child
        assert isinstance(resource, cdk.CfnResource)  # noqa: S101 - tells the type checker what CDK made
        resource.add_metadata("checkov", {"skip": skipped})
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
