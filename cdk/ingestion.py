"""Ingestion: from the tasks' log group through a subscription filter into the table."""

from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_logs_destinations as destinations
from constructs import Construct

from contract.metrics import FILTER_PATTERN


class Ingestion(Construct):
    """Subscribes ingest_metrics to the metric lines of all tasks."""

    def __init__(
        self, scope: Construct, construct_id: str, *, log_group: logs.ILogGroup, function: lambda_.IFunction
    ) -> None:
        super().__init__(scope, construct_id)
        # The destination grants CloudWatch Logs the invocation, and the filter waits for that grant.
        logs.SubscriptionFilter(
            self,
            "MetricLines",
            log_group=log_group,
            destination=destinations.LambdaDestination(function),
            filter_pattern=logs.FilterPattern.literal(FILTER_PATTERN),
        )
