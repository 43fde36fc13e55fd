"""Grants that several roles of the stack have, each to a part of a resource: rows, objects, tasks, their logs."""

from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3

from cdk.workflow import cluster_tasks


def grant_rows(grantee: iam.IGrantable, table: dynamodb.ITable, action: str, partitions: str) -> None:
    """`action` on the rows of the partitions that a pattern names, and on no other of the table."""
    grantee.grant_principal.add_to_principal_policy(
        iam.PolicyStatement(
            actions=[action],
            resources=[table.table_arn],
            conditions={"ForAllValues:StringLike": {"dynamodb:LeadingKeys": [partitions]}},
        )
    )


def grant_objects(grantee: iam.IGrantable, bucket: s3.IBucket, prefix: str, *actions: str) -> None:
    """List the bucket's objects below a prefix, and `actions` on them."""
    for statement in (
        iam.PolicyStatement(
            actions=["s3:ListBucket"],
            resources=[bucket.bucket_arn],
            conditions={"StringLike": {"s3:prefix": [f"{prefix}/*"]}},
        ),
        iam.PolicyStatement(actions=list(actions), resources=[bucket.arn_for_objects(f"{prefix}/*")]),
    ):
        grantee.grant_principal.add_to_principal_policy(statement)


def grant_task_control(function: lambda_.Function, cluster: ecs.ICluster) -> None:
    """List, describe and stop the tasks of a cluster."""
    function.add_to_role_policy(
        iam.PolicyStatement(
            actions=["ecs:ListTasks"],
            # ListTasks knows no resource but a container instance; the condition binds it.
            resources=["*"],
            conditions={"ArnEquals": {"ecs:cluster": cluster.cluster_arn}},
        )
    )
    function.add_to_role_policy(
        iam.PolicyStatement(actions=["ecs:DescribeTasks", "ecs:StopTask"], resources=[cluster_tasks(cluster)])
    )


def grant_task_logs(function: lambda_.Function, log_group: logs.ILogGroup) -> None:
    """To read what a task that failed wrote last."""
    log_group.grant(function, "logs:GetLogEvents")
