"""Dashboard: one page of CloudWatch that shows a study while it runs, and how the stack behind it does.

Experiments come and go: what is live of them is searched for, not named. An account's first three dashboards are free.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from cdk.alarms import own_metric
from contract.watching import (
    ACCURACY,
    EXPERIMENT_DIMENSION,
    INGEST_LAG,
    LINES_REFUSED,
    NAMESPACE,
    RECORDS_STORED,
    STACK_DIMENSION,
    STALENESS,
    STUDY_DIMENSION,
    TASKS_SWEPT,
    UPDATES_PER_SECOND,
    Metric,
)

MINUTE: Final = cdk.Duration.minutes(1)
THIRD, HALF = 8, 12
"""Widths; a row has 24."""


class Dashboard(Construct):
    """The page, named like the stack."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster: ecs.ICluster,
        state_machine: sfn.IStateMachine,
        functions: Mapping[str, lambda_.Function],
        undelivered: sqs.IQueue,
        alarms: Sequence[cloudwatch.IAlarm],
    ) -> None:
        super().__init__(scope, construct_id)
        page = cloudwatch.Dashboard(
            self,
            "Page",
            dashboard_name=cdk.Stack.of(self).stack_name,
            default_interval=cdk.Duration.hours(3),
        )
        page.add_widgets(
            self._live("Accuracy by experiment (%)", ACCURACY, "Average"),
            self._live("Updates per second", UPDATES_PER_SECOND, "Average"),
            self._live("Staleness (updates)", STALENESS, "Average"),
        )
        page.add_widgets(
            _graph("Running tasks", [_tasks_of(cluster)], THIRD),
            _graph("Fargate vCPUs of the account", [_vcpus("OnDemand"), _vcpus("Spot")], THIRD),
            _graph(
                "Studies",
                [
                    state_machine.metric_started(),
                    state_machine.metric_succeeded(),
                    state_machine.metric_failed(),
                    state_machine.metric_aborted(),
                    state_machine.metric_timed_out(),
                ],
                THIRD,
                statistic="Sum",
            ),
        )
        page.add_widgets(
            _graph("Ingest lag: oldest record (s)", [own_metric(self, INGEST_LAG, "Maximum")], THIRD),
            _graph("Records stored", [own_metric(self, RECORDS_STORED, "Sum")], THIRD),
            _graph(
                "Errors",
                [
                    *(
                        function.metric_errors(label=name, statistic="Sum", period=MINUTE)
                        for name, function in functions.items()
                    ),
                    own_metric(self, LINES_REFUSED, "Sum"),
                    own_metric(self, TASKS_SWEPT, "Sum"),
                    undelivered.metric_approximate_number_of_messages_visible(
                        label="undelivered events", statistic="Maximum"
                    ),
                ],
                THIRD,
            ),
        )
        page.add_widgets(cloudwatch.AlarmStatusWidget(title="Alarms", alarms=alarms, width=2 * HALF))

    def _live(self, title: str, metric: Metric, statistic: str) -> cloudwatch.GraphWidget:
        """A line for each experiment. Source: CloudWatch User Guide, "CloudWatch search expression syntax"."""
        stack = cdk.Stack.of(self).stack_name
        dimensions = ",".join((NAMESPACE, STACK_DIMENSION, STUDY_DIMENSION, EXPERIMENT_DIMENSION))
        wanted = f'{{{dimensions}}} MetricName="{metric.name}" {STACK_DIMENSION}="{stack}"'
        search = cloudwatch.SearchExpression(
            expression=f"SEARCH('{wanted}', '{statistic}', 60)",
            label="",  # each line is named by its study and experiment
            period=MINUTE,
        )
        return cloudwatch.GraphWidget(title=title, left=[search], width=THIRD)


def _graph(
    title: str, metrics: Sequence[cloudwatch.IMetric], width: int, statistic: str | None = None
) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title=title, left=metrics, width=width, statistic=statistic, left_y_axis=cloudwatch.YAxisProps(min=0)
    )


def _tasks_of(cluster: ecs.ICluster) -> cloudwatch.Metric:
    """Source: CloudWatch User Guide, "Amazon ECS Container Insights metrics"."""
    return cloudwatch.Metric(
        namespace="ECS/ContainerInsights",
        metric_name="TaskCount",
        dimensions_map={"ClusterName": cluster.cluster_name},
        statistic="Maximum",
        period=MINUTE,
        label="tasks",
    )


def _vcpus(kind: str) -> cloudwatch.Metric:
    """What counts against the quota, of all stacks. Source: Amazon ECS Developer Guide, "AWS Fargate usage metrics"."""
    return cloudwatch.Metric(
        namespace="AWS/Usage",
        metric_name="ResourceCount",
        dimensions_map={
            "Service": "Fargate",
            "Type": "Resource",
            "Resource": "vCPU",
            "Class": f"Standard/{kind}",
        },
        statistic="Maximum",
        period=MINUTE,
        label=f"vCPU {kind}",
    )
