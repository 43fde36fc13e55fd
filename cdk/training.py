"""Training: the cluster and the two task definitions, server and worker, of the one image.

Sizes and settings come with each RunTask as overrides, which go before what a task definition says; no task
definition changes from study to study.
"""

import re
from collections.abc import Mapping

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from cdk import REPOSITORY, only
from contract.task import LOG_STREAM_PREFIX

STOP_TIMEOUT_SECONDS = 30

ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.[a-z.]+/(?P<name>[^:@]+)[:@](?P<tag>.+)"
)


class Training(Construct):
    """Cluster, log group of the tasks, and their task definitions."""

    def __init__(
        self, scope: Construct, construct_id: str, *, vpc: ec2.IVpc, checkpoint_location: str
    ) -> None:
        super().__init__(scope, construct_id)
        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            vpc=vpc,
            container_insights_v2=ecs.ContainerInsights.DISABLED,
        )
        self.log_group = logs.LogGroup(
            self,
            "TaskLogs",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        self._image = self._runtime_image()
        self.execution_role = iam.Role(
            self,
            "ExecutionRole",
            assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"),
            description="ECS itself: pull the image, open log streams",
        )
        self.server = self._task_definition("server", {"CHECKPOINT_LOCATION": checkpoint_location})
        self.worker = self._task_definition("worker", {})

    @property
    def task_definitions(self) -> list[ecs.FargateTaskDefinition]:
        """Server and worker."""
        return [self.server, self.worker]

    def _runtime_image(self) -> ecs.ContainerImage:
        """Built from runtime/Dockerfile at deploy time, or one that is in a registry already (context `image`)."""
        if uri := self.node.try_get_context("image"):
            return self._image_at(uri)
        torch_index = self.node.try_get_context("torch_index")
        return ecs.ContainerImage.from_asset(
            str(REPOSITORY),
            build_args={"TORCH_INDEX": torch_index} if torch_index else None,
            file="runtime/Dockerfile",
            exclude=only("contract", "runtime"),
            ignore_mode=cdk.IgnoreMode.GIT,
            platform=ecr_assets.Platform.LINUX_AMD64,
        )

    def _image_at(self, uri: str) -> ecs.ContainerImage:
        """An image in ECR, with the grant to pull it, or in a public registry."""
        in_ecr = ECR_IMAGE.fullmatch(uri)
        if in_ecr is None:
            return ecs.ContainerImage.from_registry(uri)
        repository = ecr.Repository.from_repository_attributes(
            self,
            "ImageRepository",
            repository_name=in_ecr["name"],
            repository_arn=cdk.Stack.of(self).format_arn(
                service="ecr",
                account=in_ecr["account"],
                region=in_ecr["region"],
                resource="repository",
                resource_name=in_ecr["name"],
            ),
        )
        return ecs.ContainerImage.from_ecr_repository(repository, in_ecr["tag"])

    def _task_definition(self, role: str, environment: Mapping[str, str]) -> ecs.FargateTaskDefinition:
        definition = ecs.FargateTaskDefinition(
            self,
            role.capitalize(),
            cpu=1024,
            memory_limit_mib=2048,
            execution_role=self.execution_role,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        definition.add_container(
            role,
            container_name=role,
            image=self._image,
            command=[role],
            environment=dict(environment),
            essential=True,
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix=LOG_STREAM_PREFIX,
                log_group=self.log_group,
                # The metrics are log lines: rather hold a task up than lose one. ECS's own default drops lines.
                mode=ecs.AwsLogDriverMode.BLOCKING,
            ),
            stop_timeout=cdk.Duration.seconds(STOP_TIMEOUT_SECONDS),
        )
        return definition
