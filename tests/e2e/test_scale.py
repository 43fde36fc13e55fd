"""The classic matrix in full: 12 experiments of up to 32 workers, within the budget that docs/scale.md states."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from local.cloud import Cloud
from tests.e2e.machine import QUICK, ROOT, client, running_tasks

PARALLEL = 2
LARGEST = 1 + 32
"""Tasks of the largest experiment: a server and its workers."""


@contextmanager
def watched(cloud: Cloud) -> Iterator[list[int]]:
    """How many tasks ECS means to be running, from time to time."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        ecs, cluster = client(cloud, "ecs"), cloud.outputs["ClusterArn"]
        while not over.wait(0.3):
            pages = ecs.get_paginator("list_tasks").paginate(cluster=cluster)
            seen.append(sum(len(page["taskArns"]) for page in pages))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_the_full_matrix_succeeds_within_its_budget(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    study = {
        "preset": "full",
        "training": {**QUICK, "epochs": 1},
        "max_parallel_experiments": PARALLEL,
    }
    with watched(cloud) as running:
        arn = start(study)
        described = ended(arn, patience_seconds=600)
    assert described["status"] == "SUCCEEDED", described.get("cause")
    assert running_tasks(cloud) == []
    assert LARGEST <= max(running) <= PARALLEL * LARGEST
    states = client(cloud, "stepfunctions")
    (map_run,) = states.list_map_runs(executionArn=arn)["mapRuns"]
    counts = states.describe_map_run(mapRunArn=map_run["mapRunArn"])["executionCounts"]
    assert (counts["succeeded"], counts["total"]) == (12, 12)
    history = states.get_paginator("get_execution_history").paginate(executionArn=arn)
    events = sum(len(page["events"]) for page in history)
    (stated,) = re.findall(r"^\| a study \| (\d+) \|", (ROOT / "docs" / "scale.md").read_text(), re.MULTILINE)
    assert events <= int(stated)
