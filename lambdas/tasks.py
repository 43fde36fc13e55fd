"""Adapter to ECS: the tasks of experiments, found by their task group.

Used by every function that ends tasks, and by the command line; the only place that speaks ECS to them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import boto3
from botocore.exceptions import ClientError

from lambdas.verdict import TaskOutcome

if TYPE_CHECKING:
    from mypy_boto3_ecs import ECSClient
    from mypy_boto3_ecs.literals import DesiredStatusType
    from mypy_boto3_ecs.type_defs import ContainerTypeDef, TaskTypeDef

DESCRIBE_LIMIT = 100
"""Tasks of one DescribeTasks call."""

END_SECONDS = 120.0
"""How long tasks that are being stopped may take: 30 s to leave by themselves, then Fargate takes them apart."""

POLL_SECONDS = 2


@dataclass(frozen=True)
class Task:
    """A task of ours, running or ended."""

    arn: str
    group: str
    ended: bool
    outcome: TaskOutcome


class TaskList:
    """The tasks of one cluster."""

    def __init__(self, ecs: "ECSClient", cluster_arn: str) -> None:
        self._ecs = ecs
        self._cluster = cluster_arn

    @classmethod
    def of(cls, cluster_arn: str, session: boto3.Session | None = None) -> Self:
        """The tasks of that cluster, in the account of `session` (default: the one that all calls share)."""
        return cls((session or boto3).client("ecs"), cluster_arn)

    def running(self) -> list[Task]:
        """Tasks that ECS means to be running, pending ones among them."""
        return list(self._described("RUNNING"))

    def stop(self, tasks: Iterable[Task], reason: str) -> None:
        """Ask ECS to stop tasks; one that has ended meanwhile is no error.

        Raises ExceptionGroup of what ECS refused, once every task was asked for.
        """
        refused: list[ClientError] = []
        for task in tasks:
            try:
                self._ecs.stop_task(cluster=self._cluster, task=task.arn, reason=reason)
            except ClientError as error:
                if not _is_forgotten(error):
                    refused.append(error)
        if refused:
            raise ExceptionGroup(f"{len(refused)} tasks could not be stopped", refused)

    def end_group(
        self, group: str, reason: str, *, patience_seconds: float = END_SECONDS, quiet_seconds: float = 0
    ) -> list[TaskOutcome]:
        """End the tasks of one group, as `end`, and tell how each of them ended."""
        ended = self.end(
            lambda task: task.group == group,
            reason,
            patience_seconds=patience_seconds,
            quiet_seconds=quiet_seconds,
        )
        return [task.outcome for task in ended]

    def end(
        self,
        chosen: Callable[[Task], bool],
        reason: str,
        *,
        patience_seconds: float = END_SECONDS,
        quiet_seconds: float = 0,
    ) -> list[Task]:
        """Stop what still runs of the chosen tasks and wait until all of them have ended; returns them all.

        `quiet_seconds`: nothing is left once two looks that far apart have found nothing. Zero, and one look will do,
        is for where no task can be starting: RunTask may be under way still when what it is part of is given up, and
        what it has started is listed seconds later (ECS API Reference, RunTask: eventually consistent).

        Raises as `stop`, and botocore's WaiterError when a task has not ended after `patience_seconds`, beyond which
        the last looks may come. ECS forgets ended tasks after an hour or more.
        """
        deadline = time.monotonic() + patience_seconds
        quiet = not quiet_seconds
        while True:
            running = [task for task in self.running() if chosen(task)]
            self.stop(running, reason)
            ended = [task for task in self._described("STOPPED") if chosen(task)]
            ending = {task.arn for task in [*running, *ended] if not task.ended}
            if ending:
                self._await_end(sorted(ending), deadline)
                quiet = not quiet_seconds
            elif quiet:
                return ended
            else:
                time.sleep(quiet_seconds)
                quiet = True

    def _await_end(self, arns: list[str], deadline: float) -> None:
        for some in _chunks(arns):
            attempts = max(1, int((deadline - time.monotonic()) // POLL_SECONDS))
            self._ecs.get_waiter("tasks_stopped").wait(
                cluster=self._cluster,
                tasks=some,
                WaiterConfig={"Delay": POLL_SECONDS, "MaxAttempts": attempts},
            )

    def _described(self, desired_status: "DesiredStatusType") -> Iterator[Task]:
        pages = self._ecs.get_paginator("list_tasks").paginate(
            cluster=self._cluster, desiredStatus=desired_status
        )
        for some in _chunks([arn for page in pages for arn in page["taskArns"]]):
            for description in self._ecs.describe_tasks(cluster=self._cluster, tasks=some)["tasks"]:
                yield _task(description)


def _is_forgotten(error: ClientError) -> bool:
    """ECS knows the task no more: it ended some time ago. The code alone stands for other mistakes too."""
    said = error.response["Error"]
    return said["Code"] == "InvalidParameterException" and "task was not found" in said["Message"]


def _chunks(arns: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(arns), DESCRIBE_LIMIT):
        yield arns[start : start + DESCRIBE_LIMIT]


def _task(description: "TaskTypeDef") -> Task:
    containers = description.get("containers", [])
    container: ContainerTypeDef = containers[0] if containers else {}
    overrides = description.get("overrides", {}).get("containerOverrides", [])
    environment = {pair["name"]: pair["value"] for o in overrides for pair in o.get("environment", [])}
    started_at = description.get("pullStartedAt") or description.get("startedAt")
    stopped_at = description.get("stoppedAt")
    return Task(
        arn=description["taskArn"],
        group=description.get("group", ""),
        ended=description.get("lastStatus") == "STOPPED",
        outcome=TaskOutcome(
            role=container.get("name", ""),
            rank=int(environment.get("WORKER_RANK", environment.get("SHARD_INDEX", "0"))),
            task_arn=description["taskArn"],
            exit_code=container.get("exitCode"),
            stop_code=description.get("stopCode", ""),
            stopped_reason=container.get("reason") or description.get("stoppedReason", ""),
            started_at=started_at.isoformat() if started_at else "",
            stopped_at=stopped_at.isoformat() if stopped_at else "",
        ),
    )
