"""Adapter to Step Functions: whether the execution of a study has ended, and how.

Used by sweep_tasks.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

import boto3

from lambdas.causes import readable
from lambdas.rows import StudyRow

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED"})
"""Any other status is that of an execution that runs, or is about to."""

MISSING: Final = "MISSING"
"""Step Functions knows no execution of the study: it forgets them after 90 days, or the state machine is another."""

CERTAIN_AFTER: Final = timedelta(minutes=5)
"""DescribeExecution is eventually consistent (API reference): an execution that has just begun may look missing."""

ORPHANED_AFTER: Final = timedelta(minutes=2)
"""Step Functions stops the tasks of a stopped execution itself, by best effort; what runs on longer it has missed."""

SAME_START: Final = timedelta(seconds=1)

MAX_TOLD: Final = 2000
"""Characters of an error and its cause that rows and report show."""


@dataclass(frozen=True)
class EndedExecution:
    """How an execution ended; `error` and `cause` as whoever stopped it gave them, or what it failed with."""

    status: str
    error: str = ""
    cause: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def reason(self) -> str:
        """For those whose tasks are stopped."""
        return f"the execution of the study has ended: {self.status}"

    @property
    def told(self) -> str:
        """For rows and report: with what is known of why."""
        known = ": ".join(part for part in (self.error, self.cause) if part)
        return f"{self.reason} ({known[:MAX_TOLD]})" if known else self.reason

    def is_certain(self, study: StudyRow | None) -> bool:
        """Whether it has really ended, and is not merely too young to be found."""
        if self.status != MISSING or study is None:
            return True
        return datetime.now(UTC) - datetime.fromisoformat(study.created_at) > CERTAIN_AFTER

    @property
    def is_long_over(self) -> bool:
        """Whether tasks of it that run were missed by everybody else."""
        return self.ended_at is None or datetime.now(UTC) - self.ended_at > ORPHANED_AFTER

    def is_of(self, study: StudyRow) -> bool:
        """Whether it is the study's own execution: 90 days after the end of one its name is free for another."""
        if self.started_at is None or not study.execution.started_at:
            return True
        return abs(datetime.fromisoformat(study.execution.started_at) - self.started_at) < SAME_START


class Executions:
    """The executions of one state machine; each bears the name of its study."""

    def __init__(self, states: "SFNClient", state_machine_arn: str) -> None:
        self._states = states
        self._prefix = f"{state_machine_arn.replace(':stateMachine:', ':execution:')}:"

    @classmethod
    def of(cls, state_machine_arn: str) -> Self:
        """Those of that state machine."""
        return cls(boto3.client("stepfunctions"), state_machine_arn)

    def ended(self, study_id: str) -> EndedExecution | None:
        """How the execution of a study ended; None where it has not."""
        try:
            found = self._states.describe_execution(executionArn=self._prefix + study_id)
        except self._states.exceptions.ExecutionDoesNotExist:
            return EndedExecution(MISSING)
        if found["status"] not in ENDED:
            return None
        return EndedExecution(
            status=found["status"],
            error=found.get("error", ""),
            cause=readable(found.get("cause", "")),
            started_at=found["startDate"],
            ended_at=found.get("stopDate"),
        )
