"""Functions: how every Lambda function of the stack is made: same code asset, own role, own log group, a layer.

The third-party wheels are in layers, built for Lambda's Python without Docker. The embedded cloud runs functions
under the host's Python, which has them: there the layers are left out.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import jsii
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from cdk import REPOSITORY, only

RUNTIME = lambda_.Runtime.PYTHON_3_14
ARCHITECTURE = lambda_.Architecture.ARM_64
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


@jsii.implements(cdk.ILocalBundling)
class WheelBundling:
    """Fill a layer with the wheels of a requirements file; no compiler and no Docker needed."""

    def __init__(self, requirements: Path) -> None:
        self._requirements = requirements

    def try_bundle(self, output_dir: str, options: Any = None, **_: Any) -> bool:  # noqa: ARG002 - CDK's signature
        """Called by CDK with the folder to fill. Raises CalledProcessError when a wheel cannot be had."""
        platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--requirement", str(self._requirements), "--target", str(Path(output_dir, "python"))]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.14", *platforms]
        subprocess.run(command, check=True)
        return True


class Functions(Construct):
    """Maker of the stack's functions."""

    def __init__(self, scope: Construct, construct_id: str, *, on_aws: cdk.CfnCondition) -> None:
        super().__init__(scope, construct_id)
        self._on_aws = on_aws
        self.by_name: dict[str, lambda_.Function] = {}
        """What was made so far."""
        self._code = lambda_.Code.from_asset(
            str(REPOSITORY), exclude=only("contract", "lambdas"), ignore_mode=cdk.IgnoreMode.GIT
        )
        self.base_layer = self._layer("BaseLayer", "base")
        self.report_layer = self._layer("ReportLayer", "report")

    def function(
        self,
        name: str,
        *,
        description: str,
        environment: Mapping[str, str],
        timeout_seconds: int,
        memory_mib: int = 256,
        layers: list[lambda_.LayerVersion] | None = None,
    ) -> lambda_.Function:
        """The function whose handler is `lambdas/<name>/handler.py`, with a role that may write its own logs."""
        construct_id = "".join(word.capitalize() for word in name.split("_"))
        log_group = logs.LogGroup(
            self,
            f"{construct_id}Logs",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        role = iam.Role(
            self,
            f"{construct_id}Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            description=description,
        )
        log_group.grant_write(role)
        function = lambda_.Function(
            self,
            construct_id,
            description=description,
            code=self._code,
            handler=f"lambdas.{name}.handler.handler",
            runtime=RUNTIME,
            architecture=ARCHITECTURE,
            role=role,
            log_group=log_group,
            environment=dict(environment),
            timeout=cdk.Duration.seconds(timeout_seconds),
            memory_size=memory_mib,
            # Segments of each call come from Lambda itself; none are made inside a function, which needs no SDK for it.
            tracing=lambda_.Tracing.ACTIVE,
        )
        self.by_name[name] = function
        self._add_layers(function, [self.base_layer, *(layers or [])])
        return function

    def _add_layers(self, function: lambda_.Function, layers: list[lambda_.LayerVersion]) -> None:
        arns = [layer.layer_version_arn for layer in layers]
        resource = function.node.default_child
        assert isinstance(resource, lambda_.CfnFunction)  # noqa: S101 - tells the type checker what CDK made
        resource.add_property_override(
            "Layers", cdk.Fn.condition_if(self._on_aws.logical_id, arns, cdk.Aws.NO_VALUE)
        )

    def _layer(self, construct_id: str, folder: str) -> lambda_.LayerVersion:
        source = REPOSITORY / "lambdas" / "layers" / folder
        layer = lambda_.LayerVersion(
            self,
            construct_id,
            description=f"Python packages: {folder}",
            compatible_runtimes=[RUNTIME],
            compatible_architectures=[ARCHITECTURE],
            code=lambda_.Code.from_asset(
                str(source),
                # The hash of the pinned requirements: the same template whether or not wheels were bundled.
                asset_hash_type=cdk.AssetHashType.SOURCE,
                bundling=cdk.BundlingOptions(
                    image=RUNTIME.bundling_image, local=WheelBundling(source / "requirements.txt")
                ),
            ),
        )
        resource = layer.node.default_child
        assert isinstance(resource, lambda_.CfnLayerVersion)  # noqa: S101 - tells the type checker what CDK made
        resource.cfn_options.condition = self._on_aws
        return layer
