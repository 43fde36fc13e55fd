"""Stop every execution of the state machine and every task of the cluster, and wait until none is left.

Used by stop_studies.
"""

import time
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError, WaiterError

from lambdas.environment import StopEnvironment
from lambdas.tasks import TaskList

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

ERROR, CAUSE = "StackDeleted", "the stack is being deleted"


def stop_all(environment: StopEnvironment, deadline: float) -> str:
    """Empty once nothing runs; else what was left at `deadline`, as time.monotonic() tells it."""
    states = boto3.client("stepfunctions")
    tasks = TaskList.of(environment.cluster_arn)
    stopped = _stop_executions(states, environment.state_machine_arn)
    while True:
        # After the executions: an experiment of one that was stopped may start a task until it next changes state.
        patience = deadline - environment.quiet_seconds - time.monotonic()
        try:
            tasks.end(
                lambda _: True,
                f"Lockstep: {CAUSE}",
                patience_seconds=patience,
                quiet_seconds=environment.quiet_seconds if patience > 0 else 0,
            )
        except WaiterError:
            return f"{len(tasks.running())} tasks run and others have not ended yet; delete the stack again"
        if patience <= 0:
            return _not_quiet(stopped)
        stopped = _stop_executions(states, environment.state_machine_arn)
        if not stopped:
            return ""


def _not_quiet(stopped: list[str]) -> str:
    if stopped:
        return f"studies are still being started: {', '.join(stopped)}; delete the stack again"
    return "no time was left to see that no task is started any more; delete the stack again"


def _stop_executions(states: "SFNClient", state_machine_arn: str) -> list[str]:
    """Stop those that run; returns their names."""
    pages = states.get_paginator("list_executions").paginate(
        stateMachineArn=state_machine_arn, statusFilter="RUNNING"
    )
    running = [execution for page in pages for execution in page["executions"]]
    for execution in running:
        try:
            states.stop_execution(executionArn=execution["executionArn"], error=ERROR, cause=CAUSE)
        except ClientError as error:
            # One that ended meanwhile is no error.
            if error.response["Error"]["Code"] not in {"ExecutionDoesNotExist", "ValidationException"}:
                raise
    return [execution["name"] for execution in running]
