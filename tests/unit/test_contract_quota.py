"""How many experiments fit side by side: never more than the quota, never fewer than would fit."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.quota import LAUNCH_BURST, Demand, Quota, fitting, quota_problems


def demand(vcpus: float, *, spot: float = 0.0, tasks: int = 2, name: str = "one") -> Demand:
    return Demand(name=name, tasks=tasks, on_demand_vcpus=vcpus, spot_vcpus=spot)


def quota(vcpus: float, *, in_use: float = 0.0, **more: object) -> Quota:
    given = {"capacity": "on-demand", "source": "Service Quotas", **more}
    return Quota.model_validate({**given, "vcpus": vcpus, "in_use": in_use})


@given(
    st.lists(st.integers(1, 33), min_size=1, max_size=8),
    st.integers(0, 150),
    st.integers(0, 50),
    st.integers(1, 10),
)
def test_whichever_run_together_they_stay_within_the_quota_and_one_more_would_not(
    vcpus: list[int], limit: int, in_use: int, asked: int
) -> None:
    demands = [demand(amount) for amount in vcpus]
    found = fitting(demands, [quota(limit, in_use=in_use)], asked)
    free = max(0, limit - in_use)
    assert 0 <= found <= asked
    together = min(found, len(vcpus))
    assert all(sum(chosen) <= free for chosen in combinations(vcpus, together))
    if found < asked:
        assert any(sum(chosen) > free for chosen in combinations(vcpus, found + 1))


def test_spot_and_on_demand_are_counted_apart() -> None:
    demands = [demand(1, spot=8), demand(1, spot=8)]
    assert fitting(demands, [quota(4), quota(8, capacity="spot")], 2) == 1
    assert fitting(demands, [quota(4), quota(16, capacity="spot")], 2) == 2


def test_tasks_started_together_stay_within_the_burst() -> None:
    demands = [demand(1, tasks=33) for _ in range(6)]
    assert LAUNCH_BURST == 100
    assert fitting(demands, [], 6) == 3


def test_without_a_quota_that_is_known_all_run_as_asked() -> None:
    assert fitting([demand(640)], [], 4) == 4
    assert quota_problems([demand(640)], []) == []


def test_what_does_not_fit_alone_is_refused_with_the_figure_and_the_way_out() -> None:
    demands = [demand(2, name="small"), demand(33, name="sync_32workers")]
    (problem,) = quota_problems(demands, [quota(6, in_use=2)])
    assert problem == (
        "quota: sync_32workers needs 33 on-demand vCPUs at once; the quota is 6, of which 2 are in use."
        " Choose fewer workers or smaller tasks, or raise it: aws service-quotas request-service-quota-increase"
        " --service-code fargate --quota-code L-3032A538 --desired-value 35"
    )
    assert fitting(demands, [quota(6)], 2) == 0


@pytest.mark.parametrize("needed", [6, 6.5])
def test_one_that_waits_for_others_tasks_alone_is_told_a_value_above_the_quota(needed: float) -> None:
    (problem,) = quota_problems([demand(needed)], [quota(8, in_use=4)])
    assert problem.endswith(
        "--quota-code L-3032A538 --desired-value 11" if needed > 6 else "--desired-value 10"
    )


def test_a_deployments_own_quota_is_raised_where_it_was_set() -> None:
    (problem,) = quota_problems([demand(200)], [quota(128, source="the deployment's setting")])
    assert problem.endswith("deploy with another vcpu_quota")


def test_an_assumed_quota_lowers_and_never_refuses() -> None:
    assumed = quota(6, source="assumed")
    assert fitting([demand(3), demand(3), demand(3)], [assumed], 3) == 2
    assert fitting([demand(33)], [assumed], 3) == 1
    assert quota_problems([demand(33)], [assumed]) == []
