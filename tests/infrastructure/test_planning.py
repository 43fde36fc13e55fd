"""What a deployment puts in place of the price table is checked at synthesis."""

import json

import pytest

from cdk.planning import prices_given
from contract.prices import US_EAST_1, PricesRefused, overridden

GIVEN = {"date": "2026-11-01", "region": "eu-west-1", "arm64": {"vcpu_hour": 0.04}}


@pytest.mark.parametrize("given", [GIVEN, json.dumps(GIVEN)], ids=["cdk.json", "command line"])
def test_prices_are_handed_on_as_json(given: object) -> None:
    prices = overridden(US_EAST_1, prices_given(given))
    assert (prices.region, prices.date, prices.arm64.vcpu_hour) == ("eu-west-1", "2026-11-01", 0.04)
    assert prices.x86_64 == US_EAST_1.x86_64


def test_without_any_the_table_holds() -> None:
    assert prices_given(None) == ""


@pytest.mark.parametrize(
    "given", ["{", {"arm64": {"vcpu_hour": 0.04}}, {"date": "2026-11-01", "spot": 1}, [], 3]
)
def test_a_mistake_is_told_at_synthesis(given: object) -> None:
    with pytest.raises(PricesRefused):
        prices_given(given)
