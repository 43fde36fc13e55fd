"""The environment of a function, parsed once into a type; CDK writes the same names.

Read by handlers at cold start; knows no AWS SDK.
"""

import os
from typing import Self

from pydantic import BaseModel, ConfigDict


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


class ClusterEnvironment(TableEnvironment):
    """Of functions that look after tasks."""

    cluster_arn: str


class SweepEnvironment(ClusterEnvironment):
    """Of sweep_tasks."""

    state_machine_arn: str


class ReconcileEnvironment(TableEnvironment):
    """Of reconcile_metrics."""

    log_group_name: str
    patience_seconds: float
    """How long rows may take to arrive through the subscription before the log streams are read."""


class ReportEnvironment(TableEnvironment):
    """Of publish_report."""

    bucket_name: str
