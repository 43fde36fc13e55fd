"""What a request is to IAM: the resource and the condition keys that MiniStack does not see in it.

Pure. Source: Service Authorization Reference, actions, resources and condition keys of Amazon ECS, CloudWatch Logs,
DynamoDB and Step Functions.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

ANY = "*"
"""What an action that knows no resource is checked on."""

Body = Mapping[str, Any]
"""The JSON body of a request."""


class Place(NamedTuple):
    """Where a request goes."""

    region: str
    account: str

    def arn(self, service: str, path: str) -> str:
        """The ARN of a resource of this place, from its kind and name."""
        return f"arn:aws:{service}:{self.region}:{self.account}:{path}"


def resource_of(
    service: str, operation: str, body: Body, place: Place, state_machine_of: Callable[[str], str | None]
) -> str | None:
    """ARN of what a request acts on, or None where MiniStack's own answer is AWS's too.

    `state_machine_of`: the state machine that a task token belongs to, if it is known. Raises LookupError where the
    request lacks what it must have.
    """
    match service, operation:
        case "ecs", _:
            return _ecs_resource(operation, body, place)
        case "logs", "FilterLogEvents":
            # With ":*" for everything but tags. Source: CloudWatch Logs API Reference, LogGroup.
            return place.arn("logs", f"log-group:{body['logGroupName']}:*")
        case "logs", "GetLogEvents":
            return place.arn("logs", f"log-group:{body['logGroupName']}:log-stream:{body['logStreamName']}")
        case "states", "SendTaskSuccess" | "SendTaskFailure" | "SendTaskHeartbeat":
            return state_machine_of(body["taskToken"])
    return None


def condition_keys(
    service: str, body: Body, place: Place, partition_key_of: Callable[[str], str | None]
) -> dict[str, Any]:
    """Condition keys of a request that MiniStack does not know.

    `partition_key_of`: the name of a table's partition key, None where there is no such table. The partitions of
    queries and of requests for several rows are not told: no grant of ours asks for them.
    """
    if service == "ecs" and (cluster := body.get("cluster")):
        return {"ecs:cluster": _named("cluster/", cluster, place)}
    row = (body.get("Key") or body.get("Item")) if service == "dynamodb" else None
    if row and (value := row.get(partition_key_of(body["TableName"]))):
        return {"dynamodb:LeadingKeys": list(value.values())}
    return {}


def _ecs_resource(operation: str, body: Body, place: Place) -> str | None:
    """Of several tasks the first stands for all: they are of one cluster, and tasks are granted by cluster."""
    tasks = f"task/{body.get('cluster', 'default').rsplit('/', 1)[-1]}/"
    match operation:
        case "RunTask":
            return _named("task-definition/", body["taskDefinition"], place)
        case "StopTask":
            return _named(tasks, body["task"], place)
        case "DescribeTasks":
            return _named(tasks, body["tasks"][0], place)
        case "ListTasks":
            return ANY
    return None


def _named(kind: str, name: str, place: Place) -> str:
    """The ARN of what a request names by its name or by its ARN."""
    return name if name.startswith("arn:") else place.arn("ecs", f"{kind}{name}")
