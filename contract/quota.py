"""How many experiments fit side by side into what an account may run at once.

Pure. Fargate counts vCPUs, those on demand and those of Spot apart; it also limits how many tasks are started at once.
"""

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

Capacity = Literal["on-demand", "spot"]

QUOTA_CODES: Final[dict[Capacity, str]] = {"on-demand": "L-3032A538", "spot": "L-36FBB829"}
"""Of the service `fargate`: vCPUs that all tasks of an account may have in one region at once."""

NEW_ACCOUNT_VCPUS: Final = 6
"""Of either quota, where nothing else is known. Source: Amazon ECS endpoints and quotas; raised by use."""

LAUNCH_BURST: Final = 100
"""Tasks that Fargate starts at once, of either capacity; more of them 20 a second.

Source: ECS Developer Guide, AWS Fargate throttling quotas.
"""

Source = Literal["Service Quotas", "the deployment's setting", "assumed"]


class Quota(BaseModel):
    """vCPUs that may run at once, and those that do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity: Capacity
    vcpus: float
    in_use: float = 0.0
    source: Source

    @property
    def free(self) -> float:
        """What is left of it."""
        return max(0.0, self.vcpus - self.in_use)


class Demand(BaseModel):
    """What one experiment has running at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tasks: int
    on_demand_vcpus: float
    spot_vcpus: float

    def vcpus(self, capacity: Capacity) -> float:
        """Of that capacity."""
        return self.on_demand_vcpus if capacity == "on-demand" else self.spot_vcpus


def fitting(demands: Sequence[Demand], quotas: Iterable[Quota], asked: int) -> int:
    """How many experiments may run at a time, at most `asked`: any of them together, the largest included.

    An assumed quota lowers it, but not below 1: the account may have more. 0 where one alone does not fit.
    """
    fits = _widest([demand.tasks for demand in demands], LAUNCH_BURST, asked)
    for quota in quotas:
        found = _widest([demand.vcpus(quota.capacity) for demand in demands], quota.free, asked)
        fits = min(fits, max(found, 1) if quota.source == "assumed" else found)
    return fits


def quota_problems(demands: Sequence[Demand], quotas: Iterable[Quota]) -> list[str]:
    """Experiments that could not be started even alone, one line for each quota, with the way to raise it."""
    problems = []
    for quota in quotas:
        largest = max(demands, key=lambda demand: demand.vcpus(quota.capacity))
        needed = largest.vcpus(quota.capacity)
        if quota.source != "assumed" and needed > quota.free:
            problems.append(_problem(quota, largest.name, needed))
    return problems


def _widest(amounts: Sequence[float], free: float, asked: int) -> int:
    """How many of the largest fit together."""
    used, count = 0.0, 0
    for amount in sorted(amounts, reverse=True):
        used += amount
        if used > free:
            break
        count += 1
    return asked if count == len(amounts) else min(count, asked)


def _problem(quota: Quota, name: str, needed: float) -> str:
    used = f", of which {quota.in_use:g} are in use" if quota.in_use else ""
    says = (
        f"quota: {name} needs {needed:g} {quota.capacity} vCPUs at once;"
        f" the quota is {quota.vcpus:g}{used}. Choose fewer workers or smaller tasks, or raise it: "
    )
    if quota.source == "the deployment's setting":
        return f"{says}deploy with another vcpu_quota"
    wanted = ceil(max(needed + quota.in_use, quota.vcpus + 1))
    return (
        f"{says}aws service-quotas request-service-quota-increase --service-code fargate"
        f" --quota-code {QUOTA_CODES[quota.capacity]} --desired-value {wanted}"
    )
