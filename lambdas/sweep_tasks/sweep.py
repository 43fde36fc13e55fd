"""The sweep of one study, in two steps: first its tasks are told to stop, then its end is written down.

Used by sweep_tasks. Every step may be repeated, by the next call or by one that runs at the same time.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import boto3
from botocore.exceptions import WaiterError

from contract.plan import preparation_group, study_of_group
from contract.table import TERMINAL, Status
from lambdas.environment import SweepEnvironment
from lambdas.rows import ExperimentRow
from lambdas.sweep_tasks.executions import MISSING, EndedExecution, Executions
from lambdas.table import ExperimentTable
from lambdas.task_logs import TaskLogs
from lambdas.tasks import Task, TaskList
from lambdas.verdict import of_this_run


@dataclass
class Sweep:
    """What sweeping needs, and how far it has come."""

    table: ExperimentTable
    tasks: TaskList
    logs: TaskLogs
    executions: Executions
    publish: Callable[[str], None]
    """Have the report of a study published, without waiting for it."""
    deadline: float
    """time.monotonic() at which no task is waited for any more."""
    quiet_seconds: float
    """Between two looks that find nothing, of an execution that has just ended."""
    stopped: int = 0
    """Tasks that were told to stop."""
    orphans: int = 0
    """Those of them that nobody else was about to stop."""

    @classmethod
    def of(cls, environment: SweepEnvironment, deadline: float) -> Self:
        """Of the deployment that the environment describes."""
        functions = boto3.client("lambda")

        def publish(study_id: str) -> None:
            functions.invoke(
                FunctionName=environment.publish_report_function,
                InvocationType="Event",
                Payload=json.dumps({"study_id": study_id}).encode(),
            )

        return cls(
            table=ExperimentTable.named(environment.table_name),
            tasks=TaskList.of(environment.cluster_arn),
            logs=TaskLogs.named(environment.log_group_name),
            executions=Executions.of(environment.state_machine_arn),
            publish=publish,
            deadline=deadline,
            quiet_seconds=environment.quiet_seconds,
        )

    def begin(self, study_id: str, running: Iterable[Task]) -> EndedExecution | None:
        """Tell those of a study's `running` tasks to stop that nobody waits for.

        Where the execution has ended these are all, and it is returned: the study is to be concluded. Where it runs
        they are those of experiments that have a verdict, and the one that prepared the data set; nothing else of such
        a study is touched. Nor are the rows of one that is seen to be redriven meanwhile.
        """
        execution = self.executions.ended(study_id)
        if execution is not None and not execution.is_certain(
            self.table.study(study_id) if execution.status == MISSING else None
        ):
            return None
        if execution is None:
            self._stop_leftovers(study_id, list(running))
            return None
        try:
            # First the rows: an experiment that is marked starts no further task.
            rows = self.table.experiments(study_id)
            if self._runs_again(study_id):
                return None
            # Not one that had ended by then: it is planned anew as soon as the execution is redriven.
            for row in rows:
                if row.status not in TERMINAL:
                    self.table.begin_stop(row.experiment)
        finally:
            # Whatever became of the rows: no task outlives its execution.
            self._stop(running, execution.reason, orphans=execution.is_long_over)
        return execution

    def conclude(self, study_id: str, execution: EndedExecution, *, is_open: bool) -> bool:
        """Write how a study of an ended execution ended, once none of its tasks is left, and have it reported.

        `is_open`: it was among the open studies. Returns whether it is done; what is not is for the next call. A study
        that was redriven since `begin` is left as it is; one that failed with experiments unfinished is reported anew.
        """
        # Read before the execution is looked at once more: redriven after that, they are planned anew.
        study, rows = self.table.study(study_id), self.table.experiments(study_id)
        if self._runs_again(study_id):
            return False
        if study is None:
            return True
        if not execution.is_of(study):
            execution = EndedExecution(MISSING)
        unfinished = [row for row in rows if row.status not in TERMINAL]
        corrected = False
        if unfinished:
            ended = self._end_tasks(study_id, execution)
            if ended is None or self._runs_again(study_id):
                return False
            corrected = self._abort(study_id, unfinished, execution, ended)
        aborted = study.status not in TERMINAL and self.table.end_study(
            study_id, Status.ABORTED, execution.told
        )
        # Something was aborted before, and the study is open still: whoever wrote so did not live to have it reported.
        unreported = is_open and Status.ABORTED in {study.status, *(row.status for row in rows)}
        if aborted or corrected or unreported:
            self.publish(study_id)
        self.table.close(study_id)
        return True

    def _runs_again(self, study_id: str) -> bool:
        """Whether the execution, which had ended, was redriven while other studies, or its tasks, were waited for."""
        return self.executions.ended(study_id) is None

    def _end_tasks(self, study_id: str, execution: EndedExecution) -> list[Task] | None:
        """Every task of the study, once all have ended; None where that is not soon enough."""
        patience = self.deadline - time.monotonic()
        if patience <= 0:
            return None
        try:
            return self.tasks.end(
                lambda task: study_of_group(task.group) == study_id,
                _named(execution.reason),
                patience_seconds=patience,
                quiet_seconds=0 if execution.is_long_over else self.quiet_seconds,
            )
        except WaiterError:
            return None

    def _abort(
        self, study_id: str, unfinished: list[ExperimentRow], execution: EndedExecution, ended: list[Task]
    ) -> bool:
        """Abort experiments whose tasks have ended; returns whether any had no verdict still."""
        written = False
        for row in unfinished:
            group = row.experiment.task_group
            outcomes = of_this_run((task.outcome for task in ended if task.group == group), row.started_at)
            records = self.table.records(study_id, row.experiment.name) if outcomes else []
            written |= self.table.abort(row.experiment, execution.told, self.logs.attached(outcomes, records))
        return written

    def _stop_leftovers(self, study_id: str, running: list[Task]) -> None:
        """Of a running execution: the tasks of experiments that have a verdict, or of a preparation that is over."""
        if not running:
            return
        rows = self.table.experiments(study_id)
        judged = {row.experiment.task_group for row in rows if row.status in TERMINAL}
        self._stop([task for task in running if task.group in judged], "the experiment has ended")
        statuses = {row.status for row in rows}
        # Of a redriven study some have completed when the data set is prepared again.
        if Status.RUNNING in statuses or Status.PLANNED not in statuses:
            preparation = preparation_group(study_id)
            self._stop(
                [task for task in running if task.group == preparation], "the data set is waited for no more"
            )

    def _stop(self, tasks: Iterable[Task], reason: str, *, orphans: bool = True) -> None:
        tasks = list(tasks)
        self.tasks.stop(tasks, _named(reason))
        self.stopped += len(tasks)
        self.orphans += len(tasks) if orphans else 0


def _named(reason: str) -> str:
    return f"Lockstep: {reason}"
