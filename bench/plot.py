"""The plot of docs/benchmarks.md: updates per second, a panel per size and number of workers.

Draws rows that are given; the same rows give the same file, byte for byte.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.tables import label_of, size_name, workers_text

OURS, PEERS, LIMIT = "#0b6e4f", "#9aa5b1", "#d9a441"


def plot_push_pull(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write an SVG with bars for medians and whiskers for quartiles."""
    sizes = list(dict.fromkeys(row["parameters"] for row in rows))
    counts = list(dict.fromkeys(row["workers"] for row in rows))
    labels = list(dict.fromkeys(label_of(row) for row in rows))
    # Fixed ids, text as text, no date: a change of the file is a change of a figure.
    with mpl.rc_context({"svg.hashsalt": "lockstep", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(3.2 * len(counts) + 1.4, (0.2 * len(labels) + 0.55) * len(sizes) + 0.3))
        panels = figure.subplots(len(sizes), len(counts), sharey=True, squeeze=False)
        for line, parameters in enumerate(sizes):
            for column, workers in enumerate(counts):
                panel = panels[line][column]
                chosen = [r for r in rows if (r["parameters"], r["workers"]) == (parameters, workers)]
                _draw(panel, chosen, labels)
                title = f"{size_name(parameters)} parameters, {workers_text(workers)}"
                panel.set_title(title, fontsize=8)
                if line == len(sizes) - 1:
                    panel.set_xlabel("updates/s (median, quartiles)")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _draw(panel: Axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    for row in rows:
        place = labels.index(label_of(row))
        middle = row["updates_per_second"]
        lower, upper = row["updates_per_second_quartiles"]
        colour = LIMIT if row["system"].startswith("raw TCP") else PEERS
        if row["system"].startswith("Lockstep"):
            colour = OURS
        panel.barh(place, middle, color=colour, xerr=[[middle - lower], [upper - middle]], ecolor="#333333")
        panel.annotate(
            f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}",
            (max(upper, middle), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.margins(x=0.18)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.spines[["top", "right"]].set_visible(False)
