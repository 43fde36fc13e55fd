"""PlanStudy: a study document in, the items of the RunExperiments Map out.

Runs as the first state. Knows nothing of ECS; starts nothing. Idempotent: rows that are there stay,
what has completed is not run again where the execution is redriven, and rows of another
execution of the same name are not taken over.
"""

from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.errors import StudyRefused
from contract.plan import plan
from contract.study import parse_study
from lambdas.environment import PlanEnvironment
from lambdas.plan_study.launch import launch_items
from lambdas.table import Execution, ExperimentTable

logger = Logger(service="plan_study")


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda passes it
    """Plan one study, or refuse it: then `refusal` names every problem and nothing was written."""
    study_id = event["study_id"]
    logger.append_keys(study_id=study_id)
    execution = Execution(event["execution_arn"], str(event["execution_started_at"]))
    try:
        study = parse_study(event["study"])
        experiments = plan(study, study_id)
        items = launch_items(experiments)
        table = ExperimentTable.named(PlanEnvironment.read().table_name)
        table.put_plan(study_id, event["study"], experiments, execution)
        completed = table.completed(study_id)
    except StudyRefused as refusal:
        logger.info("refused", problems=refusal.problems)
        return {"refusal": str(refusal), "experiments": []}
    logger.info("planned", experiments=len(experiments))
    return {
        "refusal": "",
        "experiments": [item for item in items if item["name"] not in completed],
        "max_parallel_experiments": study.max_parallel_experiments,
    }
