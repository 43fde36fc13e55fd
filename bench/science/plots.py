"""The plots of docs/science.md, from the figures that are kept in bench/results/science.json.

Pure: figures → SVG bytes, in the report's style; the same figures give the same file, byte for byte.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contract.aggregation import Mode
from lambdas.publish_report.style import INK, LOOKS, QUIET, drawing, svg

Figures = Mapping[str, Any]

BACKUP_COLOURS = {"0": LOOKS[Mode.SYNC].colour, "1": LOOKS[Mode.BACKUP].colour, "2": LOOKS[Mode.SSP].colour}
BACKUP_DASHES = {"0": "-", "1": "--", "2": "-."}


def plots(found: Figures) -> dict[str, bytes]:
    """Name of the file → SVG, for every paper that has figures."""
    draw = {"dutta": plot_dutta, "zhang": plot_zhang, "chen": plot_chen}
    return {f"science_{paper}.svg": draw[paper](found[paper]) for paper in draw if paper in found}


def plot_dutta(found: Figures) -> bytes:
    """Training loss and test error over time, and where the losses cross."""
    with drawing():
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        loss, error = figure.subplots(1, 2)
        for mode in ("sync", "async"):
            _band(loss, found["loss_over_time"][mode], mode)
            _band(error, found["error_over_time"][mode], mode)
        cross = found["crossing_seconds"]
        if cross["low"] is not None:
            loss.axvspan(cross["low"], cross["high"], color=QUIET, alpha=0.25, linewidth=0)
        if cross["mean"] is not None:
            loss.axvline(cross["mean"], color=QUIET, linewidth=0.9)
            loss.annotate(
                f"they cross at {cross['mean']:.1f} s",
                (cross["mean"], 0.93),
                xycoords=("data", "axes fraction"),
                xytext=(5, 0),
                textcoords="offset points",
                color=INK,
                fontsize=8.5,
            )
        loss.set_yscale("log")
        loss.set_yticks([0.2, 0.3, 0.5, 1.0], ["0.2", "0.3", "0.5", "1"])
        loss.set_yticks([], minor=True)
        loss.set_title("Training loss")
        error.set_title("Test error (%)")
        error.set_ylim(0, 20)
        for panel in (loss, error):
            panel.set_xlabel("training time (s)")
        error.legend(loc="upper right")
        return svg(figure)


def plot_zhang(found: Figures) -> bytes:
    """Test error over epochs, and the staleness of all gradients."""
    with drawing():
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        error, staleness = figure.subplots(1, 2)
        for mode, series in found["error_over_epochs"].items():
            if series:
                _band(error, series, mode, marked=True)
        error.set_title("Test error (%)")
        error.set_xlabel("epoch")
        error.set_ylim(0, 100)
        error.legend(loc="upper right", bbox_to_anchor=(1.0, 0.86))
        for mode, histogram in found["staleness_histogram"].items():
            total = sum(histogram.values())
            places = range(max((int(key) for key in histogram), default=0) + 1)
            shares = [100 * histogram.get(str(place), 0) / total for place in places]
            look = LOOKS[Mode(mode)]
            staleness.step(places, shares, where="mid", color=look.colour, linestyle=look.dash, label=mode)
        staleness.axvline(found["workers"] - 1, color=QUIET, linewidth=0.9)
        staleness.annotate(
            f"N − 1 = {found['workers'] - 1}",
            (found["workers"] - 1, 0.93),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8.5,
        )
        staleness.set_title("Gradients by staleness (%)")
        staleness.set_xlabel("updates since its parameters")
        staleness.set_xlim(0, 2.2 * found["workers"])
        return svg(figure)


def plot_chen(found: Figures) -> bytes:
    """For each distribution: time per update against the law, and test error over time."""
    with drawing():
        figure = Figure(figsize=(7.2, 5.4), layout="constrained")
        panels = figure.subplots(len(found), 2, squeeze=False)
        for (name, of), (updates, error) in zip(found.items(), panels, strict=True):
            _update_times(updates, of["by_backup_workers"])
            updates.set_title(f"{name.capitalize()}: time per update (ms)")
            for backup, row in of["by_backup_workers"].items():
                series = row["error_over_time"]
                error.plot(
                    [point[0] for point in series],
                    [point[1] for point in series],
                    color=BACKUP_COLOURS[backup],
                    linestyle=BACKUP_DASHES[backup],
                    label=f"b = {backup}",
                )
            error.axhline(of["target_error_percent"], color=QUIET, linewidth=0.9)
            error.set_ylim(0, 40)
            error.set_title(f"{name.capitalize()}: test error (%)")
            error.set_xlabel("training time (s)")
            error.legend(loc="upper right")
        return svg(figure)


def _update_times(panel: Axes, rows: Figures) -> None:
    for place, (backup, row) in enumerate(rows.items()):
        measured = [1000 * seconds for seconds in row["update_seconds_by_seed"]]
        law = 1000 * row["update_seconds_by_law"]
        panel.plot(
            [place - 0.3, place + 0.3], [law, law], color=INK, linewidth=1.4, label="law" * (place == 0)
        )
        panel.plot(
            [place] * len(measured),
            measured,
            linestyle="none",
            marker="o",
            markersize=5,
            color=BACKUP_COLOURS[backup],
            label="measured, each seed" * (place == 0),
        )
    panel.set_xticks(range(len(rows)), [f"b = {backup}" for backup in rows])
    panel.set_xlim(-0.6, len(rows) - 0.4)
    panel.margins(y=0.12)
    panel.set_ylim(bottom=0)
    panel.legend(loc="lower left")


def _band(panel: Axes, series: Sequence[Sequence[float]], mode: str, *, marked: bool = False) -> None:
    """Mean over the seeds, and the range between the least and the greatest of them."""
    places, means, least, greatest = zip(*series, strict=True)
    look = LOOKS[Mode(mode)]
    panel.plot(
        places,
        means,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker if marked else "",
        markersize=look.size,
        label=mode,
    )
    panel.fill_between(places, least, greatest, color=look.colour, alpha=0.18, linewidth=0)
