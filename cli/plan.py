"""Plan a study: ask the deployment, or reckon here, and show what comes of it.

Used by the verbs `plan` and `run`; starts nothing. A deployment plans with its own prices, quota and history; here only
what the document says is known.
"""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.deployment import Deployment
from contract.errors import LockstepError, StudyRefused
from contract.forecast import Forecast, Terms, forecast
from contract.plan import plan
from contract.prices import dollars
from contract.quota import Quota
from contract.study import Study
from lambdas.plan_study.launch import launch_items

PLAN_ID = "plan"
"""In place of a study's id: nothing is written under it."""


class PlanNotMade(LockstepError):
    """The deployment has a plan_study that does not answer, or none."""


def plan_there(deployment: Deployment, document: dict[str, Any]) -> Forecast:
    """What the deployment makes of a study, as a dry run. Raises StudyRefused and PlanNotMade."""
    if not deployment.plan_function_name:
        raise PlanNotMade(f"the {deployment.hint} is too old to plan without starting; deploy it again")
    event = {
        "study_id": PLAN_ID,
        "execution_arn": "",
        "execution_started_at": "",
        "study": {**document, "dry_run": True},
    }
    answer = deployment.session.client("lambda").invoke(
        FunctionName=deployment.plan_function_name, Payload=json.dumps(event)
    )
    said = json.loads(answer["Payload"].read())
    if "FunctionError" in answer:
        raise PlanNotMade(f"plan_study on the {deployment.hint} failed: {said.get('errorMessage', said)}")
    if said["refusal"]:
        raise StudyRefused([line.removeprefix("  - ") for line in said["refusal"].splitlines()[1:]])
    return Forecast.model_validate(said["plan"])


def plan_here(study: Study, *, embedded: bool, notes: Iterable[str]) -> Forecast:
    """What a study will take as far as the document tells, without any deployment. Raises StudyRefused."""
    experiments = plan(study, PLAN_ID)
    launch_items(experiments)
    terms = Terms.embedded() if embedded else Terms.on_aws()
    return forecast(study, experiments, terms, notes=notes)


def show(expected: Forecast, console: Console) -> None:
    """The matrix with durations and cost, then quota, total and what is to be said of them."""
    console.print(_matrix(expected))
    console.print()
    for label, text in _facts(expected):
        console.print(f"{label:<9} {text}", markup=False, highlight=False, soft_wrap=True)
    for note in expected.notes:
        console.print(f"note      {note}", markup=False, highlight=False, soft_wrap=True)
    for problem in expected.problems:
        console.print(f"refused   {problem}", markup=False, highlight=False, soft_wrap=True)


def _matrix(expected: Forecast) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("Experiment", no_wrap=True)
    table.add_column("Mode")
    for heading in ("Workers", "vCPUs", "Training", "Task seconds", "Cost"):
        table.add_column(heading, justify="right")
    table.add_column("Estimate from")
    for each in expected.experiments:
        demand = each.demand
        table.add_row(
            each.name,
            each.mode.value,
            str(each.workers),
            f"{demand.on_demand_vcpus + demand.spot_vcpus:g}",
            _duration(each.training_seconds),
            f"{each.task_seconds:,.0f}",
            dollars(each.cost.total),
            each.basis.value,
        )
    return table


def _facts(expected: Forecast) -> Iterable[tuple[str, str]]:
    parallel = expected.max_parallel_experiments
    yield "duration", f"about {_duration(expected.duration_seconds)}, {parallel} at a time"
    yield "at once", f"at most {expected.peak_tasks} tasks with {expected.peak_vcpus:g} vCPUs"
    for quota in expected.quotas:
        yield "quota", _quota(quota)
    yield "cost", f"{dollars(expected.total_usd)}: {expected.cost.breakdown()}"
    processors = "Arm" if expected.architecture == "arm64" else "x86"
    prices = f"{expected.prices.region}, {expected.prices.date}, {processors}"
    yield "prices", f"{prices}; nothing is paid on the embedded cloud" if expected.hypothetical else prices
    for text in dict.fromkeys(f"{each.basis}: {each.note}" for each in expected.experiments):
        yield "estimate", text


def _quota(quota: Quota) -> str:
    used = f", {quota.in_use:g} in use" if quota.in_use else ""
    return f"{quota.vcpus:g} {quota.capacity} vCPUs ({quota.source}){used}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
