"""JudgeExperiment: how the tasks ended in, the experiment's status out.

Runs after every experiment, however it went. The status is written after clean-up: when the row says how it
ended, none of its tasks is left.
"""

from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from lambdas.environment import ClusterEnvironment
from lambdas.table import ExperimentTable
from lambdas.task_logs import TaskLogs
from lambdas.tasks import TaskList
from lambdas.verdict import judge, of_this_run

logger = Logger(service="judge_experiment")


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, str]:  # noqa: ARG001 - Lambda passes it
    """Judge one experiment by exit codes and by what its tasks have said so far."""
    study_id, name, error = event["study_id"], event["experiment"], event["error"]
    logger.append_keys(study_id=study_id, experiment=name)
    environment = ClusterEnvironment.read()
    table = ExperimentTable.named(environment.table_name)
    row = table.experiment(study_id, name)
    experiment = row.experiment
    of_its_group = TaskList.of(environment.cluster_arn).end_group(
        experiment.task_group,
        "Lockstep: the experiment has ended",
        # Without an error every branch has come to its end; one that was cancelled may have been starting tasks.
        quiet_seconds=environment.quiet_seconds if error else 0,
    )
    outcomes = of_this_run(of_its_group, row.started_at)
    records = table.records(study_id, name)
    verdict = judge(experiment, outcomes, records, error)
    tasks = TaskLogs.named(environment.log_group_name).attached(outcomes, records)
    table.settle(experiment, verdict, tasks=tasks, error=error)
    logger.info("judged", status=verdict.status, cause=verdict.cause)
    return {"name": name, "status": verdict.status}
