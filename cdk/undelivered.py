"""Undelivered: what the functions that nobody waits for could not do, kept for people to look at.

Without it no record and no task would be lost: records are read again from the log group when their study ends, and the
sweeper comes again within minutes. A report that the sweeper ordered is drawn by nobody else. It says that there is
something to mend, with the event and the error.
"""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from cdk.acknowledgements import acknowledge

RETRIES = 2
"""After the first attempt, one and two minutes later. Source: AWS Lambda Developer Guide, asynchronous invocation."""


class Undelivered(Construct):
    """The queue of events that were given up."""

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        self.queue = sqs.Queue(
            self,
            "Queue",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=cdk.Duration.days(14),
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        acknowledge(
            self.queue, {"AwsSolutions-SQS3": "it is the end of the line: people read it, no function"}
        )

    def keep_failures_of(self, function: lambda_.Function) -> None:
        """Put an event here once every attempt of the function at it has failed."""
        function.add_to_role_policy(
            iam.PolicyStatement(actions=["sqs:SendMessage"], resources=[self.queue.queue_arn])
        )
        failures = lambda_.CfnEventInvokeConfig(
            self,
            function.node.id,
            function_name=function.function_name,
            qualifier="$LATEST",
            maximum_retry_attempts=RETRIES,
            destination_config=lambda_.CfnEventInvokeConfig.DestinationConfigProperty(
                on_failure=lambda_.CfnEventInvokeConfig.OnFailureProperty(destination=self.queue.queue_arn)
            ),
        )
        if function.role is not None:
            # Lambda looks whether the role may send when it is told where to.
            failures.node.add_dependency(function.role)
