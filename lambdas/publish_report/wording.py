"""Figures as people read them: seconds, percent, ratios, counts.

Pure text; a figure that was not measured is a dash, never a zero.
"""

from collections.abc import Sequence

from contract.table import Status

ABSENT = "–"


def seconds(value: float | None) -> str:
    """A duration with three significant digits: 0.42 s, 5.8 s, 1,204 s."""
    if value is None:
        return ABSENT
    if value < 0.1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.2f} s" if value < 1 else f"{value:,.1f} s" if value < 100 else f"{value:,.0f} s"


def milliseconds(value: float | None) -> str:
    """A step's duration, given in seconds."""
    if value is None:
        return ABSENT
    value *= 1000
    return f"{value:,.2f} ms" if value < 10 else f"{value:,.1f} ms" if value < 1000 else f"{value:,.0f} ms"


def percent(value: float | None) -> str:
    """A percentage, given as such."""
    return ABSENT if value is None else f"{value:.1f} %"


def share(value: float | None) -> str:
    """A percentage, given as a share of 1."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def ratio(value: float) -> str:
    """How many times: 2.0×, 1.07×, 12×."""
    return f"{value:.2f}×" if value < 1.2 else f"{value:.1f}×" if value < 10 else f"{value:.0f}×"


def number(value: float | None, digits: int = 2) -> str:
    """A plain figure."""
    return ABSENT if value is None else f"{value:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, a real minus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def byte_count(value: float | None) -> str:
    """An amount of data with three significant digits: 340 B, 153 kB, 44.7 MB."""
    if value is None:
        return ABSENT
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def capitalized(label: str) -> str:
    """A label at the beginning of a sentence; units in it stay as they are."""
    return label[:1].upper() + label[1:]


def count(value: int, noun: str) -> str:
    """1 worker, 4 workers."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def listed(parts: list[str]) -> str:
    """A, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def verdict(study: Status, experiments: Sequence[Status]) -> str:
    """How a study ended: its status, and what did not complete of it."""
    unfinished = [status for status in experiments if status is not Status.COMPLETED]
    if not unfinished:
        return study.value
    kind = "failed" if set(unfinished) == {Status.FAILED} else "unfinished"
    tolerated = " (tolerated)" if study is Status.COMPLETED else ""
    return f"{study} with {count(len(unfinished), f'{kind} experiment')}{tolerated}"


def one_line(text: str) -> str:
    """Text of unknown origin on one line, with control characters (terminals obey them) made visible."""
    return visible(" ".join(text.split()))


def visible(line: str) -> str:
    """A line of unknown origin with its spaces as they are; whatever else does not print is made visible."""
    line = line.expandtabs(4)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
