"""AWS for the functions' tests: moto's services in this process, and an ECS whose tasks end as a test says."""

from collections.abc import Iterator

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from moto import mock_aws

from lambdas.rows import Execution
from lambdas.table import ExperimentTable
from tests.unit.fake_ecs import CLUSTER, FakeEcs

TABLE, BUCKET, LOG_GROUP = "lockstep-table", "lockstep-results", "lockstep-tasks"
STACK = "Lockstep"
EXECUTION = Execution(
    "arn:aws:states:us-east-1:123456789012:execution:lockstep:study-1", "2026-03-01T12:00:00Z"
)


class FunctionContext(LambdaContext):
    """What Powertools asks of a function's context."""

    _function_name = "function"
    _memory_limit_in_mb = 256
    _invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:function"
    _aws_request_id = "00000000-0000-0000-0000-000000000000"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 240_000


@pytest.fixture
def context() -> LambdaContext:
    return FunctionContext()


@pytest.fixture(scope="session")
def session() -> boto3.Session:
    """One for all tests: it has read the descriptions of the services, which takes longer than most tests."""
    return boto3.Session("test", "test", region_name="us-east-1")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, session: boto3.Session) -> Iterator[boto3.Session]:
    """An empty account, and the environment of a function in it."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("TABLE_NAME", TABLE)
    monkeypatch.setenv("BUCKET_NAME", BUCKET)
    monkeypatch.setenv("CLUSTER_ARN", CLUSTER)
    monkeypatch.setenv("STACK_NAME", STACK)
    monkeypatch.setenv("DATASETS_LOCATION", f"s3://{BUCKET}/datasets")
    monkeypatch.setenv("LOG_GROUP_NAME", LOG_GROUP)
    monkeypatch.setenv("PATIENCE_SECONDS", "180")
    monkeypatch.setenv("QUIET_SECONDS", "0")
    monkeypatch.setenv("EMBEDDED_CLOUD", "false")
    monkeypatch.setenv("VCPU_QUOTA", "64")
    monkeypatch.setenv("PRICES", "")
    monkeypatch.setenv("CPU_ARCHITECTURE", "x86_64")
    monkeypatch.setenv("PUBLIC_IPV4", "true")
    with mock_aws(config={"core": {"reset_boto3_session": False}}):
        yield session


@pytest.fixture
def table(aws: boto3.Session) -> ExperimentTable:
    """An empty table with the contract's keys."""
    aws.client("dynamodb").create_table(
        TableName=TABLE,
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "S"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    return ExperimentTable.named(TABLE)


@pytest.fixture
def ecs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEcs]:
    """A cluster without tasks, which the functions' ECS clients reach."""
    with FakeEcs() as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECS", fake.endpoint)
        yield fake
