"""PlanStudy: a study document in, the items of the RunExperiments Map out.

Runs as the first state. Knows nothing of ECS; starts nothing. Idempotent: rows that are there stay,
what has completed is not run again where the execution is redriven, and rows of another
execution of the same name are not taken over. A dry run leaves no row.
"""

from collections.abc import Sequence
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.errors import StudyRefused
from contract.forecast import Forecast, forecast
from contract.history import fingerprint
from contract.plan import Experiment, plan
from contract.preparation import to_prepare
from contract.study import Study, check_study_id, parse_study
from lambdas.environment import PlanEnvironment
from lambdas.history import History
from lambdas.plan_study.launch import VAIN_STARTS, launch_items
from lambdas.plan_study.quotas import read_quotas
from lambdas.rows import Execution
from lambdas.table import ExperimentTable

logger = Logger(service="plan_study")


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda passes it
    """Plan one study, or refuse it: then `refusal` names every problem and nothing was written.

    Of a dry run the answer holds `plan`, a Forecast, with what would have been refused among its problems. A redriven
    study keeps its plan, and runs as many experiments at a time as the quota bears by now. It is not refused: an
    execution that was could not be redriven any more.
    """
    study_id = event["study_id"]
    logger.append_keys(study_id=study_id)
    execution = Execution(event["execution_arn"], str(event["execution_started_at"]))
    environment = PlanEnvironment.read()
    try:
        check_study_id(study_id)
        study = parse_study(event["study"])
        experiments = plan(study, study_id, environment.datasets_location)
        items = launch_items(experiments)
        table = ExperimentTable.named(environment.table_name)
        if study.dry_run:
            expected = _forecast(study, experiments, environment)
            logger.info("planned", experiments=len(experiments), dry_run=True)
            return {"refusal": "", "experiments": [], "plan": expected.model_dump(mode="json")}
        before = _planned_before(table, study_id, execution)
        expected = before or _forecast(study, experiments, environment)
        if expected.problems:
            raise StudyRefused(expected.problems)
        table.put_plan(study_id, event["study"], experiments, execution, expected)
        completed = table.completed(study_id)
        at_a_time = expected.max_parallel_experiments
        # An execution that began before this was deployed does not say so.
        if before and event.get("redrives", 0):
            at_a_time = _forecast(study, experiments, environment).max_parallel_experiments
    except StudyRefused as refusal:
        logger.info("refused", problems=refusal.problems)
        return {"refusal": str(refusal), "experiments": []}
    logger.info("planned", experiments=len(experiments), usd=expected.total_usd, notes=expected.notes)
    return {
        "refusal": "",
        "dataset": to_prepare(study.training, experiments[0].training),
        "experiments": [item for item in items if item["name"] not in completed],
        "vain_starts": VAIN_STARTS,
        "max_parallel_experiments": at_a_time,
    }


def _planned_before(table: ExperimentTable, study_id: str, execution: Execution) -> Forecast | None:
    """What an earlier call of the same execution has planned: the state is retried where its answer was lost."""
    row = table.study(study_id)
    return row.forecast if row is not None and row.execution == execution else None


def _forecast(study: Study, experiments: Sequence[Experiment], environment: PlanEnvironment) -> Forecast:
    terms = environment.terms
    quotas, notes = read_quotas(fixed_vcpus=environment.vcpu_quota, spot=study.worker.spot)
    history = History.named(environment.table_name)
    known = {
        each.name: measured
        for each in experiments
        if each.compute.mode == "real"
        and (measured := history.measured(fingerprint(each, terms.architecture))) is not None
    }
    return forecast(study, experiments, terms, quotas=quotas, history=known, notes=notes)
