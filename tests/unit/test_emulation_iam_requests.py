"""What requests are to IAM: resources and condition keys as AWS's reference has them."""

from typing import Any

import pytest

from local.emulation.iam_requests import Place, condition_keys, resource_of

HERE = Place("us-east-1", "000000000000")
ECS = "arn:aws:ecs:us-east-1:000000000000"
CLUSTER = f"{ECS}:cluster/training"


@pytest.mark.parametrize(
    ("service", "operation", "body", "resource"),
    [
        (
            "ecs",
            "RunTask",
            {"cluster": CLUSTER, "taskDefinition": "server:3"},
            f"{ECS}:task-definition/server:3",
        ),
        (
            "ecs",
            "RunTask",
            {"taskDefinition": f"{ECS}:task-definition/server:3"},
            f"{ECS}:task-definition/server:3",
        ),
        ("ecs", "StopTask", {"cluster": CLUSTER, "task": "abc"}, f"{ECS}:task/training/abc"),
        ("ecs", "StopTask", {"cluster": "training", "task": "abc"}, f"{ECS}:task/training/abc"),
        ("ecs", "DescribeTasks", {"tasks": [f"{ECS}:task/training/abc"]}, f"{ECS}:task/training/abc"),
        ("ecs", "ListTasks", {"cluster": CLUSTER}, "*"),
        ("ecs", "DescribeClusters", {"clusters": ["training"]}, None),
        (
            "logs",
            "FilterLogEvents",
            {"logGroupName": "tasks"},
            "arn:aws:logs:us-east-1:000000000000:log-group:tasks:*",
        ),
        (
            "logs",
            "GetLogEvents",
            {"logGroupName": "tasks", "logStreamName": "one"},
            "arn:aws:logs:us-east-1:000000000000:log-group:tasks:log-stream:one",
        ),
        ("logs", "TagResource", {"resourceArn": "…"}, None),
        ("states", "SendTaskSuccess", {"taskToken": "a token"}, "a state machine"),
        ("states", "SendTaskFailure", {"taskToken": "another"}, None),
        ("states", "DescribeExecution", {"executionArn": "…"}, None),
        ("dynamodb", "GetItem", {"TableName": "rows"}, None),
    ],
)
def test_resource_of_a_request(
    service: str, operation: str, body: dict[str, Any], resource: str | None
) -> None:
    machines = {"a token": "a state machine"}
    assert resource_of(service, operation, body, HERE, machines.get) == resource


def test_request_without_what_it_must_have_is_left_to_the_service() -> None:
    with pytest.raises(LookupError):
        resource_of("ecs", "StopTask", {"cluster": CLUSTER}, HERE, {}.get)


@pytest.mark.parametrize(
    ("service", "body", "keys"),
    [
        ("ecs", {"cluster": "training"}, {"ecs:cluster": CLUSTER}),
        ("ecs", {"cluster": CLUSTER, "task": "abc"}, {"ecs:cluster": CLUSTER}),
        ("ecs", {"taskDefinition": "server"}, {}),
        (
            "dynamodb",
            {"TableName": "rows", "Key": {"pk": {"S": "STUDY#a"}, "sk": {"S": "x"}}},
            {"dynamodb:LeadingKeys": ["STUDY#a"]},
        ),
        (
            "dynamodb",
            {"TableName": "rows", "Item": {"pk": {"S": "SERVER#a"}}},
            {"dynamodb:LeadingKeys": ["SERVER#a"]},
        ),
        ("dynamodb", {"TableName": "nowhere", "Key": {"pk": {"S": "STUDY#a"}}}, {}),
        ("dynamodb", {"TableName": "rows", "KeyConditionExpression": "pk = :pk"}, {}),
        ("logs", {"logGroupName": "tasks"}, {}),
    ],
)
def test_condition_keys_of_a_request(service: str, body: dict[str, Any], keys: dict[str, Any]) -> None:
    assert condition_keys(service, body, HERE, {"rows": "pk"}.get) == keys
