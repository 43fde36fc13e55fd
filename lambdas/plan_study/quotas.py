"""Adapter to Service Quotas and CloudWatch: how many Fargate vCPUs the account may run, and how many it does.

Used by plan_study. What cannot be asked is assumed, and said: a plan is never lost for want of a permission.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from contract.quota import NEW_ACCOUNT_VCPUS, QUOTA_CODES, Capacity, Quota

if TYPE_CHECKING:
    from mypy_boto3_service_quotas import ServiceQuotasClient
    from mypy_boto3_service_quotas.type_defs import MetricInfoTypeDef, ServiceQuotaTypeDef

SERVICE: Final = "fargate"

USAGE_MINUTES: Final = 10
"""Usage metrics come once a minute, and some minutes late."""

HURRIED: Final = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
"""What does not answer must not keep a study from being planned."""


def read_quotas(*, fixed_vcpus: float | None, spot: bool) -> tuple[list[Quota], list[str]]:
    """The quotas that a study comes under, with or without Spot workers, and what is to be said of them.

    `fixed_vcpus`: what the deployment sets in place of asking, for either capacity.
    """
    capacities: list[Capacity] = ["on-demand", "spot"] if spot else ["on-demand"]
    if fixed_vcpus is not None:
        setting = [
            Quota(capacity=capacity, vcpus=fixed_vcpus, source="the deployment's setting")
            for capacity in capacities
        ]
        return setting, []
    quotas, notes = [], []
    for capacity in capacities:
        quota, told = _asked(capacity)
        quotas.append(quota)
        notes += told
    return quotas, notes


def _asked(capacity: Capacity) -> tuple[Quota, list[str]]:
    try:
        told = _quota(boto3.client("service-quotas", config=HURRIED), QUOTA_CODES[capacity])
    except (ClientError, BotoCoreError) as error:
        note = (
            f"quota: Service Quotas does not tell the {capacity} vCPUs ({_one_line(error)}); assumed are the"
            f" {NEW_ACCOUNT_VCPUS} of a new account, and a study that needs more is started all the same"
        )
        return Quota(capacity=capacity, vcpus=NEW_ACCOUNT_VCPUS, source="assumed"), [note]
    try:
        in_use, notes = _usage(told.get("UsageMetric")), []
    except (ClientError, BotoCoreError) as error:
        in_use = 0.0
        notes = [
            f"quota: CloudWatch does not tell which {capacity} vCPUs are in use ({_one_line(error)}): none is assumed"
        ]
    return Quota(capacity=capacity, vcpus=told["Value"], in_use=in_use, source="Service Quotas"), notes


def _quota(client: "ServiceQuotasClient", code: str) -> "ServiceQuotaTypeDef":
    """The value that applies to the account; of one that was never changed Service Quotas may know the default alone.

    Source: Service Quotas API Reference, GetServiceQuota.
    """
    try:
        return client.get_service_quota(ServiceCode=SERVICE, QuotaCode=code)["Quota"]
    except client.exceptions.NoSuchResourceException:
        return client.get_aws_default_service_quota(ServiceCode=SERVICE, QuotaCode=code)["Quota"]


def _usage(metric: "MetricInfoTypeDef | None") -> float:
    """What of a quota is in use now, as the metric says which Service Quotas names beside the quota.

    Source: ECS Developer Guide, AWS Fargate usage metrics (AWS/Usage, ResourceCount).
    """
    if not metric or "MetricName" not in metric:
        return 0.0
    now = datetime.now(UTC)
    points = boto3.client("cloudwatch", config=HURRIED).get_metric_statistics(
        Namespace=metric["MetricNamespace"],
        MetricName=metric["MetricName"],
        Dimensions=[{"Name": name, "Value": value} for name, value in metric["MetricDimensions"].items()],
        StartTime=now - timedelta(minutes=USAGE_MINUTES),
        EndTime=now,
        Period=60,
        Statistics=["Maximum"],
    )["Datapoints"]
    latest = max(points, key=lambda point: point["Timestamp"], default=None)
    return latest["Maximum"] if latest else 0.0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
