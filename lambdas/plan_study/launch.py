"""What the state machine needs of each experiment: everything that its states look up.

Used by plan_study; pure.
"""

import json
from collections.abc import Iterable
from typing import Any, Final

from contract.errors import StudyRefused
from contract.fargate import CPU_UNITS_OF_A_VCPU
from contract.limits import ENDING_SECONDS, LAUNCH_SECONDS
from contract.plan import Experiment
from contract.study import MAX_STUDY_ID_CHARACTERS, TaskSize
from contract.task import shared_environment

RESTARTS: Final = 3
"""How many times a task that was struck is started again: one that is struck each time must not go on for ever."""

VAIN_STARTS: Final = 2
"""How many times a task that never ran is started again, whatever its loss would mean: nothing was lost."""

MAX_ITEMS_BYTES: Final = 250_000
"""All items of a study, as JSON, with room for what stands beside them in the output of their state.

Source: Step Functions Developer Guide, service quotas: 256 KiB of input or output of a state.
"""


MAX_OVERRIDE_CHARACTERS: Final = 8_192
"""What RunTask takes of overrides, as JSON. Source: Amazon ECS API Reference, TaskOverride."""

MACHINE_CHARACTERS: Final = 1_000
"""What the state machine adds to an item's environment at most: sizes, threads, rank, addresses, table, region."""


def launch_items(experiments: Iterable[Experiment]) -> list[dict[str, Any]]:
    """The items of the RunExperiments Map. Raises StudyRefused where no state or no task can be given them."""
    experiments = list(experiments)
    # In one zone what is compared: a zone's hosts are not another's.
    compared = list(dict.fromkeys((each.workers, each.seed) for each in experiments))
    items = [launch_item(each, compared.index((each.workers, each.seed))) for each in experiments]
    largest = max(items, key=_override_characters)
    if (told := _override_characters(largest)) > MAX_OVERRIDE_CHARACTERS:
        raise StudyRefused(
            [
                f"experiments: a task of {largest['name']} is told {told:,} characters, and ECS takes at most"
                f" {MAX_OVERRIDE_CHARACTERS:,}: shorten compute.stragglers, network.workers or faults.crashes"
            ]
        )
    if (size := len(json.dumps(items))) > MAX_ITEMS_BYTES:
        raise StudyRefused(
            [
                f"experiments: what their tasks are started with takes {size:,} bytes in all;"
                f" an execution hands on at most {MAX_ITEMS_BYTES:,}: split the study"
            ]
        )
    return items


def launch_item(experiment: Experiment, zone: int = 0) -> dict[str, Any]:
    """One item of the RunExperiments Map, as JSON values in the shapes that ECS and DynamoDB take.

    `zone`: which of the deployment's subnets its tasks are in, counted on from the first where there are fewer.
    """
    environment = shared_environment(experiment).to_environ()
    return {
        "study_id": experiment.study_id,
        "name": experiment.name,
        "task_group": experiment.task_group,
        "zone": zone,
        "on_worker_loss": experiment.on_worker_loss,
        "server_restarts": [RESTARTS if experiment.checkpoint else 0] * experiment.shards,
        "worker_restarts": _worker_restarts(experiment),
        "vain_starts": VAIN_STARTS,
        "timeouts": _timeouts(experiment),
        "environment": [{"Name": name, "Value": value} for name, value in environment.items()],
        "server": _task(experiment.server),
        "worker": {
            **_task(experiment.worker),
            "capacity": "FARGATE_SPOT" if experiment.worker.spot else "FARGATE",
        },
    }


def _override_characters(item: dict[str, Any]) -> int:
    """As many as under the longest name of an execution: what is planned without one has another's."""
    told = len(json.dumps(item["environment"], separators=(",", ":")))
    return told - len(item["study_id"]) + MAX_STUDY_ID_CHARACTERS + MACHINE_CHARACTERS


def _worker_restarts(experiment: Experiment) -> list[int]:
    """Rank by rank, how many times it may be started again: not where its loss is the end, or meant to last."""
    if experiment.on_worker_loss == "fail":
        return [0] * experiment.workers
    staying_away = {c.rank for c in experiment.faults.crashes if c.restart_after_seconds is None}
    return [0 if rank in staying_away else RESTARTS for rank in range(experiment.workers)]


def _timeouts(experiment: Experiment) -> dict[str, int]:
    """After how many seconds a state is given up that waits for a task, or for the server's address.

    A guarantee only: before that the server gives the experiment up, and says why. Workers start after it and end
    with it.
    """
    task = LAUNCH_SECONDS + experiment.timeout_seconds + ENDING_SECONDS
    return {"server": task, "worker": task, "rendezvous": LAUNCH_SECONDS}


def _task(size: TaskSize) -> dict[str, Any]:
    """Sizes as ECS takes them in an override, as strings; and a thread for each whole vCPU."""
    threads = {"Name": "OMP_NUM_THREADS", "Value": str(max(1, size.cpu // CPU_UNITS_OF_A_VCPU))}
    return {"cpu": str(size.cpu), "memory": str(size.memory), "environment": [threads]}
