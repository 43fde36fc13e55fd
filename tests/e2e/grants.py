"""Grants of a deployed stack, held against the requests that were made of it, by MiniStack's own evaluator.

A grant is missing where a request needs more than the policies say, and superfluous where every request is allowed
without it. Grants are taken apart: each action and each resource of a statement is one of its own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ministack.core.iam_evaluator import (
    EvalContext,
    evaluate,
    evaluate_resource_policy,
    parse_policy_document,
)

Statement = Mapping[str, Any]
Policies = Mapping[str, Sequence[Statement]]
"""By holder: a role, by its logical id without the hash, or a function's own policy, by the function's ARN."""

CDK_HASH = re.compile(r"[0-9A-F]{8}$")


class Asked(NamedTuple):
    """A request and whose policies decide on it."""

    holder: str
    request: Any


class Grant(NamedTuple):
    """One action of a statement on all its resources, or all its actions on one resource."""

    holder: str
    actions: Sequence[str]
    resources: Sequence[str]
    rest: Sequence[Statement]
    """The holder's statements without it."""

    def __str__(self) -> str:
        return f"{self.holder}: {', '.join(self.actions)} on {', '.join(self.resources)}"


class Unexercised(NamedTuple):
    """What no request here needs, and the AWS page that says why it is granted."""

    holder: str
    """Pattern of roles."""
    action: str
    page: str
    resource: str = "*"
    """Pattern of the resources that it is said of."""

    def covers(self, holder: str, action: str, resource: str) -> bool:
        """Whether it is said of this."""
        patterns = ((holder, self.holder), (action, self.action), (resource, self.resource))
        return all(fnmatchcase(value, pattern) for value, pattern in patterns)


def deployed(client: Callable[[str], Any], stack: str) -> tuple[Policies, Mapping[str, str]]:
    """The policies of every role and function of a stack, and the holder that each role's name stands for.

    `client`: makes a client of an AWS service.
    """
    resources = client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
    named = {
        kind: {
            r["PhysicalResourceId"]: r["LogicalResourceId"] for r in resources if r["ResourceType"] == kind
        }
        for kind in ("AWS::IAM::Role", "AWS::Lambda::Function")
    }
    iam, functions = client("iam"), client("lambda")
    holders = {role: CDK_HASH.sub("", logical_id) for role, logical_id in named["AWS::IAM::Role"].items()}
    policies: dict[str, list[Statement]] = {
        holder: [
            statement
            for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
            for statement in _statements(
                iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
            )
        ]
        for role, holder in holders.items()
    }
    for function in named["AWS::Lambda::Function"]:
        arn = functions.get_function(FunctionName=function)["Configuration"]["FunctionArn"]
        try:
            policies[arn] = _statements(functions.get_policy(FunctionName=function)["Policy"])
        except functions.exceptions.ResourceNotFoundException:
            policies[arn] = []
    return policies, holders


def recorded(file: Path, holders: Mapping[str, str]) -> list[Asked]:
    """The requests of the roles and of the services that invoke functions, as the emulator has noted them."""
    asked = []
    for line in file.read_text().splitlines():
        request = EvalContext(**json.loads(line)["request"])
        if request.principal_type == "Service":
            asked.append(Asked(request.resource_arn, request))
        else:
            asked.append(Asked(holders[request.principal_arn.split("/")[1]], request))
    return asked


def missing(policies: Policies, asked: Sequence[Asked]) -> list[str]:
    """Requests that the complete policies do not allow."""
    return [
        f"{each.holder}: {each.request.action} on {each.request.resource_arn} with {each.request.service_context}"
        for each in asked
        if not _allowed(policies[each.holder], each.request)
    ]


def superfluous(
    policies: Policies, asked: Sequence[Asked], unexercised: Sequence[Unexercised] = ()
) -> list[str]:
    """Grants without which every request would be allowed as well, but for those that are unexercised."""
    return [
        str(grant)
        for grant in _unneeded(policies, asked)
        if not all(
            any(entry.covers(grant.holder, *pair) for entry in unexercised)
            for pair in product(grant.actions, grant.resources)
        )
    ]


def stale(policies: Policies, asked: Sequence[Asked], unexercised: Sequence[Unexercised]) -> list[str]:
    """Entries for what is not granted, or is exercised after all."""
    unneeded = [
        (grant.holder, *pair)
        for grant in _unneeded(policies, asked)
        for pair in product(grant.actions, grant.resources)
    ]
    return [
        f"{entry.holder}: {entry.action} on {entry.resource}"
        for entry in unexercised
        if not any(entry.covers(*each) for each in unneeded)
    ]


def slack(policies: Policies, asked: Sequence[Asked]) -> list[str]:
    """Conditions that hold no request back: those that they let pass would pass for anything else too."""
    found = []
    for holder, statements in policies.items():
        for statement, key in ((s, k) for s in statements for k in _keys(s)):
            passing = [request for request in _of(holder, asked) if _allowed([statement], request)]
            if passing and all(_allowed(statements, _elsewhere(request, key)) for request in passing):
                found.append(f"{holder}: {key} of {', '.join(listed(statement['Action']))}")
    return found


def listed(value: str | list[str]) -> list[str]:
    """Actions or resources, of which IAM writes a single one as a string."""
    return [value] if isinstance(value, str) else value


def _unneeded(policies: Policies, asked: Sequence[Asked]) -> Iterator[Grant]:
    """Grants without which no request is denied that all of them together allow."""
    for holder, statements in policies.items():
        allowed = [request for request in _of(holder, asked) if _allowed(statements, request)]
        for grant in _grants(holder, statements):
            if all(_allowed(grant.rest, request) for request in allowed):
                yield grant


def _grants(holder: str, statements: Sequence[Statement]) -> Iterator[Grant]:
    for i, statement in enumerate(statements):
        others = [*statements[:i], *statements[i + 1 :]]
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        for action in actions:
            left = [each for each in actions if each != action]
            rest = [*others, *([{**statement, "Action": left}] if left else [])]
            yield Grant(holder, [action], resources, rest)
        for resource in resources if len(resources) > 1 else []:
            left = [each for each in resources if each != resource]
            yield Grant(holder, actions, [resource], [*others, {**statement, "Resource": left}])


def _of(holder: str, asked: Sequence[Asked]) -> list[Any]:
    return [each.request for each in asked if each.holder == holder]


def _allowed(statements: Sequence[Statement], request: Any) -> bool:
    document = {"Statement": list(statements)}
    if request.principal_type == "Service":
        decided = evaluate_resource_policy(document, request, request.principal_arn)
    else:
        decided = evaluate(request, [parse_policy_document(document)])
    return bool(decided.decision == "Allow")


def _keys(statement: Statement) -> list[str]:
    return [key for block in statement.get("Condition", {}).values() for key in block]


def _elsewhere(request: Any, key: str) -> Any:
    """The request, about something that no policy names."""
    context = dict(request.service_context)
    if key.lower() in context:
        context[key.lower()] = ["elsewhere"] if isinstance(context[key.lower()], list) else "elsewhere"
    return replace(request, service_context=context)


def _statements(document: Any) -> list[Statement]:
    parsed = json.loads(document) if isinstance(document, str) else document
    return list(parsed["Statement"])
