"""The full matrix at once: twelve experiments with 1 to 32 workers stay within the plan and the event budget."""

import time
from collections.abc import Callable
from typing import Any

from contract.forecast import Forecast
from local.cloud import Cloud
from tests.e2e.machine import client

FULL = {
    "preset": "full",
    "training": {"dataset": "synthetic", "model": "logistic-regression", "epochs": 1, "batch_size": 16},
    "compute": {"mode": "emulated", "distribution": "constant", "mean_ms": 8},
    # Two of the largest do not fit into the embedded cloud's quota of 128 vCPUs; two of the others do.
    "worker": {"cpu": 2048, "memory": 4096},
    "max_parallel_experiments": 4,
}
"""With one worker 128 steps, a second; with 32 workers 4 steps each."""

EXPERIMENTS = 12

MAX_HISTORY_EVENTS = 25_000
"""Of one execution. Source: Step Functions Developer Guide, service quotas."""

PATIENCE_SECONDS = 240


def events_of(cloud: Cloud, execution_arn: str) -> int:
    """On AWS, less: there each experiment has an execution and a history of its own."""
    pages = client(cloud, "stepfunctions").get_paginator("get_execution_history")
    return sum(len(page["events"]) for page in pages.paginate(executionArn=execution_arn))


def test_the_full_matrix_succeeds_within_the_planned_tasks_and_events(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given the plan of it
    planned = Forecast.model_validate_json(ended(start({**FULL, "dry_run": True}, "-plan"))["output"])
    assert len(planned.experiments) == EXPERIMENTS
    assert planned.max_parallel_experiments == 1
    assert planned.peak_tasks == 33
    assert planned.peak_vcpus <= 128

    # When it runs, and the tasks are counted all the while
    arn = start(FULL)
    states, peak, deadline = client(cloud, "stepfunctions"), 0, time.monotonic() + PATIENCE_SECONDS
    while states.describe_execution(executionArn=arn)["status"] == "RUNNING" and time.monotonic() < deadline:
        peak = max(peak, running(cloud))
        time.sleep(0.2)

    # Then all of it completed, and never did more run than planned
    described = ended(arn, patience_seconds=1)
    assert described["status"] == "SUCCEEDED", described.get("cause")
    assert 30 <= peak <= planned.peak_tasks

    # And the history is far from full, though here it holds the events of all experiments
    assert 500 < events_of(cloud, arn) <= MAX_HISTORY_EVENTS / 5


def running(cloud: Cloud) -> int:
    """Tasks that ECS means to be running, pending ones among them."""
    pages = client(cloud, "ecs").get_paginator("list_tasks").paginate(cluster=cloud.outputs["ClusterArn"])
    return sum(len(page["taskArns"]) for page in pages)
