"""The classic matrix in full: 12 experiments of up to 32 workers, within the budget that docs/scale.md states."""

import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from contract.plan import study_of_group
from contract.study import PRESET_WORKERS, Preset
from local.cloud import Cloud
from tests.e2e.machine import QUICK, ROOT, client, running_tasks

PARALLEL = 2
LARGEST = 1 + 32
"""Tasks of the largest experiment: a server and its workers."""
TASKS = 2 * sum(1 + workers for workers in PRESET_WORKERS[Preset.FULL])


def peak(cloud: Cloud, study_id: str) -> int:
    """How many tasks of a study there were at a time, from their creation to their end."""
    ecs, cluster = client(cloud, "ecs"), cloud.outputs["ClusterArn"]
    changes: list[tuple[Any, int]] = []
    for page in ecs.get_paginator("list_tasks").paginate(cluster=cluster, desiredStatus="STOPPED"):
        for task in ecs.describe_tasks(cluster=cluster, tasks=page["taskArns"])["tasks"]:
            if study_of_group(task["group"]) == study_id:
                changes += [(task["createdAt"], 1), (task["stoppedAt"], -1)]
    assert len(changes) == 2 * TASKS
    return max(accumulate(change for _, change in sorted(changes)))


def test_the_full_matrix_succeeds_within_its_budget(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    study = {
        "preset": "full",
        "training": {**QUICK, "epochs": 1},
        "max_parallel_experiments": PARALLEL,
    }
    arn = start(study)
    described = ended(arn, patience_seconds=600)
    assert described["status"] == "SUCCEEDED", described.get("cause")
    assert running_tasks(cloud) == []
    assert LARGEST <= peak(cloud, arn.rsplit(":", 1)[1]) <= PARALLEL * LARGEST
    states = client(cloud, "stepfunctions")
    (map_run,) = states.list_map_runs(executionArn=arn)["mapRuns"]
    counts = states.describe_map_run(mapRunArn=map_run["mapRunArn"])["executionCounts"]
    assert (counts["succeeded"], counts["total"]) == (12, 12)
    history = states.get_paginator("get_execution_history").paginate(executionArn=arn)
    events = sum(len(page["events"]) for page in history)
    (stated,) = re.findall(r"^\| a study \| (\d+) \|", (ROOT / "docs" / "scale.md").read_text(), re.MULTILINE)
    assert events <= int(stated)
