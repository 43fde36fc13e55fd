"""Workflow: the state machine from its ASL document, with a role that may do what its states do and no more."""

from collections.abc import Mapping, Sequence

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

import statemachine
from cdk.acknowledgements import acknowledge_wildcards
from cdk.training import Training


class Workflow(Construct):
    """The state machine of studies."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        training: Training,
        table: dynamodb.ITable,
        subnets: Sequence[ec2.ISubnet],
        security_group: ec2.ISecurityGroup,
        assign_public_ip: bool,
        functions: Mapping[str, lambda_.IFunction],
    ) -> None:
        super().__init__(scope, construct_id)
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal("states.amazonaws.com"),
            description="The state machine: start and stop training tasks, call its functions, keep its rows",
        )
        log_group = logs.LogGroup(
            self,
            "Logs",
            # Under this prefix delivery needs no policy of its own for each group, of which an account has ten.
            log_group_name=f"/aws/vendedlogs/states/{cdk.Stack.of(self).stack_name}",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        self.state_machine = sfn.StateMachine(
            self,
            "StateMachine",
            role=self.role,
            definition_body=sfn.DefinitionBody.from_string(statemachine.definition()),
            # Without data: inputs and outputs hold task tokens.
            logs=sfn.LogOptions(destination=log_group, level=sfn.LogLevel.ALL, include_execution_data=False),
            tracing_enabled=True,
            definition_substitutions={
                "Region": cdk.Aws.REGION,
                "TableName": table.table_name,
                "ClusterArn": training.cluster.cluster_arn,
                "ServerTaskDefinition": training.server.task_definition_arn,
                "WorkerTaskDefinition": training.worker.task_definition_arn,
                "PrepareTaskDefinition": training.prepare.task_definition_arn,
                "Subnets": cdk.Fn.join(",", [subnet.subnet_id for subnet in subnets]),
                "SecurityGroup": security_group.security_group_id,
                "AssignPublicIp": "ENABLED" if assign_public_ip else "DISABLED",
                **{name: function.function_arn for name, function in functions.items()},
            },
        )
        # MaxConcurrency and TimeoutSeconds take JSONata expressions (Step Functions Developer Guide); the linter errs,
        # and fails (E1101) when it says so of a state in a branch.
        resource = self.state_machine.node.default_child
        assert isinstance(resource, sfn.CfnStateMachine)  # noqa: S101 - tells the type checker what CDK made
        resource.add_metadata("cfn-lint", {"config": {"ignore_checks": ["E3601", "E1101"]}})
        # Not grant_invoke: that grants versions and aliases too, which no state invokes.
        self.role.add_to_policy(
            iam.PolicyStatement(
                actions=["lambda:InvokeFunction"],
                resources=[function.function_arn for function in functions.values()],
            )
        )
        table.grant(self.role, "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem")
        self._grant_tasks(training)
        self.grant_own_tokens("CloseRendezvous", self.role, "states:SendTaskFailure")
        self._grant_own_executions()

    def grant_own_tokens(self, policy_id: str, role: iam.IRole, *actions: str) -> None:
        """`actions` on the task tokens of this state machine: a policy of its own, against the cycle.

        Tokens belong to the executions of experiments, whose state machine is `<this one>/<label of the Map>` (Step
        Functions API Reference, StartExecution). Which of the two AWS asks for is written nowhere.
        """
        arn = self.state_machine.state_machine_arn
        statement = iam.PolicyStatement(actions=list(actions), resources=[arn, f"{arn}/*"])
        iam.Policy(self, policy_id, roles=[role], statements=[statement])
        acknowledge_wildcards(
            cdk.Stack.of(self), {f"{arn}/*": "the labels of the state machine's own Distributed Maps"}
        )

    def _grant_own_executions(self) -> None:
        """What a Distributed Map needs: it starts, watches, stops and redrives executions of its own state machine.

        Source: Step Functions Developer Guide, IAM policies for using Distributed Map states.
        """
        name = self.state_machine.state_machine_name
        own, children = self._executions(f"{name}:*"), self._executions(f"{name}/*:*")
        acknowledge_wildcards(
            cdk.Stack.of(self),
            {
                own: "users name executions, of this one state machine",
                children: "AWS names those of a Map's items",
            },
        )
        iam.Policy(
            self,
            "OwnExecutions",
            roles=[self.role],
            statements=[
                iam.PolicyStatement(
                    actions=["states:StartExecution"], resources=[self.state_machine.state_machine_arn]
                ),
                iam.PolicyStatement(
                    actions=["states:DescribeExecution", "states:StopExecution"],
                    resources=[own],
                ),
                iam.PolicyStatement(actions=["states:RedriveExecution"], resources=[children]),
            ],
        )

    def _executions(self, pattern: str) -> str:
        return cdk.Stack.of(self).format_arn(
            service="states",
            resource="execution",
            resource_name=pattern,
            arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
        )

    def _grant_tasks(self, training: Training) -> None:
        """What `ecs:runTask.sync` needs. Source: Step Functions Developer Guide, IAM policies for Amazon ECS."""
        stack = cdk.Stack.of(self)
        revisions = [self._revisions(definition) for definition in training.task_definitions]
        acknowledge_wildcards(
            stack, dict.fromkeys(revisions, "an execution goes on with the revisions that it began with")
        )
        self.role.add_to_policy(
            iam.PolicyStatement(
                actions=["ecs:RunTask"],
                resources=revisions,
                conditions={"ArnEquals": {"ecs:cluster": training.cluster.cluster_arn}},
            )
        )
        self.role.add_to_policy(
            iam.PolicyStatement(
                actions=["ecs:TagResource"],
                resources=[cluster_tasks(training.cluster)],
                # Source: Amazon ECS Developer Guide, tagging authorization.
                conditions={"StringEquals": {"ecs:CreateAction": "RunTask"}},
            )
        )
        self.role.add_to_policy(
            iam.PolicyStatement(
                actions=["ecs:StopTask", "ecs:DescribeTasks"], resources=[cluster_tasks(training.cluster)]
            )
        )
        self.role.add_to_policy(
            iam.PolicyStatement(
                actions=["iam:PassRole"],
                resources=[
                    training.execution_role.role_arn,
                    *(definition.task_role.role_arn for definition in training.task_definitions),
                ],
                conditions={"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}},
            )
        )
        rule = stack.format_arn(
            service="events", resource="rule", resource_name="StepFunctionsGetEventsForECSTaskRule"
        )
        self.role.add_to_policy(
            iam.PolicyStatement(
                actions=["events:PutTargets", "events:PutRule", "events:DescribeRule"], resources=[rule]
            )
        )

    @staticmethod
    def _revisions(definition: ecs.TaskDefinition) -> str:
        return cdk.Stack.of(definition).format_arn(
            service="ecs", resource="task-definition", resource_name=f"{definition.family}:*"
        )


def cluster_tasks(cluster: ecs.ICluster) -> str:
    """ARN pattern of the tasks of one cluster."""
    return cdk.Stack.of(cluster).format_arn(
        service="ecs", resource="task", resource_name=f"{cluster.cluster_name}/*"
    )
