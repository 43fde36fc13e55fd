"""Alarms: what somebody should look at, and the e-mail that says so where the setting `alarm_email` names one.

Each is on one metric: the embedded cloud knows no metric math.
"""

from collections.abc import Mapping

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from cdk.acknowledgements import acknowledge
from contract.watching import LINES_REFUSED, NAMESPACE, STACK_DIMENSION, TASKS_SWEPT, Metric

PERIOD = cdk.Duration.minutes(5)


class Alarms(Construct):
    """Alarms that are raised by one bad event within five minutes, and end by themselves."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        state_machine: sfn.IStateMachine,
        functions: Mapping[str, lambda_.Function],
        undelivered: sqs.IQueue,
        email: str | None,
    ) -> None:
        super().__init__(scope, construct_id)
        topic = self._topic(email) if email else None
        self.all: list[cloudwatch.Alarm] = []
        for name, metric, description in (
            (
                "StudyFailed",
                state_machine.metric_failed(),
                "a study failed or was refused: its cause says why",
            ),
            (
                "StudyTimedOut",
                state_machine.metric_timed_out(),
                "a study took longer than its state machine allows",
            ),
            (
                "IngestErrors",
                functions["ingest_metrics"].metric_errors(),
                "ingest_metrics failed: metrics come late, when their study ends",
            ),
            (
                "LinesRefused",
                own_metric(self, LINES_REFUSED, "Sum"),
                "tasks print metric lines that cannot be read",
            ),
            (
                "OrphanTasks",
                own_metric(self, TASKS_SWEPT, "Sum"),
                "tasks ran on for minutes after their execution had ended, and were stopped",
            ),
            (
                "SweepErrors",
                functions["sweep_tasks"].metric_errors(),
                "sweep_tasks failed: tasks may run, and cost, without an execution",
            ),
            (
                "Undelivered",
                undelivered.metric_approximate_number_of_messages_visible(),
                "events were given up after retries: read them in the queue, then purge it",
            ),
        ):
            self._add(name, metric, description, topic)

    def _add(self, name: str, metric: cloudwatch.Metric, description: str, topic: sns.ITopic | None) -> None:
        statistic = "Maximum" if name == "Undelivered" else "Sum"
        alarm = cloudwatch.Alarm(
            self,
            name,
            metric=metric.with_(period=PERIOD, statistic=statistic),
            alarm_description=f"Lockstep: {description}",
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            threshold=1,
            evaluation_periods=1,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        if topic is not None:
            alarm.add_alarm_action(actions.SnsAction(topic))
        self.all.append(alarm)

    def _topic(self, email: str) -> sns.Topic:
        topic = sns.Topic(self, "Topic", display_name="Lockstep alarms")
        topic.add_subscription(subscriptions.EmailSubscription(email))
        # A policy of one's own takes the place of the one that lets the account's alarms publish.
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID}},
            )
        )
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"Bool": {"aws:SecureTransport": "false"}},
            )
        )
        acknowledge(
            topic,
            {
                "AwsSolutions-SNS2": "names and states of alarms, which go on by e-mail in the clear; CloudWatch can"
                " publish to an encrypted topic with a key of one's own alone, at 1 USD a month"
            },
        )
        return topic


def own_metric(scope: Construct, metric: Metric, statistic: str) -> cloudwatch.Metric:
    """A metric that the functions of this stack emit."""
    return cloudwatch.Metric(
        namespace=NAMESPACE,
        metric_name=metric.name,
        dimensions_map={STACK_DIMENSION: cdk.Stack.of(scope).stack_name},
        statistic=statistic,
        period=PERIOD,
    )
