"""What the state machine needs of one experiment: everything that its states look up.

Used by plan_study; pure.
"""

from typing import Any

from contract.plan import Experiment
from contract.study import TaskSize
from contract.task import shared_environment

CPU_UNITS_OF_A_VCPU = 1024


def launch_item(experiment: Experiment) -> dict[str, Any]:
    """One item of the RunExperiments Map, as JSON values in the shapes that ECS and DynamoDB take."""
    environment = shared_environment(experiment).to_environ()
    return {
        "study_id": experiment.study_id,
        "name": experiment.name,
        "task_group": experiment.task_group,
        "ranks": list(range(experiment.workers)),
        "environment": [{"Name": name, "Value": value} for name, value in environment.items()],
        "server": _task(experiment.server),
        "worker": _task(experiment.worker),
    }


def _task(size: TaskSize) -> dict[str, Any]:
    """Sizes as ECS takes them in an override, as strings; and a thread for each whole vCPU."""
    threads = {"Name": "OMP_NUM_THREADS", "Value": str(max(1, size.cpu // CPU_UNITS_OF_A_VCPU))}
    return {"cpu": str(size.cpu), "memory": str(size.memory), "environment": [threads]}
