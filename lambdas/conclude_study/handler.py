"""ConcludeStudy: the study's terminal status, written when its tasks are gone and its report is out.

Runs last. Where an experiment has not ended, tasks of it may run: the study fails, and its status is left to
sweep_tasks, which clears up after the execution. Before that nothing is run again.

Where the study failed, so does this function, and with it the execution: a redriven execution begins at the task that
failed, which a Fail state is not. Called again then, it clears what the experiments left that did not complete, and
PlanStudy plans those once more.
"""

from collections.abc import Set
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.errors import StudyFailed
from contract.table import TERMINAL, Status
from lambdas.conclude_study.checkpoints import remove_checkpoints
from lambdas.environment import ConcludeEnvironment
from lambdas.rows import ExperimentRow
from lambdas.table import ExperimentTable

logger = Logger(service="conclude_study")

CAUSE_CHARACTERS = 10_000
"""Step Functions keeps 32,768 of a cause, and of this function's comes more: escapes, and where it was raised."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, bool]:  # noqa: ARG001 - Lambda passes it
    """Conclude one study; raises StudyFailed where it failed. With `again`, prepare it to be run again.

    Both may be repeated: `again` follows from the execution, not from what the table says.
    """
    study_id = event["study_id"]
    logger.append_keys(study_id=study_id)
    environment = ConcludeEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    rows = table.experiments(study_id)
    if event["again"]:
        if running := _unended(rows, {Status.RUNNING, Status.STOPPING}):
            raise StudyFailed(
                f"{running}; sweep_tasks ends them: redrive the execution again in some minutes"
            )
        cleared = table.clear_unfinished(study_id)
        for experiment in cleared:
            remove_checkpoints(environment.checkpoint_location, experiment)
        logger.info("to be run again", experiments=[experiment.name for experiment in cleared])
        return {"again": True}
    if unended := _unended(rows, set(Status) - TERMINAL):
        raise StudyFailed(f"{unended}. {event['cause']}"[:CAUSE_CHARACTERS])
    status = Status(event["status"])
    table.end_study(study_id, status)
    logger.info("concluded", status=status)
    if status is not Status.COMPLETED:
        raise StudyFailed(event["cause"][:CAUSE_CHARACTERS])
    return {"again": False}


def _unended(rows: list[ExperimentRow], statuses: Set[Status]) -> str:
    """Which experiments have one of these statuses; empty where none has."""
    names = [row.experiment.name for row in rows if row.status in statuses]
    return f"{len(names)} of {len(rows)} experiments have not ended: {', '.join(names)}" if names else ""
