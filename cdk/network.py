"""Network: a VPC of public subnets; tasks reach AWS, and each other on the server's ports, and nobody reaches them.

No NAT gateway and no load balancer: nothing costs while no study runs.
"""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from contract.task import SERVER_PORT

VPC_CIDR = "10.73.0.0/16"

DATA_PORT = SERVER_PORT + 1
"""Where a server takes tensors, beside the calls on SERVER_PORT."""


class Network(Construct):
    """VPC, gateway endpoints and the security group of all training tasks."""

    def __init__(self, scope: Construct, construct_id: str, *, on_aws: cdk.CfnCondition) -> None:
        super().__init__(scope, construct_id)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(VPC_CIDR),
            max_azs=2,
            nat_gateways=0,
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="Public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=20)
            ],
        )
        self.vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        self.vpc.add_gateway_endpoint("DynamoDB", service=ec2.GatewayVpcEndpointAwsService.DYNAMODB)
        self.task_security_group = ec2.SecurityGroup(
            self,
            "Tasks",
            vpc=self.vpc,
            description="Training tasks: ports of the parameter server from one another, nothing else inbound",
            allow_all_outbound=True,
        )
        self._let_workers_reach_servers(on_aws)

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
        ingress.cfn_options.condition = on_aws
