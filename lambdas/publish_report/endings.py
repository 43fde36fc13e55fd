"""How the tasks of experiments that did not complete ended: as a table, and as their last log lines.

Pure: results → text. What tasks wrote is of unknown origin: control characters are made visible here, and the
template escapes the rest.
"""

from collections.abc import Iterator

from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.sections import Column, Table
from lambdas.publish_report.wording import ABSENT, one_line, visible
from lambdas.verdict import TaskOutcome


def task_ends(result: ExperimentResult) -> Table:
    """One row for each task, the root of the failure first."""
    columns = [
        Column("Task"),
        Column("Exit code", "figure"),
        Column("Stop code"),
        Column("Reason"),
        Column("Ended"),
    ]
    caption = "How the tasks ended, as ECS says; a task without an exit code never ran."
    return Table(caption, columns, [_row(task) for task in result.task_ends])


def _row(task: TaskOutcome) -> list[str]:
    return [
        task.label,
        ABSENT if task.exit_code is None else str(task.exit_code),
        one_line(task.stop_code) or ABSENT,
        one_line(task.stopped_reason) or ABSENT,
        # Seconds will do, in UTC; what is no time is shown as it is.
        one_line(task.stopped_at).replace("T", " ").partition(".")[0].removesuffix("+00:00") or ABSENT,
    ]


def last_lines(result: ExperimentResult) -> list[tuple[str, list[str]]]:
    """The tasks whose log was read, each with its last lines."""
    return [
        (task.label, [visible(line) for line in task.last_lines])
        for task in result.task_ends
        if task.last_lines
    ]


def as_text(result: ExperimentResult) -> Iterator[str]:
    """The same for summary.txt, indented."""
    if result.first_failure:
        yield f"    first to fail: {result.first_failure}"
    for label, exit_code, stop_code, reason, ended_at in task_ends(result).rows:
        code = f"exit code {exit_code}" if exit_code != ABSENT else "never ran"
        known = ", ".join(part for part in (stop_code, reason, ended_at) if part != ABSENT)
        yield f"    {label}: {code}{f' ({known})' if known else ''}"
    for label, lines in last_lines(result):
        yield f"    last log lines of {label}:"
        yield from (f"      {line}" for line in lines)
