"""A deployment to talk to: the stack's outputs, found on AWS or in the embedded cloud.

Used by the command's verbs. Everything else of the command looks the same on both.
"""

import os
from dataclasses import dataclass, replace
from typing import Self

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from contract.errors import LockstepError
from lambdas.table import ExperimentTable
from lambdas.tasks import TaskList
from local.cloud import Cloud
from local.emulator import client_environment

AWS_ERRORS = (BotoCoreError, ClientError, Boto3Error)
"""What calls to AWS raise, whatever the reason."""


class NoDeployment(LockstepError):
    """There is no stack to run a study on, or no credentials to look for it."""


@dataclass(frozen=True)
class Deployment:
    """The deployed stack, by its outputs."""

    session: boto3.Session
    state_machine_arn: str
    table_name: str
    bucket_name: str
    cluster_arn: str
    hint: str
    """Where it is, in words."""
    plan_function_name: str = ""
    """Empty of a stack from before it was an output."""
    endpoint: str = ""
    """Of an embedded cloud."""
    ends_with_command: bool = False
    """It is an embedded cloud that this process has started, and takes its studies along."""

    @classmethod
    def on_aws(cls, stack_name: str, profile: str | None, region: str | None) -> Self:
        """The stack of that name with the ordinary AWS credential chain. Raises NoDeployment."""
        try:
            session = boto3.Session(profile_name=profile, region_name=region)
            stacks = session.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
        except AWS_ERRORS as error:
            raise NoDeployment(
                f"no stack '{stack_name}' to be found on AWS: {error}\n"
                "Deploy it with: cdk deploy; or run on this machine with: --local"
            ) from error
        outputs = {o["OutputKey"]: o["OutputValue"] for o in stacks[0].get("Outputs", [])}
        return cls._from_outputs(session, outputs, f"stack {stack_name} in {session.region_name}")

    @classmethod
    def embedded(cls, cloud: Cloud) -> Self:
        """The stack in an embedded cloud. Points this process's AWS clients to it."""
        os.environ.update(client_environment(cloud.endpoint))
        os.environ["AWS_MAX_ATTEMPTS"] = "2"  # what does not answer on loopback is gone
        os.environ.pop("AWS_PROFILE", None)
        deployment = cls._from_outputs(boto3.Session(), cloud.outputs, f"embedded cloud at {cloud.endpoint}")
        return replace(deployment, endpoint=cloud.endpoint, ends_with_command=cloud.supervisor is not None)

    @classmethod
    def _from_outputs(cls, session: boto3.Session, outputs: dict[str, str], hint: str) -> Self:
        try:
            return cls(
                session=session,
                state_machine_arn=outputs["StateMachineArn"],
                table_name=outputs["TableName"],
                bucket_name=outputs["BucketName"],
                cluster_arn=outputs["ClusterArn"],
                hint=hint,
                plan_function_name=outputs.get("PlanFunctionName", ""),
            )
        except KeyError as error:
            raise NoDeployment(
                f"the stack has no output {error}; is it Lockstep's? Deploy it again"
            ) from error

    def table(self) -> ExperimentTable:
        """Its studies and metrics."""
        return ExperimentTable.named(self.table_name, self.session)

    def tasks(self) -> TaskList:
        """Its tasks."""
        return TaskList.of(self.cluster_arn, self.session)
