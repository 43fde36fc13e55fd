"""The full matrix at once: twelve experiments with 1 to 32 workers, within the plan and the budget of docs/scale.md."""

import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from contract.forecast import Forecast
from contract.plan import study_of_group
from contract.study import PRESET_WORKERS, Preset
from local.cloud import Cloud
from tests.e2e.machine import PATIENCE_SECONDS, ROOT, client, running_tasks, study_of

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
TASKS = 2 * sum(1 + workers for workers in PRESET_WORKERS[Preset.FULL])
LARGEST = 1 + 32
"""Tasks of the largest experiment: a server and its workers."""


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


def test_the_full_matrix_succeeds_within_the_planned_tasks_and_events(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given the plan of it
    planned = Forecast.model_validate_json(ended(start({**FULL, "dry_run": True}, "-plan"))["output"])
    assert len(planned.experiments) == EXPERIMENTS
    assert (planned.max_parallel_experiments, planned.peak_tasks) == (1, LARGEST)
    assert planned.peak_vcpus <= 128

    # When it runs
    arn = start(FULL)
    described = ended(arn, patience_seconds=4 * PATIENCE_SECONDS)

    # Then all of it completed, and never did more run than planned
    assert described["status"] == "SUCCEEDED", described.get("cause")
    assert running_tasks(cloud, arn) == []
    assert peak(cloud, study_of(arn)) == planned.peak_tasks

    # And each experiment had an execution of its own, and the study's history is within the stated budget
    states = client(cloud, "stepfunctions")
    (map_run,) = states.list_map_runs(executionArn=arn)["mapRuns"]
    counts = states.describe_map_run(mapRunArn=map_run["mapRunArn"])["executionCounts"]
    assert (counts["succeeded"], counts["total"]) == (EXPERIMENTS, EXPERIMENTS)
    history = states.get_paginator("get_execution_history").paginate(executionArn=arn)
    events = sum(len(page["events"]) for page in history)
    (stated,) = re.findall(r"^\| a study \| (\d+) \|", (ROOT / "docs" / "scale.md").read_text(), re.MULTILINE)
    assert events <= int(stated)
