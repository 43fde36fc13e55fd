"""Invocations: a service invokes a function where the function's own policy lets it.

Runs in the emulator's process. MiniStack delivers events and log lines to functions without asking. Source: AWS Lambda
Developer Guide, "Using resource-based policies for Lambda".
"""

import logging
from collections.abc import Callable
from typing import Any

from ministack.core import iam_evaluator
from ministack.core.responses import get_account_id, get_region
from ministack.services import cloudwatch_logs, eventbridge, lambda_svc

from local.emulation.iam_requests import Place

log = logging.getLogger("invocations")


def install(note: Callable[[Any, bool], None]) -> None:
    """Check what EventBridge and CloudWatch Logs invoke; `note` is told of each decision."""
    invoke, fan_out = eventbridge._invoke_target, cloudwatch_logs._fanout_to_subscription_filters

    def may_invoke(service: str, target_arn: str, source_arn: str) -> bool:
        if ":function:" not in target_arn:
            return True  # not a function
        allowed, request = _decide(service, target_arn, source_arn)
        note(request, allowed)
        if not allowed:
            log.warning("%s may not invoke %s for %s", service, target_arn, source_arn)
        return allowed

    def invoke_target(target: Any, event: Any, rule: Any, view: Any = None) -> None:
        if may_invoke("events.amazonaws.com", target.get("Arn", ""), rule["Arn"]):
            invoke(target, event, rule, view)

    def fan_out_to_subscription_filters(group: str, stream: str, events: Any) -> None:
        # A denial holds up every filter of the group; ours have one.
        filters = (cloudwatch_logs._log_groups.get(group) or {}).get("subscriptionFilters") or {}
        source = Place(get_region(), get_account_id()).arn("logs", f"log-group:{group}:*")
        if all(may_invoke("logs.amazonaws.com", each["destinationArn"], source) for each in filters.values()):
            fan_out(group, stream, events)

    eventbridge._invoke_target = invoke_target
    cloudwatch_logs._fanout_to_subscription_filters = fan_out_to_subscription_filters


def _decide(service: str, function_arn: str, source_arn: str) -> tuple[bool, Any]:
    """Whether a function's policy lets a service invoke it, and what MiniStack's evaluator was asked."""
    request = iam_evaluator.EvalContext(
        principal_arn=service,
        principal_type="Service",
        principal_account=get_account_id(),
        action="lambda:InvokeFunction",
        resource_arn=function_arn,
        region=get_region(),
        service_context={"aws:sourcearn": source_arn, "aws:sourceaccount": get_account_id()},
    )
    policy, _ = lambda_svc.function_policy_for_arn(function_arn) or (None, None)
    decision = iam_evaluator.evaluate_resource_policy(policy, request, service).decision
    return decision == "Allow", request
