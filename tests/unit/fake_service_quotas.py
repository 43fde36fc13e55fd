"""A small Service Quotas on a loopback port: the two calls that plan_study makes, over the real protocol.

moto knows the quotas of one service, and not Fargate's. Clients reach it through AWS_ENDPOINT_URL_SERVICE_QUOTAS.
"""

from dataclasses import dataclass, field
from typing import Any

from tests.unit.json_service import JsonService, Refused

DIMENSIONS = {"Class": "Standard/OnDemand", "Resource": "vCPU", "Service": "Fargate", "Type": "Resource"}


def quota(code: str, value: float, *, resource_class: str = "Standard/OnDemand") -> dict[str, Any]:
    """A quota as GetServiceQuota describes it, with the metric of its use."""
    return {
        "ServiceCode": "fargate",
        "QuotaCode": code,
        "Value": value,
        "Adjustable": True,
        "UsageMetric": {
            "MetricNamespace": "AWS/Usage",
            "MetricName": "ResourceCount",
            "MetricDimensions": {**DIMENSIONS, "Class": resource_class},
            "MetricStatisticRecommendation": "Maximum",
        },
    }


@dataclass
class FakeServiceQuotas(JsonService):
    """The quotas that were applied for, and the defaults."""

    applied: dict[str, dict[str, Any]] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusal: str = ""
    """The error code of every answer, if any."""

    def answer(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        """As JsonService."""
        assert request["ServiceCode"] == "fargate"
        if self.refusal:
            raise Refused(self.refusal, "for this test")
        known = {"GetServiceQuota": self.applied, "GetAWSDefaultServiceQuota": self.defaults}[action]
        if found := known.get(request["QuotaCode"]):
            return {"Quota": found}
        raise Refused("NoSuchResourceException", "there is no such quota")
