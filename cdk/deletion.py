"""Deletion: before anything that studies need is deleted, stop_studies ends them.

A custom resource of our own function, in Python: CDK's provider framework would bring Node.js functions.
"""

import aws_cdk as cdk
from aws_cdk import aws_lambda as lambda_
from constructs import Construct, IDependable


class Deletion(Construct):
    """The custom resource, which depends on all that must outlive the studies."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        function: lambda_.Function,
        before: list[IDependable],
    ) -> None:
        """`before`: what is deleted only once no study and no task is left."""
        super().__init__(scope, construct_id)
        timeout = function.timeout
        assert timeout is not None  # noqa: S101 - tells the type checker what our functions have
        resource = cdk.CustomResource(
            self,
            "Studies",
            resource_type="Custom::StopStudies",
            service_token=function.function_arn,
            # Where the function could not answer at all, the deletion fails a minute later, not after an hour.
            service_timeout=cdk.Duration.seconds(timeout.to_seconds() + 60),
        )
        resource.node.add_dependency(*before)
