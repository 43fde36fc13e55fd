"""Network: a VPC of public subnets; tasks reach AWS, and each other on the server's port, and nobody reaches them.

No NAT gateway and no load balancer: nothing costs while no study runs.
"""

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from contract.task import SERVER_PORT

VPC_CIDR = "10.73.0.0/16"
"""A literal, because the security group allows it by value: the embedded cloud takes no self-reference."""


class Network(Construct):
    """VPC, gateway endpoints and the security group of all training tasks."""

    def __init__(self, scope: Construct, construct_id: str) -> None:
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
            description="Training tasks: port of the parameter server from inside the VPC, nothing else inbound",
            allow_all_outbound=True,
        )
        self.task_security_group.add_ingress_rule(
            ec2.Peer.ipv4(VPC_CIDR), ec2.Port.tcp(SERVER_PORT), "workers to the parameter server"
        )
