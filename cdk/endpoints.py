"""Endpoints: how tasks without a way to the internet reach AWS. Each costs by the hour and subnet, studies or not."""

from collections.abc import Mapping
from typing import Final

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

SERVICES: Final[Mapping[str, ec2.InterfaceVpcEndpointAwsService]] = {
    "EcrApi": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "States": ec2.InterfaceVpcEndpointAwsService.STEP_FUNCTIONS,
}
"""What is called from a task's network interface: the image's registry (its layers lie in S3, which has a gateway), the
log driver, and the server, which answers its task token. ECS itself reaches Fargate tasks by its own ways, and their
credentials come from the task metadata address.

Source: Amazon ECS Developer Guide, "Migrating to Linux platform version 1.4.0" and "Amazon ECS interface
VPC endpoints".
"""


class Endpoints(Construct):
    """Interface endpoints in all subnets of tasks, for one security group alone."""

    def __init__(
        self, scope: Construct, construct_id: str, *, vpc: ec2.IVpc, used_by: ec2.ISecurityGroup
    ) -> None:
        super().__init__(scope, construct_id)
        guard = ec2.SecurityGroup(
            self,
            "Guard",
            vpc=vpc,
            description="Endpoints: HTTPS from training tasks",
            allow_all_outbound=False,
        )
        ec2.CfnSecurityGroupIngress(
            self,
            "FromTasks",
            group_id=guard.security_group_id,
            source_security_group_id=used_by.security_group_id,
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            description="training tasks to AWS",
        )
        for name, service in SERVICES.items():
            ec2.InterfaceVpcEndpoint(
                self,
                name,
                vpc=vpc,
                service=service,
                subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
                security_groups=[guard],
                open=False,
            )
