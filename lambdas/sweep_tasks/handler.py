"""SweepTasks: stop the tasks of executions that have ended, and say so in their rows.

Runs on the status changes of executions that ended badly, and on a schedule. Step Functions cancels the tasks
of a stopped execution by best effort; this is the guarantee. Idempotent.
"""

from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.plan import study_of_group
from contract.table import Status
from lambdas.environment import SweepEnvironment
from lambdas.table import ExperimentTable
from lambdas.tasks import Task, TaskList

logger = Logger(service="sweep_tasks")


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:  # noqa: ARG001 - Lambda passes it
    """Sweep the study of a status-change event, and every other study that has tasks but no execution."""
    environment = SweepEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    tasks = TaskList.of(environment.cluster_arn)
    by_study = _by_study(tasks.running())
    ended_study = event.get("detail", {}).get("name")
    swept = 0
    for study_id in by_study.keys() | ({ended_study} - {None}):
        status = _execution_status(environment.state_machine_arn, study_id)
        if status == "RUNNING":
            continue
        reason = f"the execution of the study has ended: {status}"
        orphans = by_study.get(study_id, [])
        _mark_aborted(table, study_id, reason)
        tasks.stop(orphans, f"Lockstep: {reason}")
        swept += len(orphans)
        logger.info("swept", study_id=study_id, execution_status=status, tasks=len(orphans))
    return {"swept": swept}


def _by_study(running: list[Task]) -> dict[str, list[Task]]:
    found: dict[str, list[Task]] = {}
    for task in running:
        if study_id := study_of_group(task.group):
            found.setdefault(study_id, []).append(task)
    return found


def _execution_status(state_machine_arn: str, study_id: str) -> str:
    """The execution's status; MISSING where Step Functions knows none of that name."""
    client = boto3.client("stepfunctions")
    execution_arn = f"{state_machine_arn.replace(':stateMachine:', ':execution:')}:{study_id}"
    try:
        return client.describe_execution(executionArn=execution_arn)["status"]
    except client.exceptions.ExecutionDoesNotExist:
        return "MISSING"


def _mark_aborted(table: ExperimentTable, study_id: str, reason: str) -> None:
    """First the rows, then the tasks: an experiment that was marked starts no further task."""
    for row in table.experiments(study_id):
        table.abort(row.experiment, reason)
    table.end_study(study_id, Status.ABORTED)
