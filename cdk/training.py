"""Training: the cluster and the three task definitions, server, worker and prepare, of the one image.

Sizes and settings come with each RunTask as overrides, which go before what a task definition says; no task
definition changes from study to study.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from cdk import REPOSITORY, only
from cdk.acknowledgements import acknowledge
from cdk.settings import ECR_IMAGE, Settings
from contract.task import LOG_STREAM_PREFIX

STOP_TIMEOUT_SECONDS = 30

USER: Final = "10001:10001"
"""The image says the same; here it holds for an image of whatever origin."""

SCRATCH: Final = "/tmp"  # noqa: S108 - the one folder of a task that can be written to
"""Where a data set is unpacked. The image declares it as a volume: else ECS would give it to root."""


class Processor(NamedTuple):
    """One of the two that Fargate has, as a task definition says it and as an image does."""

    task: ecs.CpuArchitecture
    image: ecr_assets.Platform


PROCESSORS: Final[Mapping[str, Processor]] = {
    "x86_64": Processor(ecs.CpuArchitecture.X86_64, ecr_assets.Platform.LINUX_AMD64),
    "arm64": Processor(ecs.CpuArchitecture.ARM64, ecr_assets.Platform.LINUX_ARM64),
}


class Training(Construct):
    """Cluster, log group of the tasks, and their task definitions."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        vpc: ec2.IVpc,
        checkpoint_location: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._processor = PROCESSORS[settings.cpu_architecture]
        self.cluster = self._cluster(vpc)
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
        mirror = {"DATASET_MIRROR": settings.dataset_mirror} if settings.dataset_mirror else {}
        self.prepare = self._task_definition("prepare", mirror)

    @property
    def task_definitions(self) -> list[ecs.FargateTaskDefinition]:
        """Server, worker and what prepares a data set."""
        return [self.server, self.worker, self.prepare]

    def _cluster(self, vpc: ec2.IVpc) -> ecs.Cluster:
        """Container Insights costs as long as tasks run: some 50 metrics, 2 cents an hour in all."""
        cluster = ecs.Cluster(self, "Cluster", vpc=vpc, container_insights_v2=ecs.ContainerInsights.ENABLED)
        resource = cluster.node.default_child
        assert isinstance(resource, ecs.CfnCluster)  # noqa: S101 - tells the type checker what CDK made
        # As a property: what CDK would write has a type that the embedded cloud does not know.
        resource.capacity_providers = ["FARGATE", "FARGATE_SPOT"]
        return cluster

    def _runtime_image(self) -> ecs.ContainerImage:
        """Built from runtime/Dockerfile at deploy time, or one that is in a registry already (setting `image`)."""
        if uri := self._settings.image:
            return self._image_at(uri)
        torch_index = self._settings.torch_index
        return ecs.ContainerImage.from_asset(
            str(REPOSITORY),
            build_args={"TORCH_INDEX": torch_index} if torch_index else None,
            file="runtime/Dockerfile",
            exclude=only("contract", "runtime"),
            ignore_mode=cdk.IgnoreMode.GIT,
            platform=self._processor.image,
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
                cpu_architecture=self._processor.task,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        resource = definition.node.default_child
        assert isinstance(resource, cdk.CfnResource)  # noqa: S101 - tells the type checker what CDK made
        # A revision that a deployment replaces stays: executions that began with it start tasks of it.
        resource.cfn_options.update_replace_policy = cdk.CfnDeletionPolicy.RETAIN
        resource.cfn_options.deletion_policy = cdk.CfnDeletionPolicy.DELETE
        definition.add_volume(name="scratch")
        container = definition.add_container(
            role,
            container_name=role,
            image=self._image,
            command=[role],
            environment=dict(environment),
            essential=True,
            user=USER,
            readonly_root_filesystem=True,
            linux_parameters=self._without_capabilities(role),
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix=LOG_STREAM_PREFIX,
                log_group=self.log_group,
                # The metrics are log lines: rather hold a task up than lose one. ECS's own default drops lines.
                mode=ecs.AwsLogDriverMode.BLOCKING,
            ),
            stop_timeout=cdk.Duration.seconds(STOP_TIMEOUT_SECONDS),
        )
        container.add_mount_points(
            ecs.MountPoint(container_path=SCRATCH, source_volume="scratch", read_only=False)
        )
        acknowledge(
            definition, {"AwsSolutions-ECS2": "the one variable is a place in the stack's bucket, no secret"}
        )
        return definition

    def _without_capabilities(self, role: str) -> ecs.LinuxParameters:
        """None that a file could bring back: Fargate has no setting for Docker's no-new-privileges."""
        parameters = ecs.LinuxParameters(self, f"{role.capitalize()}Linux")
        parameters.drop_capabilities(ecs.Capability.ALL)
        return parameters
