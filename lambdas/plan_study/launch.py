"""What the state machine needs of one experiment: everything that its states look up.

Used by plan_study; pure.
"""

from typing import Any

from contract.plan import Experiment
from contract.study import TaskSize
from contract.task import shared_environment


def launch_item(experiment: Experiment) -> dict[str, Any]:
    """One item of the RunExperiments Map, as JSON values in the shapes that ECS and DynamoDB take."""
    environment = shared_environment(experiment).to_environ()
    return {
        "study_id": experiment.study_id,
        "name": experiment.name,
        "task_group": experiment.task_group,
        "ranks": list(range(experiment.workers)),
        "environment": [{"Name": name, "Value": value} for name, value in environment.items()],
        "server": _override(experiment.server),
        "worker": _override(experiment.worker),
    }


def _override(size: TaskSize) -> dict[str, str]:
    """ECS takes the sizes of a task override as strings."""
    return {"cpu": str(size.cpu), "memory": str(size.memory)}
