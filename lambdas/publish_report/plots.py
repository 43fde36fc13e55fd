"""Plots of a study: for each number of workers sync against async and all conditions, and scaling over them.

Pure: results → PNG and SVG bytes. Only completed experiments are drawn; every point is a measurement.
Matplotlib is imported where it is used: a cold start that draws nothing does not pay for it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from contract.aggregation import Mode
from contract.results import comparison_plot, scaling_plot, side_by_side_plot
from lambdas.publish_report.conditions import Condition, Measure, lines, pictured
from lambdas.publish_report.labels import labels_of
from lambdas.publish_report.rankings import side_by_side
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.series import (
    Series,
    baseline,
    epoch_accuracies,
    epoch_durations,
    over_workers,
    speed_up,
)
from lambdas.publish_report.side_by_side import draw
from lambdas.publish_report.style import INK, LOOKS, PAPER, QUIET, drawing, png, svg
from lambdas.publish_report.wording import capitalized, count, seconds

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import FillStyleType

SIZE = (7.2, 5.6)
"""Inches: the width of two columns of a paper."""

MARKERS = 16
"""Markers on a line, about; every epoch is drawn, but not every one gets a marker where there are many."""

FILLS: Sequence["FillStyleType"] = ("full", "left", "right", "top", "bottom")

ASIDE = {mode: 0.97 + 0.06 * place / (len(Mode) - 1) for place, mode in enumerate(Mode)} | {Mode.ASYNC: 1.03}

BESIDE_TITLE = 4
"""Entries of a legend that fit beside the title."""

TIME = "Total training time (s)"
EPOCH_TIME = "Average epoch time (s)"
ACCURACY = "Final test accuracy (%)"


def plots(results: Sequence[ExperimentResult]) -> dict[str, bytes]:
    """Path below the study's folder → PNG or SVG. The scaling plot is always there."""
    files: dict[str, bytes] = {}
    with drawing():
        figure = _scaling(results)
        files[scaling_plot("png")], files[scaling_plot("svg")] = png(figure), svg(figure)
        for sync, asynchronous in pictured(results):
            figure = _comparison(sync, asynchronous)
            files[comparison_plot(sync.workers, "png")] = png(figure)
            files[comparison_plot(sync.workers, "svg")] = svg(figure)
        for together in side_by_side(results):
            figure = _all_together(together)
            workers = together[0].workers
            files[side_by_side_plot(workers, "png")] = png(figure)
            files[side_by_side_plot(workers, "svg")] = svg(figure)
    return files


def _comparison(sync: Condition, asynchronous: Condition) -> "Figure":
    both = (sync, asynchronous)
    several = len({result.seed for condition in both for result in condition.results}) > 1
    remarks = ["epoch duration: mean, fastest and slowest worker"]
    remarks += ["whiskers and accuracy band: range over seeds"] if several else []
    figure, axes = _canvas(
        f"{capitalized(sync.label)} and {asynchronous.label} with {count(sync.workers, 'worker')}",
        _footer([*sync.results, *asynchronous.results], remarks),
    )
    _bars(axes[0], TIME, both, lambda result: result.training_seconds)
    _bars(axes[1], EPOCH_TIME, both, lambda result: result.epoch_seconds)
    for condition in both:
        _line(axes[2], condition, epoch_durations(condition), band=True)
        _line(axes[3], condition, epoch_accuracies(condition), band=True)
    _over_epochs(axes[2], "Epoch duration (s)", from_zero=True)
    _over_epochs(axes[3], "Test accuracy (%)", from_zero=False)
    _legend(figure, axes[2], axes[3])
    return figure


def _all_together(together: Sequence[Condition]) -> "Figure":
    results = [result for condition in together for result in condition.results]
    several = len({result.seed for result in results}) > 1
    return draw(
        together,
        f"All with {count(together[0].workers, 'worker')}",
        _footer(results, ["mean and range over seeds"] if several else []),
        TIME,
        ACCURACY,
    )


def _scaling(results: Sequence[ExperimentResult]) -> "Figure":
    completed = [result for result in results if result.completed]
    if not completed:
        return _nothing_completed()
    by_label = lines(completed)
    several = len({result.seed for result in completed}) > 1
    points = "measured, mean (speed-up: geometric mean) and range over seeds" if several else "measured"
    figure, axes = _canvas(
        "Scaling with the number of workers", _footer(completed, [f"points: {points}; lines guide the eye"])
    )
    measures: tuple[Measure, ...] = (
        lambda result: result.training_seconds,
        lambda result: result.epoch_seconds,
        lambda result: result.accuracy_percent,
    )
    variants: Counter[Mode] = Counter()
    for found in by_label.values():
        mode = found[0].mode
        shift, fill = ASIDE[mode] if several else 1.0, FILLS[variants[mode] % len(FILLS)]
        variants[mode] += 1
        for panel, measure in zip(axes, measures, strict=False):
            _line(panel, found[0], over_workers(found, measure), shift=shift, fill=fill)
        _line(axes[3], found[0], speed_up(found), shift=shift, fill=fill)
    titles = (TIME, EPOCH_TIME, ACCURACY, _speed_up_title(by_label.values()))
    ticks = sorted({condition.workers for found in by_label.values() for condition in found})
    for panel, title in zip(axes, titles, strict=True):
        _workers_axis(panel, title, ticks)
    for panel in axes[:2]:
        panel.set_ylim(bottom=0)
    _ideal(axes[3], by_label.values())
    _legend(figure, axes[0], axes[3])
    return figure


def _speed_up_title(modes: Iterable[Sequence[Condition]]) -> str:
    baselines = {workers for found in modes if (workers := baseline(found)) is not None}
    if baselines <= {1}:
        return "Speed-up (×)"
    if len(baselines) > 1:
        return "Speed-up against own fewest workers (×)"
    return f"Speed-up against {count(min(baselines), 'worker')} (×)"


def _canvas(title: str, footer: str) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure  # noqa: PLC0415 - see the module's docstring
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415 - see the module's docstring

    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=SIZE, layout=spacing)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(footer, x=0.012, ha="left", fontsize=8, color=QUIET)
    return figure, list(figure.subplots(2, 2).flat)


def _footer(results: Sequence[ExperimentResult], remarks: Sequence[str]) -> str:
    return "\n".join([*labels_of(results), *([" · ".join(remarks)] if remarks else [])])


def _nothing_completed() -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415 - see the module's docstring

    figure = Figure(figsize=(SIZE[0], SIZE[1] / 4))
    words = "No experiment completed: nothing to plot."
    figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=10, color=QUIET)
    return figure


def _bars(axes: "Axes", title: str, both: Iterable[Condition], measure: Measure) -> None:
    axes.set_title(title)
    for position, condition in enumerate(both):
        measured = condition.spread(measure)
        if measured is None:
            axes.text(position, 0, "not measured", ha="center", va="bottom", color=QUIET)
            continue
        axes.bar(position, measured.mean, width=0.56, color=LOOKS[condition.mode].colour)
        top = measured.high if measured.count > 1 else measured.mean
        if measured.count > 1:
            below, above = measured.mean - measured.low, measured.high - measured.mean
            axes.errorbar(position, measured.mean, [[below], [above]], color=INK, capsize=4, linewidth=1.2)
        axes.annotate(
            seconds(measured.mean),
            (position, top),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
    axes.set_xticks([0, 1], [condition.mode.value for condition in both])
    axes.set_xlim(-0.6, 1.6)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.16)
    axes.set_ylim(bottom=0)


def _line(
    axes: "Axes",
    of: Condition,
    series: Series,
    *,
    band: bool = False,
    shift: float = 1.0,
    fill: "FillStyleType" = "full",
) -> None:
    """Means, in the look of the condition's mode, with their ranges: a band over epochs, whiskers over workers.

    `shift` moves the points aside on a logarithmic axis, so that whiskers of several modes can be seen;
    `fill` tells markers of one mode apart that was told different things.
    """
    if not series:
        return
    look = LOOKS[of.mode]
    places, spreads = [place * shift for place in series], list(series.values())
    means = [measured.mean for measured in spreads]
    axes.plot(
        places,
        means,
        color=look.colour,
        marker=look.marker,
        markersize=look.size,
        markevery=max(1, len(means) // MARKERS),
        markeredgecolor=PAPER if fill == "full" else look.colour,
        markerfacecoloralt=PAPER,
        markeredgewidth=0.8,
        linestyle=look.dash,
        label=of.label,
        fillstyle=fill,
        zorder=3,
    )
    lows, highs = [measured.low for measured in spreads], [measured.high for measured in spreads]
    if lows == highs:
        return
    if band:
        axes.fill_between(places, lows, highs, color=look.colour, alpha=0.16, linewidth=0)
    else:
        errors = [
            [mean - low for mean, low in zip(means, lows, strict=True)],
            [high - mean for mean, high in zip(means, highs, strict=True)],
        ]
        axes.errorbar(places, means, errors, fmt="none", ecolor=look.colour, capsize=3, linewidth=1.2)


def _over_epochs(axes: "Axes", title: str, *, from_zero: bool) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - see the module's docstring

    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", ha="center", color=QUIET, transform=axes.transAxes)
    if from_zero:
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)


def _workers_axis(axes: "Axes", title: str, ticks: Sequence[int]) -> None:
    axes.set_title(title)
    axes.set_xlabel("workers")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(workers) for workers in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.margins(y=0.12)


def _ideal(axes: "Axes", modes: Iterable[Sequence[Condition]]) -> None:
    """N times the workers, N times as fast, from each mode's own fewest workers; both scales doubling."""
    from matplotlib.ticker import FuncFormatter, NullLocator  # noqa: PLC0415 - see the module's docstring

    ranges = sorted({(found[0].workers, found[-1].workers) for found in modes})
    for few, many in ranges:
        axes.plot([few, many], [1, many / few], color=QUIET, linestyle=":", linewidth=1.3, label="ideal")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _legend(figure: "Figure", *panels: "Axes") -> None:
    """One legend for all panels: in the corner opposite the title, or below it where it is too long for that."""
    named: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    long = len(named) > BESIDE_TITLE
    if long:
        # The layout leaves room for a title with its empty lines.
        rows = -(-len(named) // BESIDE_TITLE)
        figure.suptitle(
            figure.get_suptitle() + "\n" * rows, x=0.012, ha="left", fontsize=12, fontweight="bold"
        )
    figure.legend(
        list(named.values()),
        list(named),
        loc="upper left" if long else "upper right",
        bbox_to_anchor=(0.0, 0.955) if long else None,
        ncols=min(len(named), BESIDE_TITLE),
        handlelength=2.6,
        borderaxespad=0.6,
    )
