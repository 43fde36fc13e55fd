"""The environment of a function, parsed once into a type; CDK writes the same names.

Read by handlers at cold start; knows no AWS SDK.
"""

import os
from typing import Literal, Self

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

    cpu_architecture: Literal["x86_64", "arm64"] = "x86_64"
    """What tasks run on: prices differ."""


class WatchedEnvironment(TableEnvironment):
    """Of functions that emit metrics."""

    stack_name: str


class ClusterEnvironment(TableEnvironment):
    """Of functions that end tasks and tell how they ended."""

    cluster_arn: str
    log_group_name: str


class SweepEnvironment(ClusterEnvironment, WatchedEnvironment):
    """Of sweep_tasks."""

    state_machine_arn: str
    publish_report_function: str
    """Its ARN."""


class StopEnvironment(FunctionEnvironment):
    """Of stop_studies."""

    state_machine_arn: str
    cluster_arn: str


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
