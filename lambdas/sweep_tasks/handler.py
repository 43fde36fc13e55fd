"""SweepTasks: no task outlives its execution or its experiment's verdict, and no study stays unfinished.

Runs on the status changes of executions that ended badly, and on a schedule. Step Functions cancels the tasks
of a stopped execution by best effort; this is the guarantee. Idempotent, and may run twice at once; what it has
no time for is left to the next call. What fails with one study or task keeps no other from its turn, and fails
the call in the end, so that it is made again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.plan import study_of_group
from contract.watching import TASKS_SWEPT
from lambdas.environment import SweepEnvironment
from lambdas.metrics import emit
from lambdas.sweep_tasks.executions import EndedExecution
from lambdas.sweep_tasks.sweep import Sweep
from lambdas.tasks import Task

logger = Logger(service="sweep_tasks")

RESERVE_SECONDS = 30.0
"""Of the function's time: kept for writing down what has ended."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """Sweep the study of a status-change event, every open study, and every one that has tasks.

    Returns how many tasks were told to stop, and how many studies are left to the next call. Raises
    ExceptionGroup of what went wrong, after every study had its turn.
    """
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    environment = SweepEnvironment.read()
    sweep = Sweep.of(environment, deadline)
    by_study = _by_study(sweep.tasks.running())
    failures: list[Exception] = []
    open_studies = set[str]()
    with _noted(failures):
        open_studies.update(sweep.table.open_studies())
    named = {event.get("detail", {}).get("name")} - {None}
    ended: dict[str, EndedExecution] = {}
    # All are told to stop before any is waited for: they end side by side.
    for study_id in sorted(by_study.keys() | open_studies | named):
        with _noted(failures, study_id):
            if execution := sweep.begin(study_id, by_study.get(study_id, [])):
                ended[study_id] = execution
    left = 0
    for study_id, execution in ended.items():
        with _noted(failures, study_id):
            done = sweep.conclude(study_id, execution, is_open=study_id in open_studies)
            logger.info("swept", study_id=study_id, status=execution.status, done=done)
            left += not done
    if sweep.orphans:  # a number that is sent costs for its hour, one that is not counts as 0
        emit(environment.stack_name, [(TASKS_SWEPT, float(sweep.orphans))])
    if failures:
        raise ExceptionGroup(f"not everything could be swept: {len(failures)} failed", failures)
    return {"stopped": sweep.stopped, "left": left}


@contextmanager
def _noted(failures: list[Exception], study_id: str | None = None) -> Iterator[None]:
    """What fails here is told in the end."""
    try:
        yield
    except Exception as error:
        logger.exception("not swept", study_id=study_id)
        failures.append(error)


def _by_study(running: list[Task]) -> dict[str, list[Task]]:
    found: dict[str, list[Task]] = {}
    for task in running:
        if study_id := study_of_group(task.group):
            found.setdefault(study_id, []).append(task)
    return found
