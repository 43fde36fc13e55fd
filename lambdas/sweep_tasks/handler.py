"""SweepTasks: stop the tasks of executions that have ended, and say so in their rows.

Runs on the status changes of executions that ended badly, and on a schedule. Step Functions cancels the tasks
of a stopped execution by best effort; this is the guarantee. Idempotent; what fails with one study or task keeps
no other from its turn, and fails the call in the end, so that it is made again.
"""

from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.plan import study_of_group
from contract.table import Status
from contract.watching import TASKS_SWEPT
from lambdas.environment import SweepEnvironment
from lambdas.metrics import emit
from lambdas.table import ExperimentTable
from lambdas.tasks import Task, TaskList

logger = Logger(service="sweep_tasks")


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:  # noqa: ARG001 - Lambda passes it
    """Sweep the study of a status-change event, and every other study that has tasks but no execution.

    Raises ExceptionGroup of what went wrong, after every study had its turn.
    """
    environment = SweepEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    tasks = TaskList.of(environment.cluster_arn)
    by_study = _by_study(tasks.running())
    ended_study = event.get("detail", {}).get("name")
    swept, failures = 0, list[Exception]()
    for study_id in sorted(by_study.keys() | ({ended_study} - {None})):
        try:
            status = _execution_status(environment.state_machine_arn, study_id)
            if status != "RUNNING":
                orphans = by_study.get(study_id, [])
                _sweep(table, tasks, study_id, orphans, f"the execution of the study has ended: {status}")
                swept += len(orphans)
        except Exception as error:
            logger.exception("not swept", study_id=study_id)
            failures.append(error)
    if swept:  # a number that is sent costs for its hour, one that is not counts as 0
        emit(environment.stack_name, [(TASKS_SWEPT, float(swept))])
    if failures:
        studies = "study" if len(failures) == 1 else "studies"
        raise ExceptionGroup(f"{len(failures)} {studies} could not be swept", failures)
    return {"swept": swept}


def _sweep(table: ExperimentTable, tasks: TaskList, study_id: str, orphans: list[Task], reason: str) -> None:
    """First the rows, then the tasks: an experiment that was marked starts no further task."""
    try:
        _mark_aborted(table, study_id, reason)
    finally:
        # Whatever became of the rows: no task outlives its execution.
        tasks.stop(orphans, f"Lockstep: {reason}")
    logger.info("swept", study_id=study_id, reason=reason, tasks=len(orphans))


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
    for row in table.experiments(study_id):
        table.abort(row.experiment, reason)
    table.end_study(study_id, Status.ABORTED)
