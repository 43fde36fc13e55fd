"""Settings: what `-c name=value` may say, checked as a whole before anything is made.

Runs at synth time, first. Pure: knows no aws_cdk; what is not said here has one way.
"""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from contract.errors import Refused
from contract.prices import US_EAST_1, PricesRefused, overridden
from contract.problems import problems_of

ECR_IMAGE: Final = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.[a-z.]+/(?P<name>[^:@]+)[:@](?P<tag>.+)"
)
"""An image in a private registry of ECR, with its tag or digest."""


class SettingsRefused(Refused):
    """Context values that no stack can be made of."""

    subject = "settings"


def _listed(value: object) -> object:
    """The command line has no lists: there, commas stand between the items."""
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _as_json(value: object) -> str:
    """The command line gives a text, cdk.json an object."""
    return value if isinstance(value, str) else json.dumps(value)


class Settings(BaseModel):
    """Where and how a stack runs. Each field is a context value of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stack_name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,127}$")] = "Lockstep"
    image: str | None = None
    """A training image that is in a registry already; by default it is built from runtime/Dockerfile."""
    torch_index: str | None = None
    """Extra package index for that build."""
    cpu_architecture: Literal["x86_64", "arm64"] = "x86_64"
    """What tasks run on, and the image is built for."""
    network: Literal["public", "private"] = "public"
    """Whether tasks have public addresses. Without, they reach AWS through endpoints, which cost by the hour."""
    vpc_id: Annotated[str, Field(pattern=r"^vpc-[0-9a-f]{8,17}$")] | None = None
    """A VPC to run in; by default the stack makes its own."""
    subnet_ids: Annotated[
        tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...], BeforeValidator(_listed)
    ] = ()
    """That VPC's subnets for tasks."""
    alarm_email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")] | None = None
    """Who is told of alarms."""
    dataset_mirror: Annotated[str, Field(pattern=r"^https?://[^\s]*[^\s/]$")] | None = None
    """Where data sets are downloaded from, in place of torchvision's own places."""
    vcpu_quota: Annotated[float, Field(gt=0)] | None = None
    """Fargate vCPUs that studies may use; by default Service Quotas is asked."""
    prices: Annotated[str, BeforeValidator(_as_json)] = ""
    """Prices that differ from the dated table's, as JSON."""

    @classmethod
    def from_context(cls, context: Mapping[str, Any]) -> Self:
        """Read the app's context, in which CDK's own values stand too. Raises SettingsRefused with every problem."""
        given = {name: value for name, value in context.items() if value not in ("", None)}
        problems = list(_misspelled(given, cls.model_fields))
        try:
            settings = cls.model_validate({name: given[name] for name in given if name in cls.model_fields})
        except ValidationError as error:
            raise SettingsRefused([*problems, *problems_of(error, cls)]) from error
        if problems := [*problems, *settings._conflicts()]:
            raise SettingsRefused(problems)
        return settings

    @property
    def image_is_in_ecr(self) -> bool:
        """An image that is built goes there too."""
        return self.image is None or ECR_IMAGE.fullmatch(self.image) is not None

    def _conflicts(self) -> list[str]:
        problems = []
        if self.vpc_id and not self.subnet_ids:
            problems.append("subnet_ids: missing; name the subnets of vpc_id that tasks run in")
        if self.subnet_ids and not self.vpc_id:
            problems.append("vpc_id: missing; name the VPC that subnet_ids belong to")
        if self.image and self.torch_index:
            problems.append("torch_index: has no effect with image, which is not built; remove one of them")
        if self.network == "private" and not self.vpc_id and not self.image_is_in_ecr:
            problems.append(
                f"image: {self.image} cannot be pulled without a way to the internet; with network private"
                " it must be in ECR, or vpc_id name a VPC that has a way"
            )
        try:
            overridden(US_EAST_1, self.prices)
        except PricesRefused as refused:
            problems += [f"prices: {problem}" for problem in refused.problems]
        return problems


def _misspelled(given: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Others than ours may put values into the context; what is all but a setting is a mistake."""
    near = {name: get_close_matches(name, known, n=1, cutoff=0.8) for name in given.keys() - known.keys()}
    return [
        f"{name}: unknown setting; did you mean '{match[0]}'?"
        for name, match in sorted(near.items())
        if match
    ]
