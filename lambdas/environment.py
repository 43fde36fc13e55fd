"""The environment of a function, parsed once into a type; CDK writes the same names.

Read by handlers at cold start; knows no AWS SDK.
"""

import os
from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict

from contract.forecast import Terms
from contract.prices import US_EAST_1, Architecture, overridden


def _given(value: str) -> str | None:
    """A variable that is there, and empty, says nothing."""
    return value or None


class FunctionEnvironment(BaseModel):
    """What a function is told of the deployment; each handler names in its class what it needs."""

    model_config = ConfigDict(frozen=True, alias_generator=str.upper, populate_by_name=True)

    @classmethod
    def read(cls) -> Self:
        """Read the process environment. Raises pydantic's ValidationError: the deployment is at fault."""
        return cls.model_validate(dict(os.environ))


class TableEnvironment(FunctionEnvironment):
    """Of functions that work on the table alone."""

    table_name: str


class PlanEnvironment(TableEnvironment):
    """Of plan_study."""

    datasets_location: str
    """s3://bucket/prefix below which the deployment keeps data sets."""
    embedded_cloud: bool
    vcpu_quota: Annotated[float | None, BeforeValidator(_given)]
    """In place of what Service Quotas says; empty: ask it."""
    prices: str
    """JSON of the prices that differ from the table's; empty: none."""
    cpu_architecture: Architecture
    public_ipv4: bool
    """Whether tasks have a public address."""
    aws_region: str = ""
    """Lambda sets it."""

    @property
    def terms(self) -> Terms:
        """Where studies run, and at what prices. Raises PricesRefused: the deployment is at fault."""
        prices = overridden(US_EAST_1, self.prices)
        if self.embedded_cloud:
            terms = Terms.embedded(prices, self.cpu_architecture)
        else:
            terms = Terms.on_aws(prices, self.cpu_architecture, self.aws_region)
        return replace(terms, public_ipv4=self.public_ipv4)


class WatchedEnvironment(TableEnvironment):
    """Of functions that emit metrics."""

    stack_name: str


class EndingEnvironment(FunctionEnvironment):
    """Of functions that end tasks."""

    cluster_arn: str
    quiet_seconds: float
    """Between two looks that find no task, where one may have been starting."""


class ClusterEnvironment(TableEnvironment, EndingEnvironment):
    """Of functions that end tasks and tell how they ended."""

    log_group_name: str


class SweepEnvironment(ClusterEnvironment, WatchedEnvironment):
    """Of sweep_tasks."""

    state_machine_arn: str
    publish_report_function: str
    """Its ARN."""


class StopEnvironment(EndingEnvironment):
    """Of stop_studies."""

    state_machine_arn: str


class ReconcileEnvironment(ClusterEnvironment):
    """Of reconcile_metrics."""

    patience_seconds: float
    """How long rows may take to arrive through the subscription before the log streams are read."""


class ConcludeEnvironment(TableEnvironment):
    """Of conclude_study."""

    checkpoint_location: str
    """Where servers keep checkpoints whose study does not say where, s3://bucket/prefix."""


class ReportEnvironment(TableEnvironment):
    """Of publish_report."""

    bucket_name: str
