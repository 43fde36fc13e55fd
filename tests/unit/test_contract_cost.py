"""What tasks cost, and the table of prices with what a deployment puts in its place."""

import json
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.cost import (
    Cost,
    billed_seconds,
    records_of,
    services_of_experiment,
    services_of_study,
    task_cost,
)
from contract.prices import US_EAST_1, PricesRefused, dollars, overridden
from contract.study import TaskSize

ONE = TaskSize(cpu=1024, memory=2048)


def test_an_hour_of_a_task_is_what_the_pricing_page_says() -> None:
    cost = task_cost(US_EAST_1, "x86_64", ONE, 3600, spot=False)
    assert (cost.vcpu, cost.memory) == (pytest.approx(0.04048), pytest.approx(2 * 0.004445))
    assert cost.public_ipv4 == pytest.approx(0.005)
    assert cost.tasks == cost.total == pytest.approx(0.05437)


def test_nine_vcpus_with_eighteen_gib() -> None:
    """The sum that the research notes give: $0.444 an hour, beside public addresses."""
    nine = task_cost(US_EAST_1, "x86_64", ONE, 3600, spot=False, public_ipv4=False) * 9
    assert nine.total == pytest.approx(0.444, abs=0.001)


@given(st.floats(0, 100_000))
def test_a_task_is_billed_a_minute_at_least_and_by_whole_seconds(seconds: float) -> None:
    assert billed_seconds(seconds) == max(60, ceil(seconds))


@given(st.floats(0, 10_000), st.floats(0, 10_000), st.sampled_from(["x86_64", "arm64"]))
def test_longer_costs_no_less_and_spot_no_more(one: float, other: float, architecture: str) -> None:
    def cost(seconds: float, *, spot: bool) -> float:
        return task_cost(US_EAST_1, architecture, ONE, seconds, spot=spot).total  # type: ignore[arg-type]  # drawn

    assert cost(min(one, other), spot=False) <= cost(max(one, other), spot=False)
    assert cost(one, spot=True) < cost(one, spot=False)


def test_arm_is_a_fifth_cheaper() -> None:
    x86, arm = (
        task_cost(US_EAST_1, architecture, ONE, 3600, spot=False, public_ipv4=False).total
        for architecture in ("x86_64", "arm64")
    )
    assert arm / x86 == pytest.approx(0.8, abs=0.005)


def test_records_are_each_tasks_first_and_last_epochs_and_intervals() -> None:
    assert records_of(workers=4, shards=1, epochs=5, training_seconds=9.0) == 4 * 7 + 2 + 5


def test_services_are_small_and_grow_with_the_workers() -> None:
    few = services_of_experiment(US_EAST_1, workers=1, shards=1, records=20)
    many = services_of_experiment(US_EAST_1, workers=32, shards=1, records=500)
    assert few.tasks == many.tasks == 0
    for name in ("functions", "state_transitions", "logs", "table"):
        assert 0 < getattr(few, name) < getattr(many, name) < 0.01
    assert 0 < services_of_study(US_EAST_1).total < 0.01


def test_costs_add_up_part_by_part() -> None:
    assert Cost(vcpu=1, logs=2) + Cost(vcpu=3, table=4) == Cost(vcpu=4, logs=2, table=4)
    assert Cost(vcpu=1, logs=2) * 3 == Cost(vcpu=3, logs=6)
    assert Cost(vcpu=1.5, memory=0.25).breakdown().startswith("vCPU $1.50, memory $0.250, public IPv4 $0.00")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(1234.5, "$1,234.50"), (0.41234, "$0.412"), (0.04123, "$0.041"), (0.000072, "$0.000072"), (0, "$0.00")],
)
def test_amounts_have_as_many_digits_as_they_need(amount: float, text: str) -> None:
    assert dollars(amount) == text


def test_a_deployments_prices_go_before_the_tables() -> None:
    given = {"date": "2026-11-01", "region": "eu-west-1", "x86_64": {"vcpu_hour": 0.05}, "log_gb": 0.57}
    prices = overridden(US_EAST_1, json.dumps(given))
    assert (prices.region, prices.date, prices.log_gb) == ("eu-west-1", "2026-11-01", 0.57)
    assert (prices.x86_64.vcpu_hour, prices.x86_64.gb_hour) == (0.05, US_EAST_1.x86_64.gb_hour)
    assert overridden(US_EAST_1, "") == overridden(US_EAST_1, " ") == US_EAST_1


def test_wrong_prices_are_refused_all_at_once() -> None:
    with pytest.raises(PricesRefused) as refused:
        overridden(
            US_EAST_1, json.dumps({"x86_64": {"vcpu_hour": -1}, "log_gbs": 1, "public_ipv4_hour": "x"})
        )
    text = str(refused.value)
    for part in ("date: missing", "x86_64.vcpu_hour", "did you mean 'log_gb'?", "public_ipv4_hour"):
        assert part in text
    for document in ("[]", "3", "{", '"text"'):
        with pytest.raises(PricesRefused):
            overridden(US_EAST_1, document)
