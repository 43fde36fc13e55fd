"""The test of permissions would fail where a grant is missing, superfluous or loose: small cases of each."""

import json
from pathlib import Path
from typing import Any

from ministack.core.iam_evaluator import EvalContext

from local.emulation.decisions import Decisions
from tests.e2e.grants import Asked, Unexercised, missing, recorded, slack, stale, superfluous

TABLE = "arn:aws:dynamodb:us-east-1:000000000000:table/rows"
OTHER = f"{TABLE}-of-others"
KEYS = "dynamodb:LeadingKeys"
FUNCTION = "arn:aws:lambda:us-east-1:000000000000:function:sweep"


def request(action: str, resource: str = TABLE, **context: Any) -> EvalContext:
    return EvalContext(
        principal_arn="arn:aws:sts::000000000000:assumed-role/Stack-Role-1/task",
        principal_type="AssumedRole",
        principal_account="000000000000",
        action=action,
        resource_arn=resource,
        region="us-east-1",
        service_context=context,
    )


def asked(*requests: EvalContext) -> list[Asked]:
    return [Asked("Role", each) for each in requests]


def allow(actions: str | list[str], resources: str | list[str] = TABLE, **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resources, **more}


def test_needed_grants_are_let_be() -> None:
    policies = {"Role": [allow(["dynamodb:GetItem", "dynamodb:PutItem"], [TABLE, OTHER])]}
    requests = asked(request("dynamodb:GetItem"), request("dynamodb:PutItem", OTHER))
    assert missing(policies, requests) == []
    assert superfluous(policies, requests) == []


def test_missing_grant_is_named() -> None:
    (named,) = missing({"Role": [allow("dynamodb:GetItem")]}, asked(request("dynamodb:PutItem")))
    assert named.startswith(f"Role: dynamodb:PutItem on {TABLE}")


def test_superfluous_action_is_named() -> None:
    policies = {"Role": [allow(["dynamodb:GetItem", "dynamodb:PutItem"])]}
    assert superfluous(policies, asked(request("dynamodb:GetItem"))) == [f"Role: dynamodb:PutItem on {TABLE}"]


def test_superfluous_resource_is_named() -> None:
    policies = {"Role": [allow("dynamodb:GetItem", [TABLE, OTHER])]}
    assert superfluous(policies, asked(request("dynamodb:GetItem"))) == [f"Role: dynamodb:GetItem on {OTHER}"]


def test_grant_that_stands_twice_is_superfluous() -> None:
    policies = {"Role": [allow("dynamodb:GetItem"), allow("dynamodb:GetItem")]}
    assert superfluous(policies, asked(request("dynamodb:GetItem"))) == 2 * [
        f"Role: dynamodb:GetItem on {TABLE}"
    ]


def test_request_that_lacks_a_grant_makes_no_other_needed() -> None:
    policies = {"Role": [allow("dynamodb:GetItem")]}
    assert superfluous(policies, asked(request("dynamodb:PutItem"))) == [f"Role: dynamodb:GetItem on {TABLE}"]


def test_policies_without_any_request_are_superfluous_but_for_what_is_unexercised() -> None:
    policies = {"Role": [allow(["logs:CreateLogStream", "logs:PutLogEvents"], ["a", "b"])]}
    pages = [Unexercised("R*", "logs:CreateLogStream", "a page")]
    assert superfluous(policies, [], pages) == [
        "Role: logs:PutLogEvents on a, b",
        "Role: logs:CreateLogStream, logs:PutLogEvents on a",
        "Role: logs:CreateLogStream, logs:PutLogEvents on b",
    ]
    assert superfluous(policies, [], [*pages, Unexercised("Role", "logs:PutLogEvents", "a page")]) == []


def test_one_of_two_resources_may_be_unexercised() -> None:
    policies = {"Role": [allow("dynamodb:GetItem", [TABLE, OTHER])]}
    entry = Unexercised("Role", "dynamodb:GetItem", "a page", resource="*-of-others")
    assert superfluous(policies, asked(request("dynamodb:GetItem")), [entry]) == []
    assert stale(policies, asked(request("dynamodb:GetItem")), [entry]) == []
    assert superfluous(policies, asked(request("dynamodb:GetItem", OTHER)), [entry]) == [
        f"Role: dynamodb:GetItem on {TABLE}"
    ]


def test_entry_for_what_is_not_granted_or_is_exercised_is_stale() -> None:
    policies = {"Role": [allow("dynamodb:GetItem"), allow("logs:PutLogEvents", "*")]}
    entries = [
        Unexercised("Role", action, "a page")
        for action in ("dynamodb:GetItem", "logs:PutLogEvents", "logs:CreateLogStream")
    ]
    assert stale(policies, asked(request("dynamodb:GetItem")), entries) == [
        "Role: dynamodb:GetItem on *",
        "Role: logs:CreateLogStream on *",
    ]


def test_condition_that_holds_nothing_back_is_slack() -> None:
    bound = allow("dynamodb:GetItem", Condition={"ForAllValues:StringLike": {KEYS: ["SERVER#*"]}})
    own = request("dynamodb:GetItem", **{KEYS.lower(): ["SERVER#a"]})
    assert slack({"Role": [bound]}, asked(own)) == []
    # ForAllValues lets pass what does not carry the key, and another statement lets pass the rest
    assert slack({"Role": [bound]}, asked(request("dynamodb:GetItem"))) == [
        f"Role: {KEYS} of dynamodb:GetItem"
    ]
    assert slack({"Role": [bound, allow("dynamodb:GetItem")]}, asked(own)) == [
        f"Role: {KEYS} of dynamodb:GetItem"
    ]


def test_policy_of_a_function_is_held_against_the_services_that_invoke_it() -> None:
    statements = [
        {
            **allow("lambda:InvokeFunction", FUNCTION),
            "Principal": {"Service": "events.amazonaws.com"},
            "Condition": {"ArnLike": {"AWS:SourceArn": rule}},
        }
        for rule in ("arn:a-rule", "arn:another")
    ]
    invoked = EvalContext(
        principal_arn="events.amazonaws.com",
        principal_type="Service",
        principal_account="000000000000",
        action="lambda:InvokeFunction",
        resource_arn=FUNCTION,
        region="us-east-1",
        service_context={"aws:sourcearn": "arn:a-rule"},
    )
    requests = [Asked(FUNCTION, invoked)]
    assert missing({FUNCTION: statements}, requests) == []
    assert missing({FUNCTION: statements[1:]}, requests) != []
    assert superfluous({FUNCTION: statements}, requests) == [
        f"{FUNCTION}: lambda:InvokeFunction on {FUNCTION}"
    ]
    assert slack({FUNCTION: statements}, requests) == []


def test_what_was_noted_is_read_again_and_equal_decisions_stand_once(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    decisions = Decisions(file)
    own = request("dynamodb:GetItem", **{KEYS.lower(): ["SERVER#a"], "aws:tagkeys": None})
    for allowed in (True, True, False):
        decisions.note(own, allowed)
    assert [json.loads(line)["allowed"] for line in file.read_text().splitlines()] == [True, False]
    assert recorded(file, {"Stack-Role-1": "Role"}) == 2 * asked(own)
