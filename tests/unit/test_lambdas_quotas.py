"""Quotas: asked of Service Quotas and CloudWatch, or assumed where they do not tell; never a crash."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import boto3
import pytest

from contract.quota import NEW_ACCOUNT_VCPUS, Quota
from lambdas.plan_study.quotas import read_quotas
from tests.unit.fake_service_quotas import DIMENSIONS, FakeServiceQuotas, quota

ON_DEMAND, SPOT = "L-3032A538", "L-36FBB829"
NOWHERE = "http://127.0.0.1:9"

pytestmark = pytest.mark.usefixtures("aws")


@pytest.fixture
def service_quotas(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServiceQuotas]:
    with FakeServiceQuotas() as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", fake.endpoint)
        yield fake


def use(
    session: boto3.Session, vcpus: float, *, minutes_ago: int, resource_class: str = "Standard/OnDemand"
) -> None:
    session.client("cloudwatch").put_metric_data(
        Namespace="AWS/Usage",
        MetricData=[
            {
                "MetricName": "ResourceCount",
                "Dimensions": [
                    {"Name": name, "Value": value}
                    for name, value in {**DIMENSIONS, "Class": resource_class}.items()
                ],
                "Timestamp": datetime.now(UTC) - timedelta(minutes=minutes_ago),
                "Value": vcpus,
            }
        ],
    )


def test_a_quota_is_read_with_its_latest_use(aws: boto3.Session, service_quotas: FakeServiceQuotas) -> None:
    service_quotas.applied[ON_DEMAND] = quota(ON_DEMAND, 64)
    use(aws, 40, minutes_ago=7)
    use(aws, 12, minutes_ago=3)
    use(aws, 50, minutes_ago=3, resource_class="Standard/Spot")
    assert read_quotas(fixed_vcpus=None, spot=False) == (
        [Quota(capacity="on-demand", vcpus=64, in_use=12, source="Service Quotas")],
        [],
    )


def test_spot_has_a_quota_of_its_own(aws: boto3.Session, service_quotas: FakeServiceQuotas) -> None:
    service_quotas.applied[ON_DEMAND] = quota(ON_DEMAND, 64)
    service_quotas.applied[SPOT] = quota(SPOT, 200, resource_class="Standard/Spot")
    use(aws, 50, minutes_ago=2, resource_class="Standard/Spot")
    quotas, notes = read_quotas(fixed_vcpus=None, spot=True)
    assert [(q.capacity, q.vcpus, q.in_use) for q in quotas] == [("on-demand", 64, 0), ("spot", 200, 50)]
    assert notes == []


def test_a_quota_that_was_never_changed_is_the_default(service_quotas: FakeServiceQuotas) -> None:
    service_quotas.defaults[ON_DEMAND] = quota(ON_DEMAND, 6)
    (found,), _ = read_quotas(fixed_vcpus=None, spot=False)
    assert (found.vcpus, found.source) == (6, "Service Quotas")


@pytest.mark.parametrize("refusal", ["AccessDeniedException", "NoSuchResourceException", "ServiceException"])
def test_what_is_not_told_is_assumed_and_said(service_quotas: FakeServiceQuotas, refusal: str) -> None:
    service_quotas.refusal = refusal
    (found,), (note,) = read_quotas(fixed_vcpus=None, spot=False)
    assert found == Quota(capacity="on-demand", vcpus=NEW_ACCOUNT_VCPUS, source="assumed")
    assert refusal in note
    assert "assumed" in note


def test_services_that_cannot_be_reached_are_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", NOWHERE)
    (found,), (note,) = read_quotas(fixed_vcpus=None, spot=False)
    assert found.source == "assumed"
    assert "Could not connect" in note


def test_without_the_metric_nothing_is_taken_for_in_use(
    service_quotas: FakeServiceQuotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    service_quotas.applied[ON_DEMAND] = quota(ON_DEMAND, 64)
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", NOWHERE)
    (found,), (note,) = read_quotas(fixed_vcpus=None, spot=False)
    assert (found.vcpus, found.in_use, found.source) == (64, 0, "Service Quotas")
    assert "CloudWatch" in note


def test_what_the_deployment_sets_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", NOWHERE)
    quotas, notes = read_quotas(fixed_vcpus=16, spot=True)
    assert [(q.capacity, q.free, q.source) for q in quotas] == [
        ("on-demand", 16, "the deployment's setting"),
        ("spot", 16, "the deployment's setting"),
    ]
    assert notes == []
