"""Storage: the one table of studies and metrics, the bucket that reports are read from, and who has read it.

Encrypted at rest with keys that AWS owns, which cost nothing. A key of one's own costs 1 USD a month and a fee for
each call, and would keep out nobody whom the roles let in: there is one account, and no data but its own.
"""

from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_s3 as s3
from constructs import Construct

from cdk.acknowledgements import acknowledge
from contract.results import DATASETS
from contract.table import EXPIRY, PARTITION_KEY, SORT_KEY

CHECKPOINTS: Final = "checkpoints"
"""The prefix of the bucket that servers keep checkpoints under."""

CHECKPOINT_DAYS = 7
"""Nobody goes on from an older one: no experiment lasts longer than a day."""

ACCESS_LOG_DAYS = 90


class Storage(Construct):
    """Table and buckets. Reports outlive the stack; rows, which they are made from, do not."""

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        self.table = dynamodb.Table(
            self,
            "Table",
            partition_key=dynamodb.Attribute(name=PARTITION_KEY, type=dynamodb.AttributeType.STRING),
            sort_key=dynamodb.Attribute(name=SORT_KEY, type=dynamodb.AttributeType.STRING),
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            time_to_live_attribute=EXPIRY,
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        # Kept like what it tells of; and a bucket with something in it cannot be removed.
        access_logs = s3.Bucket(
            self,
            "AccessLogs",
            encryption=s3.BucketEncryption.S3_MANAGED,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            lifecycle_rules=[s3.LifecycleRule(expiration=cdk.Duration.days(ACCESS_LOG_DAYS))],
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )
        acknowledge(
            access_logs, {"AwsSolutions-S1": "it is the bucket of access logs: logging itself would not end"}
        )
        self.bucket = s3.Bucket(
            self,
            "Results",
            encryption=s3.BucketEncryption.S3_MANAGED,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            server_access_logs_bucket=access_logs,
            server_access_logs_prefix="results/",
            lifecycle_rules=[
                s3.LifecycleRule(prefix=f"{CHECKPOINTS}/", expiration=cdk.Duration.days(CHECKPOINT_DAYS))
            ],
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )

    @property
    def checkpoint_location(self) -> str:
        """Where servers keep checkpoints whose study does not say where."""
        return f"s3://{self.bucket.bucket_name}/{CHECKPOINTS}"

    @property
    def datasets_location(self) -> str:
        """Below which data sets are kept, one prefix each."""
        return f"s3://{self.bucket.bucket_name}/{DATASETS}"
