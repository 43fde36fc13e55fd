"""Prices: what AWS asks for what a study uses, as a dated table that a deployment may override.

Pure; US dollars. Nothing here asks AWS: a plan is priced without credentials, and says of when its prices are.
"""

import json
from collections.abc import Mapping
from math import floor, log10
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.errors import Refused
from contract.problems import problems_of

Architecture = Literal["x86_64", "arm64"]
"""Of the tasks' processors."""


class PricesRefused(Refused):
    """Prices of a deployment that cannot be read."""

    subject = "prices"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rates(_Table):
    """What a task costs for as long as it runs."""

    vcpu_hour: float = Field(ge=0)
    gb_hour: float = Field(ge=0)
    """Of memory; Fargate's GB are GiB."""


class Prices(_Table):
    """US dollars."""

    region: str
    date: str
    """When they were looked up, as YYYY-MM-DD."""
    x86_64: Rates
    arm64: Rates
    x86_64_spot: Rates
    arm64_spot: Rates
    public_ipv4_hour: float = Field(ge=0)
    """Of one address in use."""
    function_gb_second: float = Field(ge=0)
    """Of Lambda on arm64, which the functions run on."""
    function_request: float = Field(ge=0)
    state_transition: float = Field(ge=0)
    log_gb: float = Field(ge=0)
    """Of log lines ingested."""
    write_request_unit: float = Field(ge=0)
    """Of the table: a write of up to 1 KB."""

    def rates(self, architecture: Architecture, *, spot: bool) -> Rates:
        """Those of a task on such processors."""
        rates: Rates = getattr(self, f"{architecture}{'_spot' if spot else ''}")
        return rates


US_EAST_1: Final = Prices(
    region="us-east-1",
    date="2026-04-01",
    x86_64=Rates(vcpu_hour=0.04048, gb_hour=0.004445),
    arm64=Rates(vcpu_hour=0.03238, gb_hour=0.00356),
    x86_64_spot=Rates(vcpu_hour=0.01334053, gb_hour=0.00146489),
    arm64_spot=Rates(vcpu_hour=0.01067110, gb_hour=0.00117322),
    public_ipv4_hour=0.005,
    function_gb_second=0.0000133334,
    function_request=0.20e-6,
    state_transition=0.025e-3,
    log_gb=0.50,
    write_request_unit=0.625e-6,
)
"""On-demand prices without free tiers or savings plans.

Sources, second hand, of 2026-03 and 2026-04: Fargate pricing guides of Vantage and Wring (vCPU, GB); AWS's networking
blog on public IPv4 addresses (2024-02-01); Lambda, Step Functions and DynamoDB as quoted by Cloudchipr, Wring and
Airbyte. Spot prices move with demand: these are the 67 % off on demand that they began with, where AWS promises up to
70 %; on arm64 the same share is assumed. docs/aws-unverified.md says how to look all of them up.
"""


def overridden(prices: Prices, document: str) -> Prices:
    """`prices` with those in their place that a deployment names as JSON; an empty document names none.

    Whoever names prices says of when they are: `date` is needed, `region` where they are of another one. Raises
    PricesRefused with every problem.
    """
    if not document.strip():
        return prices
    try:
        given = json.loads(document)
    except ValueError as error:
        raise PricesRefused([f"not JSON: {error}"]) from error
    if not isinstance(given, dict):
        raise PricesRefused([f"must be a JSON object of prices, not {document[:60]!r}"])
    problems = [] if "date" in given else ["date: missing; say of when these prices are, as YYYY-MM-DD"]
    try:
        merged = Prices.model_validate(_merged(prices.model_dump(), given))
    except ValidationError as error:
        raise PricesRefused([*problems, *problems_of(error, Prices)]) from error
    if problems:
        raise PricesRefused(problems)
    return merged


def _merged(table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The table with what is given in its place, rate by rate."""
    return {
        **table,
        **{
            key: {**table[key], **value}
            if isinstance(value, dict) and isinstance(table.get(key), dict)
            else value
            for key, value in given.items()
        },
    }


def dollars(amount: float) -> str:
    """An amount as people read it: $12.30, $0.412, $0.00072."""
    if amount >= 1 or amount <= 0:
        return f"${amount:,.2f}"
    return f"${amount:.{max(3, 1 - floor(log10(amount)))}f}"
