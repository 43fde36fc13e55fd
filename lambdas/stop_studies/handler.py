"""StopStudies: before the stack is deleted, no study runs and no task.

A custom resource of the stack, which CloudFormation deletes before everything that studies need. A state machine
ends its executions only when they next change state, and a cluster with tasks cannot be deleted. Answers in any
case, and in time: with a failure that names what is left, where something is; deleting again tries again.
"""

import json
import time
import urllib.request
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from lambdas.environment import StopEnvironment
from lambdas.stop_studies.stopping import stop_all

logger = Logger(service="stop_studies")

RESERVE_SECONDS = 30.0
"""Of the function's time: kept for the answer."""

MAX_REASON = 2000
"""CloudFormation takes an answer of at most 4096 bytes. Source: CloudFormation User Guide, crpg-ref."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> None:
    """Answer one request of CloudFormation. Creation and update have nothing to do."""
    reason = ""
    try:
        if event["RequestType"] == "Delete":
            patience = context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
            reason = stop_all(StopEnvironment.read(), time.monotonic() + patience)
    except Exception as error:
        logger.exception("not stopped")
        reason = f"{type(error).__name__}: {error}"
    _answer(event, reason)


def _answer(event: dict[str, Any], failure: str) -> None:
    """Put the answer where CloudFormation waits for it. Source: CloudFormation User Guide, crpg-ref-responses."""
    answer = {
        "Status": "FAILED" if failure else "SUCCESS",
        "Reason": failure[:MAX_REASON] or "no study and no task is left",
        # One that changed would be taken for another resource, and the first one be deleted.
        "PhysicalResourceId": event.get("PhysicalResourceId") or "stop-studies",
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = urllib.request.Request(  # noqa: S310 - the address is CloudFormation's
        event["ResponseURL"],
        data=json.dumps(answer).encode(),
        method="PUT",
        # The signature of the address covers an empty type.
        headers={"Content-Type": ""},
    )
    with urllib.request.urlopen(request, timeout=RESERVE_SECONDS / 2):  # noqa: S310 - as above
        logger.info("answered", status=answer["Status"], reason=answer["Reason"])
