"""Figures as the page shows them: Markdown tables, rounding, the machine in a sentence.

Pure; knows nothing of what was measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.case import SIZES

_SIZE_NAMES = {parameters: name for name, parameters in SIZES.items()}


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])


def machine_line(machine: Mapping[str, Any]) -> str:
    """When it was measured, where that was written down, and a sentence that names the machine."""
    ray = f", Ray {machine['ray']}" if machine["ray"] else ""
    measured = f"Measured on {machine['date']}. " if "date" in machine else ""
    return (
        f"{measured}Machine: {machine['cpu_model']}, {machine['cores']} cores, {machine['memory_gb']} GB;"
        f" {machine['kernel']}, {machine['libc']}; Python {machine['python']}, torch {machine['torch']},"
        f" gRPC {machine['grpc']}{ray}; {machine['threads_per_process']} torch thread per process."
    )


def label_of(row: Mapping[str, Any]) -> str:
    """A system and its transport, as tables and plots call it."""
    return f"{row['system']} ({row['transport']})"


def training_of(row: Mapping[str, Any]) -> str:
    """What was trained, and how gradients were aggregated."""
    return f"{row['model']} on {row['dataset']}, {row['mode']}"


def size_name(parameters: int) -> str:
    """As the command line calls it, or the number."""
    return _SIZE_NAMES.get(parameters, f"{parameters:,}")


def with_quartiles(middle: float, quartiles: Sequence[float]) -> str:
    """A median and what half of the figures are between."""
    lower, upper = quartiles
    return f"{three_digits(middle)} ({three_digits(lower)}–{three_digits(upper)})"


def three_digits(figure: float) -> str:
    """Three significant digits, without exponent; three decimals below 1."""
    return f"{float(f'{figure:.3g}'):,.{_decimals(figure)}f}"


def workers_text(count: int) -> str:
    """So many workers."""
    return f"{count} worker{'s' * (count > 1)}"


def bytes_text(count: float) -> str:
    """In kB or MB."""
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


def time_text(seconds: float) -> str:
    """In µs or ms."""
    return f"{three_digits(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{three_digits(seconds * 1e6)} µs"


def rounds_text(rounds: Sequence[int]) -> str:
    """From the fewest to the most."""
    few, many = min(rounds), max(rounds)
    return str(few) if few == many else f"{few} to {many}"


def _decimals(figure: float) -> int:
    return next((places for places, least in ((0, 100), (1, 10), (2, 1)) if figure >= least), 3)
