"""The drawing style of all plots: sizes, colours, the way a figure becomes bytes.

Needs matplotlib, which is imported where it is used: a cold start that draws nothing does not pay for it.
Figures are objects; pyplot's global state is not touched.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from contract.aggregation import Mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK: Final = "#1f2428"
QUIET: Final = "#6b7178"
RULE: Final = "#d9dce0"
PAPER: Final = "#ffffff"

DOTS_PER_INCH = 200


class Look(NamedTuple):
    """How a mode is drawn: the colour alone never tells it."""

    colour: str
    """Okabe & Ito, Color Universal Design (2008)."""
    marker: str
    size: float
    """Points; unequal, so that one shows behind the other where they coincide."""
    dash: str


LOOKS: Final = {
    Mode.SYNC: Look("#0072b2", "o", 7.5, "-"),
    Mode.ASYNC: Look("#d55e00", "s", 5.5, "--"),
    Mode.BACKUP: Look("#56b4e9", "^", 6.5, "-"),
    Mode.SSP: Look("#009e73", "D", 5.5, "-."),
    Mode.KSYNC: Look("#3f5fa8", "v", 6.5, ":"),
    Mode.KASYNC: Look("#e69f00", "P", 6.5, ":"),
    Mode.STALENESS_AWARE: Look("#cc79a7", "X", 6.5, "--"),
    Mode.DC_ASGD: Look("#8c6d1f", "*", 8.0, "-."),
}

_SETTINGS: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "lockstep",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's settings while a figure is made and saved; as they were afterwards."""
    import matplotlib as mpl  # noqa: PLC0415 - see the module's docstring

    with mpl.rc_context(_SETTINGS):
        yield


def png(figure: "Figure") -> bytes:
    """The figure as PNG without the program's name: the same figure is the same bytes."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return image.getvalue()


def svg(figure: "Figure") -> bytes:
    """The figure as SVG without a date, text as text."""
    image = io.BytesIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(image, format="svg", metadata=unsaid)
    return image.getvalue()
