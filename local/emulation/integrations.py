"""Integrations: what a state machine does, it does with its role.

Runs in the emulator's process. MiniStack runs service integrations without asking; here each is held against the
policies of the state machine's role first. Source: Step Functions Developer Guide, "How Step Functions generates IAM
policies for integrated services".
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from ministack.core import iam_actions, iam_evaluator
from ministack.core.responses import get_account_id, get_region
from ministack.services import ecs, stepfunctions

from local.emulation.role_sessions import session_of

INTEGRATION = re.compile(r"arn:aws:states:::(?P<sdk>aws-sdk:)?(?P<service>\w+):(?P<action>\w+)(\..*)?")

DENIALS = {
    "lambda": "Lambda.AWSLambdaException",
    "ecs": "ECS.AccessDeniedException",
    "dynamodb": "DynamoDB.AmazonDynamoDBException",
}
"""The error of a state whose optimized integration was denied."""

_execution: ContextVar[Mapping[str, Any] | None] = ContextVar("execution", default=None)
"""The execution whose state runs in this thread."""

_state_machines: dict[str, str] = {}
"""Task token → state machine. AWS's tokens say it themselves."""


class Request(NamedTuple):
    """One request of an integration, as the evaluator takes it."""

    service: str
    action: str
    resource: str
    context: Mapping[str, Any]


def install() -> None:
    """Check every integration of every execution."""
    execute, invoke = stepfunctions._execute_task, stepfunctions._invoke_resource
    call_back, distribute = stepfunctions._invoke_with_callback, stepfunctions._run_distributed_map

    def execute_task(state: Any, raw_input: Any, execution: Any, context: Any) -> Any:
        before = _execution.set(execution)
        try:
            return execute(state, raw_input, execution, context)
        finally:
            _execution.reset(before)

    def invoke_resource(resource: str, arguments: Any) -> Any:
        _authorize(resource, arguments)
        return invoke(resource, arguments)

    def invoke_with_callback(resource: str, arguments: Any, token: str, state: Any) -> Any:
        if execution := _execution.get():
            _state_machines[token] = _machine_of(execution)
        _authorize(resource, arguments)
        return call_back(resource, arguments, token, state)

    def run_distributed_map(
        state: Any, raw_input: Any, effective: Any, processor: Any, *of_execution: Any
    ) -> Any:
        execution, _ = of_execution
        own = Request("states", "states:StartExecution", _machine_of(execution), {})
        _check(execution, own, "Sfn.AccessDeniedException")
        return distribute(state, raw_input, effective, processor, *of_execution)

    stepfunctions._run_distributed_map = run_distributed_map
    stepfunctions._execute_task = execute_task
    stepfunctions._invoke_resource = invoke_resource
    stepfunctions._invoke_with_callback = invoke_with_callback


def state_machine_of(token: str) -> str | None:
    """The state machine whose task a token stands for, also after it was answered."""
    return _state_machines.get(token)


def _machine_of(execution: Mapping[str, Any]) -> str:
    """Of the state machine itself, also where the execution is one of a distributed Map."""
    return str(execution["stateMachineArn"]).partition("/")[0]


def _authorize(resource: str, arguments: Mapping[str, Any]) -> None:
    """Raise the state's error unless the role of its state machine may do what its integration does."""
    execution = _execution.get()
    if execution is None:  # a single state under test: it has no role
        return
    integration = INTEGRATION.fullmatch(resource)
    if integration is None or not _is_known(integration):
        raise stepfunctions._ExecutionError("States.Runtime", f"no check of permissions knows {resource}")
    for request in _requests(integration, arguments):
        _check(execution, request, _error(integration))


def _check(execution: Mapping[str, Any], request: Request, error: str) -> None:
    """Raise `error` unless the role of an execution's state machine may make a request."""
    role = stepfunctions._state_machines[_machine_of(execution)]["roleArn"]
    key = session_of(role, execution["name"]).access_key
    service, action, target, context = request
    denied = iam_evaluator.enforce(key, action, service, get_region(), target, context)
    if denied is not None:
        explicit = denied.decision == "Deny"
        cause = iam_actions.identity_denial_message(action, denied.principal_arn, target, explicit)
        raise stepfunctions._ExecutionError(error, cause)


def _is_known(integration: re.Match[str]) -> bool:
    """Whether its request can be told: a function's, or one of a service that takes JSON by target."""
    service = integration["service"]
    return service == "lambda" or "target_prefix" in stepfunctions._AWS_SDK_SERVICE_MAP.get(service, {})


def _error(integration: re.Match[str]) -> str:
    service = integration["service"]
    if not integration["sdk"] and service in DENIALS:
        return DENIALS[service]
    return str(stepfunctions._prefix_sdk_error(service, "AccessDeniedException"))


def _requests(integration: re.Match[str], arguments: Mapping[str, Any]) -> Iterator[Request]:
    """What IAM is asked for one integration."""
    service, action = integration["service"], integration["action"]
    if service == "lambda":
        yield Request("lambda", "lambda:InvokeFunction", arguments["FunctionName"], {})
        return
    known = stepfunctions._AWS_SDK_SERVICE_MAP[service]
    key, operation = known.get("service_key", service), action[0].upper() + action[1:]
    body = json.dumps(stepfunctions._sdk_json_params(known, key, operation, arguments)).encode()
    request: tuple[Any, ...] = (
        "POST",
        "/",
        {"x-amz-target": f"{known['target_prefix']}.{operation}"},
        body,
        {},
    )
    name = iam_actions.extract_iam_action(key, *request)
    target = iam_actions.extract_resource_arn(key, *request, get_region(), get_account_id())
    context = iam_actions.request_tag_context(key, name, body, {})
    if key == "dynamodb":
        context |= iam_actions.dynamodb_service_context(body)
    yield Request(key, name, target, context)
    if name == "ecs:RunTask":
        yield from _beside_run_task(arguments, context)


def _beside_run_task(arguments: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[Request]:
    """Source: Amazon ECS Developer Guide, permissions to tag resources on creation, and to pass a role."""
    if arguments.get("Tags"):
        task = f"{arguments['Cluster'].replace(':cluster/', ':task/')}/new"
        yield Request("ecs", "ecs:TagResource", task, {**context, "ecs:CreateAction": "RunTask"})
    definition = ecs._task_defs.get(ecs._resolve_td_key(arguments["TaskDefinition"])) or {}
    for role in filter(None, map(definition.get, ("executionRoleArn", "taskRoleArn"))):
        yield Request("iam", "iam:PassRole", role, {"iam:PassedToService": "ecs-tasks.amazonaws.com"})
