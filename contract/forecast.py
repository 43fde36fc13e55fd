"""Forecast: what a study will take before it takes it: durations, cost, and how much of it runs at once.

Pure. Made by PlanStudy and by the command line, kept in the study's row, set beside what happened by the report.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from contract.aggregation import Mode
from contract.cost import Cost, records_of, services_of_experiment, services_of_study, task_cost
from contract.duration import DRAWS_AT_MOST, EMBEDDED, FARGATE, Basis, Duration, Overheads, duration_of
from contract.fargate import CPU_UNITS_OF_A_VCPU
from contract.history import Measured
from contract.plan import Experiment
from contract.prices import US_EAST_1, Architecture, Prices, dollars
from contract.quota import LAUNCH_BURST, Demand, Quota, fitting, quota_problems
from contract.study import Study, duration_problems

STUDY_SECONDS_ON_AWS: Final = 180.0
"""Planning, waiting for records on their way, drawing the report; a minute or two more than the experiments take."""

STUDY_SECONDS_EMBEDDED: Final = 8.0


@dataclass(frozen=True)
class Terms:
    """Where a study would run, and at what prices."""

    prices: Prices
    architecture: Architecture
    overheads: Overheads
    study_seconds: float
    hypothetical: bool
    """Nobody asks for the money: it runs on one machine, and is priced as if it ran on AWS."""
    region: str = ""
    """Where it runs; empty where that is not known."""
    public_ipv4: bool = True

    @classmethod
    def on_aws(
        cls, prices: Prices = US_EAST_1, architecture: Architecture = "x86_64", region: str = ""
    ) -> Self:
        """In an account of somebody's."""
        return cls(prices, architecture, FARGATE, STUDY_SECONDS_ON_AWS, hypothetical=False, region=region)

    @classmethod
    def embedded(cls, prices: Prices = US_EAST_1, architecture: Architecture = "x86_64") -> Self:
        """On the embedded cloud."""
        return cls(prices, architecture, EMBEDDED, STUDY_SECONDS_EMBEDDED, hypothetical=True)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExperimentForecast(_Part):
    """What one experiment will take."""

    name: str
    mode: Mode
    workers: int
    servers: int
    basis: Basis
    note: str
    """What the durations rest on, in words."""
    training_seconds: float
    server_seconds: float
    """Of one server's task."""
    worker_seconds: float
    """Of one worker's task."""
    task_seconds: float
    """Of all its tasks."""
    demand: Demand
    cost: Cost


class Forecast(_Part):
    """What a whole study will take."""

    experiments: list[ExperimentForecast]
    study_cost: Cost
    """What is paid once, beside the experiments."""
    cost: Cost
    """All of it."""
    total_usd: float
    task_seconds: float
    """Of all tasks."""
    prices: Prices
    architecture: Architecture
    public_ipv4: bool
    hypothetical: bool
    max_parallel_experiments: int
    """As many as fit; at most what the study asks for."""
    peak_tasks: int
    """The most that run at once."""
    peak_vcpus: float
    quotas: list[Quota]
    duration_seconds: float
    """From the start of the execution to the report."""
    problems: list[str]
    """Why the study would not be started; of a dry run nothing else comes of them."""
    notes: list[str]


def forecast(
    study: Study,
    experiments: Sequence[Experiment],
    terms: Terms,
    *,
    quotas: Sequence[Quota] = (),
    history: Mapping[str, Measured] | None = None,
    notes: Iterable[str] = (),
) -> Forecast:
    """What `study` will take as these experiments.

    `history`: by the name of an experiment, what one like it took that has completed.
    """
    draws = max(1, DRAWS_AT_MOST // len(experiments))
    known = history or {}
    expected = [_experiment(each, terms, known.get(each.name), draws) for each in experiments]
    demands = [each.demand for each in expected]
    asked = study.max_parallel_experiments
    parallel = max(1, fitting(demands, quotas, asked))
    walls = [terms.overheads.provisioning + each.server_seconds for each in expected]
    study_cost = services_of_study(terms.prices)
    cost = sum((each.cost for each in expected), start=study_cost)
    return Forecast(
        experiments=expected,
        study_cost=study_cost,
        cost=cost,
        total_usd=cost.total,
        task_seconds=sum(each.task_seconds for each in expected),
        prices=terms.prices,
        architecture=terms.architecture,
        public_ipv4=terms.public_ipv4,
        hypothetical=terms.hypothetical,
        max_parallel_experiments=parallel,
        peak_tasks=sum(_largest([each.tasks for each in demands], parallel)),
        peak_vcpus=sum(_largest([each.on_demand_vcpus + each.spot_vcpus for each in demands], parallel)),
        quotas=list(quotas),
        duration_seconds=terms.study_seconds + side_by_side_seconds(walls, parallel),
        problems=[
            *quota_problems(demands, quotas),
            *_duration_problems(study, len(experiments), parallel),
            *_cost_problems(study, cost, terms),
        ],
        notes=[*notes, *_parallel_notes(asked, parallel, fitting(demands, [], asked)), *_price_notes(terms)],
    )


Number = TypeVar("Number", int, float)


def _largest(amounts: Iterable[Number], count: int) -> list[Number]:
    return sorted(amounts, reverse=True)[:count]


def side_by_side_seconds(seconds: Iterable[float], at_a_time: int) -> float:
    """How long it takes where the next begins when one of those at work has ended."""
    ends = [0.0] * at_a_time
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _experiment(
    experiment: Experiment, terms: Terms, measured: Measured | None, draws: int
) -> ExperimentForecast:
    duration = duration_of(experiment, terms.overheads, measured=measured, draws=draws)
    workers, shards = experiment.workers, experiment.shards
    return ExperimentForecast(
        name=experiment.name,
        mode=experiment.mode,
        workers=workers,
        servers=shards,
        basis=duration.basis,
        note=_basis_note(duration.basis, measured),
        training_seconds=duration.training,
        server_seconds=duration.server,
        worker_seconds=duration.worker,
        task_seconds=shards * duration.server + workers * duration.worker,
        demand=_demand(experiment),
        cost=_cost(experiment, duration, terms),
    )


def _cost(experiment: Experiment, duration: Duration, terms: Terms) -> Cost:
    workers, shards = experiment.workers, experiment.shards
    records = records_of(
        workers=workers,
        shards=shards,
        epochs=experiment.training.epochs,
        training_seconds=duration.training,
    )
    priced = partial(task_cost, terms.prices, terms.architecture, public_ipv4=terms.public_ipv4)
    server = priced(experiment.server, duration.server, spot=False)
    worker = priced(experiment.worker, duration.worker, spot=experiment.worker.spot)
    services = services_of_experiment(terms.prices, workers=workers, shards=shards, records=records)
    return services + server * shards + worker * workers


def _basis_note(basis: Basis, measured: Measured | None) -> str:
    match basis:
        case Basis.DRAWS:
            return "the seeded draws of emulated compute, and the mode's rule"
        case Basis.HISTORY if measured is not None:
            return f"measured: {measured.experiment} of study {measured.study_id}, which ended {measured.ended_at}"
        case _:
            return "a guess, from the model's size: nothing like it has completed here"


def _demand(experiment: Experiment) -> Demand:
    servers = experiment.shards * experiment.server.cpu / CPU_UNITS_OF_A_VCPU
    workers = experiment.workers * experiment.worker.cpu / CPU_UNITS_OF_A_VCPU
    spot = experiment.worker.spot
    return Demand(
        name=experiment.name,
        tasks=experiment.task_count,
        on_demand_vcpus=servers if spot else servers + workers,
        spot_vcpus=workers if spot else 0.0,
    )


def _cost_problems(study: Study, cost: Cost, terms: Terms) -> list[str]:
    bound = study.max_cost_usd
    if bound is None or cost.total <= bound:
        return []
    where = " on AWS" if terms.hypothetical else ""
    return [
        f"max_cost_usd: the study would cost {dollars(cost.total)}{where}, and at most {dollars(bound)} is allowed:"
        f" {cost.breakdown()} (prices of {terms.prices.region}, {terms.prices.date});"
        " raise the bound, or choose fewer experiments, workers or epochs, smaller tasks or Spot"
    ]


def _duration_problems(study: Study, experiments: int, parallel: int) -> list[str]:
    """The study itself was looked at with as many at a time as it asks for."""
    if parallel == study.max_parallel_experiments:
        return []
    way_out = "choose fewer workers or smaller tasks, so that more run at a time"
    return duration_problems(experiments, study.experiment_timeout_seconds, parallel, way_out)


def _parallel_notes(asked: int, parallel: int, startable: int) -> list[str]:
    """`startable`: how many would run at a time if there were no quota of vCPUs."""
    if parallel == asked:
        return []
    bound = "quota" if parallel < startable else f"{LAUNCH_BURST} tasks that Fargate starts at once"
    return [f"max_parallel_experiments: lowered from {asked} to {parallel}, to stay within the {bound}"]


def _price_notes(terms: Terms) -> list[str]:
    if not terms.region or terms.region == terms.prices.region:
        return []
    return [
        f"prices are those of {terms.prices.region}, and the study runs in {terms.region}:"
        " deploy with that region's (context prices)"
    ]
