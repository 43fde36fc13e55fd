"""The forecast of a study: what it costs adds up, what does not fit is lowered or refused, and it survives JSON."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.duration import Basis
from contract.forecast import Forecast, Terms, forecast, side_by_side_seconds
from contract.history import Measured
from contract.plan import plan
from contract.prices import US_EAST_1
from contract.quota import Quota
from contract.study import parse_study

EMULATED = {"mode": "emulated", "distribution": "constant", "mean_ms": 20}
LIMIT = [Quota(capacity="on-demand", vcpus=64, source="Service Quotas")]
MEASURED = Measured(
    study_id="earlier",
    experiment="sync_4workers",
    ended_at="2026-03-01T12:00:00+00:00",
    training_seconds=40.0,
    server_seconds=90.0,
    worker_seconds=70.0,
)


def expected(document: dict[str, Any], terms: Terms | None = None, **known: Any) -> Forecast:
    study = parse_study(document)
    return forecast(study, plan(study, "study-1"), terms or Terms.on_aws(), **known)


def test_a_study_costs_what_its_experiments_and_itself_cost() -> None:
    found = expected({"preset": "recommended", "compute": EMULATED})
    assert len(found.experiments) == 6
    assert found.total_usd == pytest.approx(
        sum(each.cost.total for each in found.experiments) + found.study_cost.total
    )
    assert found.total_usd == pytest.approx(found.cost.total)
    assert found.task_seconds == pytest.approx(sum(each.task_seconds for each in found.experiments))
    for each in found.experiments:
        assert each.task_seconds == pytest.approx(each.server_seconds + each.workers * each.worker_seconds)
        assert each.cost.tasks > 0
        assert each.basis is Basis.DRAWS


def test_spot_workers_cost_less_and_are_counted_apart() -> None:
    document = {"compute": EMULATED, "worker": {"cpu": 1024, "memory": 2048}}
    dear = expected(document)
    cheap = expected({**document, "worker": {"cpu": 1024, "memory": 2048, "spot": True}})
    assert cheap.cost.vcpu < dear.cost.vcpu
    assert cheap.cost.public_ipv4 == dear.cost.public_ipv4
    demands = [(each.demand.on_demand_vcpus, each.demand.spot_vcpus) for each in cheap.experiments]
    assert demands == [(1, 4), (1, 4)]


def test_the_full_matrix_is_lowered_to_what_the_quota_bears() -> None:
    document = {"preset": "full", "compute": EMULATED, "max_parallel_experiments": 4}
    found = expected(document, quotas=LIMIT)
    assert (found.max_parallel_experiments, found.peak_tasks, found.peak_vcpus) == (1, 33, 33)
    assert found.problems == []
    assert found.notes == [
        "max_parallel_experiments: lowered from 4 to 1, to stay within the quota",
    ]
    (note,) = expected({**document, "max_parallel_experiments": 8}).notes
    assert note == (
        "max_parallel_experiments: lowered from 8 to 4, to stay within the 100 tasks that Fargate starts at once"
    )
    alone = expected({**document, "max_parallel_experiments": 1})
    assert found.duration_seconds == pytest.approx(alone.duration_seconds)


def test_what_the_quota_cannot_bear_at_all_is_a_problem() -> None:
    found = expected({"matrix": {"workers": [8, 32]}, "worker": {"cpu": 4096, "memory": 8192}}, quotas=LIMIT)
    (problem,) = found.problems
    assert "sync_32workers needs 129 on-demand vCPUs" in problem
    assert "--desired-value 129" in problem


def test_what_would_run_out_of_time_where_fewer_run_at_once_is_a_problem() -> None:
    """It was accepted for as many at a time as it asks for."""
    document = {
        "matrix": {"workers": [32]},
        "seeds": list(range(8)),
        "experiment_timeout_seconds": 86_400,
        "max_parallel_experiments": 2,
        "compute": EMULATED,
    }
    assert expected(document).problems == []
    (problem,) = expected(document, quotas=LIMIT).problems
    assert problem == (
        "experiment_timeout_seconds: 16 experiments of 86,400 s, 1 at a time, may take 1,408,140 s;"
        " a study has 1,209,600 s: lower it, choose fewer workers or smaller tasks,"
        " so that more run at a time, or split the study"
    )


def test_a_bound_on_the_cost_is_kept_with_the_breakdown() -> None:
    document = {"preset": "full", "compute": EMULATED}
    cost = expected(document).total_usd
    assert expected({**document, "max_cost_usd": cost * 1.01}).problems == []
    (problem,) = expected({**document, "max_cost_usd": cost * 0.99}).problems
    assert problem.startswith("max_cost_usd: the study would cost $")
    for part in ("vCPU $", "memory $", "public IPv4 $", "functions $", "logs $", "us-east-1", US_EAST_1.date):
        assert part in problem


def test_history_makes_the_difference_between_measured_and_guessed() -> None:
    found = expected({}, history={"sync_4workers": MEASURED})
    sync, asynchronous = found.experiments
    assert (sync.basis, sync.server_seconds, sync.worker_seconds) == (Basis.HISTORY, 90.0, 70.0)
    assert "sync_4workers of study earlier, which ended 2026-03-01" in sync.note
    assert asynchronous.basis is Basis.GUESS
    assert "a guess" in asynchronous.note


def test_prices_of_another_region_are_said_to_be_the_tables() -> None:
    elsewhere = expected({}, Terms.on_aws(region="eu-west-1"))
    assert any("prices are those of us-east-1" in note and "eu-west-1" in note for note in elsewhere.notes)
    assert expected({}, Terms.on_aws(region="us-east-1")).notes == []


def test_on_the_embedded_cloud_it_is_hypothetical() -> None:
    found = expected({"compute": EMULATED, "max_cost_usd": 0.0001}, Terms.embedded())
    assert found.hypothetical
    assert " on AWS, and at most " in found.problems[0]
    assert not expected({}).hypothetical


def test_it_comes_back_from_json_as_it_was() -> None:
    found = expected({"preset": "full"}, quotas=LIMIT, history={"sync_4workers": MEASURED}, notes=["a note"])
    assert Forecast.model_validate_json(found.model_dump_json()) == found
    assert Forecast.model_validate(found.model_dump(mode="json")) == found


def test_the_largest_plan_fits_where_it_is_kept() -> None:
    """In a state's output (256 KiB), and in a row (400 KB) beside the document."""
    names = [f"{i:02}" + "x" * 60 for i in range(100)]
    document = {"experiments": [{"name": name, "mode": "sync", "workers": 2} for name in names]}
    assert len(expected(document).model_dump_json()) < 150_000


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.integers(1, 8))
def test_side_by_side_it_takes_no_longer_than_one_after_the_other(
    seconds: list[float], at_a_time: int
) -> None:
    took = side_by_side_seconds(seconds, at_a_time)
    assert max(*seconds, sum(seconds) / at_a_time) <= took * (1 + 1e-9)
    assert took <= sum(seconds) * (1 + 1e-9)
    assert side_by_side_seconds(seconds, 1) == pytest.approx(sum(seconds))
