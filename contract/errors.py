"""Errors that a user sees, drawn as one tree.

    LockstepError
    ├── Refused                     bad input; nothing was started and nothing was lost
    │   ├── StudyRefused            a study document
    │   ├── TaskEnvironmentRefused  the environment of a server or worker task
    │   └── MetricLineRefused       one METRICS_JSON line
    ├── StudyFailed                 experiments failed beyond what the study tolerates
    ├── PeerLost                    a server or worker vanished during training
    └── TrainingFailed              training ended for a reason that the message names

Imported everywhere; knows nothing of where an error is shown.
"""

from collections.abc import Sequence
from typing import Final

MAX_LINES: Final = 50
MAX_LINE_CHARACTERS: Final = 500
"""What of a refusal is shown: it must fit the cause of a Fail state, at most 32,768 characters."""


class LockstepError(Exception):
    """Base of every error whose message is meant for the user."""


class Refused(LockstepError):
    """Bad input. `problems` holds one line for each mistake: where it is, what it is, how to fix it."""

    subject = "input"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(_shortened(problem) for problem in problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        lines = [f"{self.subject} refused: {count}", *(f"  - {p}" for p in self.problems[:MAX_LINES])]
        if len(self.problems) > MAX_LINES:
            lines.append(f"  … and {len(self.problems) - MAX_LINES} more")
        super().__init__("\n".join(lines))


def _shortened(problem: str) -> str:
    return problem if len(problem) <= MAX_LINE_CHARACTERS else f"{problem[: MAX_LINE_CHARACTERS - 1]}…"


class StudyRefused(Refused):
    """A study document that cannot be run as written."""

    subject = "study"


class TaskEnvironmentRefused(Refused):
    """A task was started with missing or impossible environment variables."""

    subject = "task environment"


class MetricLineRefused(Refused):
    """A METRICS_JSON line that is not a metric record."""

    subject = "metric line"


class StudyFailed(LockstepError):
    """More experiments failed than their study tolerates, or its report was not published; the message says which."""


class PeerLost(LockstepError):
    """A server or worker of this experiment vanished: its connection ended before it had finished."""


class TrainingFailed(LockstepError):
    """Training cannot go on; the message says why."""
