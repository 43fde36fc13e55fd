"""Network: where tasks run; they reach AWS, and each other on the server's ports, and nobody reaches them.

By default a VPC of public subnets, which costs nothing while no study runs: no NAT gateway, no load balancer, no
interface endpoint. With `network` private, subnets without a way to the internet and endpoints to AWS. With `vpc_id`,
subnets of a VPC whose ways are its owner's.
"""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct

from cdk.conditions import for_aws_alone
from cdk.endpoints import Endpoints
from cdk.settings import Settings
from contract.task import SERVER_PORT

VPC_CIDR = "10.73.0.0/16"

DATA_PORT = SERVER_PORT + 1
"""Where a server takes tensors, beside the calls on SERVER_PORT."""


class Network(Construct):
    """The VPC, the subnets of tasks and the security group of all training tasks."""

    subnets: list[ec2.ISubnet]

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: Settings, on_aws: cdk.CfnCondition
    ) -> None:
        super().__init__(scope, construct_id)
        self.assign_public_ip = settings.network == "public"
        self.vpc = self._imported(settings) if settings.vpc_id else self._own(on_aws)
        self.task_security_group = ec2.SecurityGroup(
            self,
            "Tasks",
            vpc=self.vpc,
            description="Training tasks: ports of the parameter server from one another, nothing else inbound",
            allow_all_outbound=True,
        )
        self._let_workers_reach_servers(on_aws)
        if not settings.vpc_id and settings.network == "private":
            endpoints = Endpoints(self, "Endpoints", vpc=self.vpc, used_by=self.task_security_group)
            for_aws_alone(endpoints, on_aws)

    def _imported(self, settings: Settings) -> ec2.IVpc:
        self.subnets = [
            ec2.Subnet.from_subnet_id(self, f"Subnet{number}", subnet_id)
            for number, subnet_id in enumerate(settings.subnet_ids, 1)
        ]
        return ec2.Vpc.from_vpc_attributes(
            self,
            "Vpc",
            vpc_id=settings.vpc_id or "",
            # Nobody asks for them: tasks are given subnets by id. A lookup would call AWS at synth time.
            availability_zones=["those-of-the-subnets"],
        )

    def _own(self, on_aws: cdk.CfnCondition) -> ec2.IVpc:
        kind = ec2.SubnetType.PUBLIC if self.assign_public_ip else ec2.SubnetType.PRIVATE_ISOLATED
        vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(VPC_CIDR),
            max_azs=2,
            nat_gateways=0,
            # CDK would do it with a function of its own; nothing is put into that group.
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="Public" if self.assign_public_ip else "Private",
                    subnet_type=kind,
                    cidr_mask=20,
                    # RunTask asks for a task's address; nothing else that may come here gets one.
                    map_public_ip_on_launch=False if self.assign_public_ip else None,
                )
            ],
        )
        vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        vpc.add_gateway_endpoint("DynamoDB", service=ec2.GatewayVpcEndpointAwsService.DYNAMODB)
        self.subnets = vpc.public_subnets if self.assign_public_ip else vpc.isolated_subnets
        self._log_flows(vpc, on_aws)
        return vpc

    def _log_flows(self, vpc: ec2.IVpc, on_aws: cdk.CfnCondition) -> None:
        """Who talked to whom: shows a worker that does not reach its server. A line per connection and 10 minutes."""
        log_group = logs.LogGroup(
            self,
            "FlowLogs",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        flows = ec2.FlowLog(
            self,
            "Flows",
            resource_type=ec2.FlowLogResourceType.from_vpc(vpc),
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(log_group),
        )
        for_aws_alone(log_group, on_aws)
        for_aws_alone(flows, on_aws)

    def _let_workers_reach_servers(self, on_aws: cdk.CfnCondition) -> None:
        """From this security group alone. On AWS alone: the embedded cloud knows no such rule, and guards no port."""
        group = self.task_security_group.security_group_id
        ingress = ec2.CfnSecurityGroupIngress(
            self,
            "WorkersToServers",
            group_id=group,
            source_security_group_id=group,
            ip_protocol="tcp",
            from_port=SERVER_PORT,
            to_port=DATA_PORT,
            description="workers to the parameter server: control and data",
        )
        for_aws_alone(ingress, on_aws)
