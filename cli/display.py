"""Show a study's progress: a live table on a terminal, plain lines elsewhere; all on standard error.

Used by the verbs; knows nothing of AWS.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cli.study import ExperimentProgress
from contract.table import Status

_STYLES = {
    Status.PLANNED: "dim",
    Status.RUNNING: "cyan",
    Status.STOPPING: "yellow",
    Status.COMPLETED: "green",
    Status.FAILED: "bold red",
    Status.ABORTED: "yellow",
}


class ProgressDisplay:
    """Shows the latest progress; a context manager that leaves the last state on screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def show(self, experiments: Sequence[ExperimentProgress]) -> None:
        """Show this state; elsewhere than on a terminal, only what has changed."""
        if self._live:
            self._live.update(_table(experiments), refresh=True)
            return
        for experiment in experiments:
            line = _line(experiment)
            if self._told.get(experiment.name) != line and experiment.status is not Status.PLANNED:
                self._told[experiment.name] = line
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(experiments: Sequence[ExperimentProgress]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("Experiment")
    table.add_column("Status")
    for heading in ("Epoch", "Updates/s", "Accuracy"):
        table.add_column(heading, justify="right")
    for experiment in experiments:
        table.add_row(
            experiment.name,
            f"[{_STYLES[experiment.status]}]{experiment.status.lower()}",
            f"{experiment.epochs_done}/{experiment.epochs}",
            "" if experiment.updates_per_second is None else f"{experiment.updates_per_second:.1f}",
            "" if experiment.accuracy_percent is None else f"{experiment.accuracy_percent:.0f} %",
        )
    return table


def _line(experiment: ExperimentProgress) -> str:
    line = (
        f"{experiment.name}: {experiment.status.lower()}, epoch {experiment.epochs_done}/{experiment.epochs}"
    )
    return f"{line}: {experiment.cause}" if experiment.cause else line
