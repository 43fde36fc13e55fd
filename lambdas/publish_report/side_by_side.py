"""The plot of all conditions with one number of workers, side by side: how long each took, how accurate it ended.

Pure: conditions → a figure, in the drawing style of `style`. Matplotlib is imported where it is used.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lambdas.publish_report.conditions import Condition
from lambdas.publish_report.estimates import Spread
from lambdas.publish_report.style import INK, LOOKS, QUIET
from lambdas.publish_report.wording import percent, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches, as of the other plots."""

ROW_HEIGHT, REST_HEIGHT = 0.34, 1.5


def draw(
    together: Sequence[Condition], title: str, footer: str, time_title: str, accuracy_title: str
) -> "Figure":
    """A row for each condition: a bar for its time, a marker for its accuracy, ranges over seeds on both."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - see the module's docstring
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415 - see the module's docstring

    height = REST_HEIGHT + ROW_HEIGHT * len(together)
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04)
    figure = Figure(figsize=(WIDTH, height), layout=spacing)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(footer, x=0.012, ha="left", fontsize=8, color=QUIET)
    times, accuracies = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _times(times, together)
    _accuracies(accuracies, together)
    times.set_title(time_title)
    accuracies.set_title(accuracy_title)
    times.set_yticks(range(len(together)), [condition.label for condition in together])
    times.invert_yaxis()
    for axes in (times, accuracies):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
    return figure


def _times(axes: "Axes", together: Sequence[Condition]) -> None:
    for place, condition in enumerate(together):
        measured = condition.spread(lambda result: result.training_seconds)
        if measured is None:
            axes.text(0, place, " not measured", va="center", color=QUIET)
            continue
        axes.barh(place, measured.mean, height=0.62, color=LOOKS[condition.mode].colour)
        _say(axes, place, measured, seconds, offset=4)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)


def _accuracies(axes: "Axes", together: Sequence[Condition]) -> None:
    for place, condition in enumerate(together):
        measured = condition.spread(lambda result: result.accuracy_percent)
        if measured is None:
            continue
        look = LOOKS[condition.mode]
        axes.plot(measured.mean, place, color=look.colour, marker=look.marker, markersize=look.size, zorder=3)
        _say(axes, place, measured, percent, offset=7)
    axes.margins(x=0.3)


def _say(
    axes: "Axes", place: int, measured: Spread, wording: Callable[[float], str], *, offset: float
) -> None:
    """The range over seeds, where there are several, and the mean in words, `offset` points to the right."""
    if measured.count > 1:
        reach = [[measured.mean - measured.low], [measured.high - measured.mean]]
        axes.errorbar(measured.mean, place, xerr=reach, color=INK, capsize=3, linewidth=1.1)
    axes.annotate(
        wording(measured.mean),
        (max(measured.high, measured.mean), place),
        xytext=(offset, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
    )
