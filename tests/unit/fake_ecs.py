"""A small ECS on a loopback port: the three calls that the functions make, over the real protocol.

moto's tasks have neither exit codes nor stop codes, and end the moment they are stopped; here a test says how a
task ends. Clients reach it through AWS_ENDPOINT_URL_ECS.
"""

from dataclasses import dataclass, field
from typing import Any

from tests.unit.json_service import JsonService, Refused

CLUSTER = "arn:aws:ecs:us-east-1:123456789012:cluster/lockstep"
EPOCH = 1_790_000_000.0
"""When all times of tasks begin, seconds."""

PAGE = 3
"""Tasks of one ListTasks answer: small, so that every test pages."""


@dataclass
class FakeTask:
    """A task, and how it ends when it is told to stop."""

    group: str
    role: str
    rank: int = 0
    status: str = "RUNNING"
    exit_code: int | None = None
    stop_code: str = ""
    reason: str = ""
    stopped_at: float = 0.0
    pulled_at: float | None = None
    """When its image began to be pulled; None where it did not come so far."""
    lingers: int = 0
    """DescribeTasks answers that still say STOPPING after it was told to stop."""
    exit_code_when_stopped: int | None = 143
    arn: str = ""

    def described(self) -> dict[str, Any]:
        """As DescribeTasks tells it: what is not known is left out."""
        if self.status == "STOPPING":
            if self.lingers == 0:
                self.status, self.exit_code = "STOPPED", self.exit_code_when_stopped
            self.lingers -= 1
        ended = self.status == "STOPPED"
        environment = [{"name": "SERVER_MODE", "value": "sync"}]
        if self.role == "worker":
            environment.append({"name": "WORKER_RANK", "value": str(self.rank)})
        elif self.rank:
            environment.append({"name": "SHARD_INDEX", "value": str(self.rank)})
        return {
            "taskArn": self.arn,
            "clusterArn": CLUSTER,
            "group": self.group,
            "lastStatus": self.status,
            "containers": [
                {"name": self.role, **({} if self.exit_code is None else {"exitCode": self.exit_code})}
            ],
            "overrides": {"containerOverrides": [{"name": self.role, "environment": environment}]},
            **({"stopCode": self.stop_code, "stoppedReason": self.reason} if self.stop_code else {}),
            **({"stoppedAt": EPOCH + self.stopped_at} if ended else {}),
            **({} if self.pulled_at is None else {"pullStartedAt": EPOCH + self.pulled_at}),
        }


def ended(group: str, role: str, rank: int = 0, **how: Any) -> FakeTask:
    """A task that ended by itself, well unless `how` says otherwise."""
    defaults = {"status": "STOPPED", "exit_code": 0, "stop_code": "EssentialContainerExited"}
    return FakeTask(group, role, rank, **{**defaults, **how})


@dataclass
class FakeEcs(JsonService):
    """The cluster."""

    tasks: list[FakeTask] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Arguments of StopTask, in order: group/role/rank and reason."""
    refusals: dict[str, str] = field(default_factory=dict)
    """group/role/rank → error code that StopTask answers."""

    def add(self, *tasks: FakeTask) -> None:
        """Put tasks into the cluster."""
        for task in tasks:
            task.arn = f"{CLUSTER.replace(':cluster/', ':task/')}/{len(self.tasks):032x}"
            self.tasks.append(task)

    def forget(self, *tasks: FakeTask) -> None:
        """As ECS does with tasks that ended some time ago."""
        self.tasks = [task for task in self.tasks if task not in tasks]

    def running(self) -> list[str]:
        """Tasks that nobody has asked to stop, as group/role/rank."""
        return [_label(task) for task in self.tasks if task.status == "RUNNING"]

    def answer(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        """One API call."""
        assert request["cluster"] == CLUSTER
        if action == "ListTasks":
            return self._list(request)
        if action == "DescribeTasks":
            wanted = request["tasks"]
            assert 1 <= len(wanted) <= 100
            found = {task.arn: task for task in self.tasks}
            return {
                "tasks": [found[arn].described() for arn in wanted if arn in found],
                "failures": [{"arn": arn, "reason": "MISSING"} for arn in wanted if arn not in found],
            }
        assert action == "StopTask", action
        task = next((task for task in self.tasks if task.arn == request["task"]), None)
        if task is None:
            raise Refused("InvalidParameterException", "The referenced task was not found.")
        if code := self.refusals.get(_label(task)):
            raise Refused(code, "for this test")
        self.stopped.append(f"{_label(task)}: {request['reason']}")
        if task.status == "RUNNING":
            task.status, task.stop_code, task.reason = "STOPPING", "UserInitiated", request["reason"]
        return {"task": task.described()}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        desired = request.get("desiredStatus", "RUNNING")
        assert desired in {"RUNNING", "STOPPED"}
        arns = [task.arn for task in self.tasks if (task.status == "RUNNING") == (desired == "RUNNING")]
        start = int(request.get("nextToken", "0"))
        page: dict[str, Any] = {"taskArns": arns[start : start + PAGE]}
        if start + PAGE < len(arns):
            page["nextToken"] = str(start + PAGE)
        return page


def _label(task: FakeTask) -> str:
    return f"{task.group}/{task.role}/{task.rank}"
