"""What is generated of docs/science.md: for every paper the tables and sentences between its markers.

Pure: figures → Markdown. An interval stands behind each figure: 95 %, Student's t over the seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import filled
from bench.tables import table

Figures = Mapping[str, Any]


def page(text: str, found: Figures) -> str:
    """The page with the sections of all papers that have figures. Raises ValueError if markers are missing."""
    sections = {"dutta": dutta_section, "zhang": zhang_section, "chen": chen_section}
    for paper, section in sections.items():
        if paper in found:
            text = filled(text, paper, f"{provenance(found['studies'], paper)}\n\n{section(found[paper])}")
    return text


def provenance(studies: Sequence[Figures], paper: str) -> str:
    """One sentence: the machine, and how long the paper's studies took."""
    own = [study for study in studies if study["paper"] == paper]
    machines = dict.fromkeys(study["machine"] for study in own)
    minutes = sum(study["seconds"] for study in own) / 60
    seeds = ", ".join(str(seed) for seed in own[0]["seeds"])
    return f"Seeds {seeds}; {minutes:.1f} minutes in all. Machine: {'; '.join(machines)}."


def dutta_section(found: Figures) -> str:
    """A row per mode, whether floors are flat, and where the curves cross."""
    header = [
        "mode",
        f"time to training loss {found['fallen_loss']:g} (s)",
        "epochs of the floor",
        "its loss",
        "how the loss changes along it",
        "test error along it (%)",
        "training time (s)",
    ]
    keys = (
        ("floor_loss", ".3f"),
        ("floor_drift", "+.3f"),
        ("floor_error_percent", ".1f"),
        ("training_seconds", ".1f"),
    )
    lines = [
        [
            mode,
            estimate(found["seconds_to_fallen_loss"][mode], ".1f"),
            str(found["floor_epochs"][mode]),
            *(estimate(found[key][mode], form) for key, form in keys),
        ]
        for mode in ("sync", "async")
    ]
    says = [
        f"Async is {estimate(found['fallen_sync_over_async'], '.1f')} times as fast to a loss of"
        f" {found['fallen_loss']:g};",
        f"sync ends lower, by {estimate(found['floor_loss_async_minus_sync'], '.3f')} in loss and",
        f"{estimate(found['floor_error_async_minus_sync'], '.1f')} points of test error.",
        *_crossing(found),
        _flatness(found["floor_drift"]["async"]),
    ]
    return f"{table(header, lines)}\n\n{chr(10).join(says)}"


def _crossing(found: Figures) -> list[str]:
    """Claimed only where it lies within async's run."""
    passed = found["crossing_seconds"]
    by_seed = ", ".join(_number(value, ".1f") for value in found["crossing_seconds_by_seed"])
    if not passed["seeds"]:
        return [
            "With no seed had sync passed async's floor before async's run was over: no crossing is claimed."
        ]
    says = [
        f"Sync passes async's floor at **{estimate(passed, '.1f')} s** (each seed: {by_seed}):"
        " there the curves cross;",
        f"the last that a single epoch of async was below sync's curve is"
        f" {estimate(found['last_crossing_seconds'], '.1f')} s.",
    ]
    if passed["seeds"] < passed["of"]:
        says.append("With the other seeds it had not before async's run was over: none is claimed there.")
    return says


def _flatness(drift: Figures) -> str:
    """Whether async's floor is one: what it would come to with more epochs is not known if it is not."""
    if drift["low"] is None:
        return "Whether async's floor is flat cannot be told from one seed."
    if drift["low"] <= 0 <= drift["high"]:
        return "Async's floor cannot be told from a flat one: zero is within the interval of its change."
    return "Async's floor is not flat: zero is outside the interval of its change."


def zhang_section(found: Figures) -> str:
    """A row per mode; every seed's error; the differences."""
    header = [
        "mode",
        "final test error (%)",
        "each seed",
        "training time (s)",
        "mean staleness",
        "staler than 2N (%)",
    ]
    lines = []
    for mode, error in found["final_error_percent"].items():
        staleness, beyond = found["mean_staleness"].get(mode), found["share_beyond_twice_workers"].get(mode)
        lines.append(
            [
                mode,
                estimate(error, ".1f"),
                _errors_by_seed(found, mode),
                estimate(found["training_seconds"][mode], ".1f"),
                estimate(staleness, ".2f") if staleness else "0",
                "0" if not staleness else _number(None if beyond is None else 100 * beyond, ".2f"),
            ]
        )
    says = [
        f"Dividing by staleness takes {estimate(found['async_minus_aware_percent'], '.1f')} points off async's error;"
        f" what is left is {estimate(found['aware_minus_sync_percent'], '.1f')} points above sync's."
    ]
    if any(any(of) for of in found["diverged"].values()):
        says.append(
            "*diverged*: parameters grew beyond fp32, the server refused the gradient, and the run ended;"
            " it counts with the error of guessing."
        )
    return f"{table(header, lines)}\n\n{chr(10).join(says)}"


def chen_section(found: Figures) -> str:
    """A table per distribution, a row per number of backup workers."""
    return "\n\n".join(f"**{name.capitalize()} draws**\n\n{_chen_table(of)}" for name, of in found.items())


def _chen_table(found: Figures) -> str:
    header = [
        "b",
        "time per update (ms)",
        "law (ms)",
        "as drawn (ms)",
        "faster by",
        f"time to {100 - found['target_error_percent']:g} % accuracy (s)",
        "faster by",
        "updates to it",
        "dropped (%)",
    ]
    lines = [
        [
            backup,
            estimate(row["update_seconds"], ".1f", 1000),
            f"{1000 * row['update_seconds_by_law']:.1f}",
            _number(row["update_seconds_as_drawn"]["mean"], ".1f", 1000),
            "" if backup == "0" else f"{estimate(row['speed_up_of_updates'], '.2f')}",
            estimate(row["seconds_to_target"], ".1f"),
            "" if backup == "0" else f"{estimate(row['speed_up_to_target'], '.2f')}",
            estimate(row["updates_to_target"], ".0f"),
            _number(row["dropped_share"]["mean"], ".1f", 100),
        ]
        for backup, row in found["by_backup_workers"].items()
    ]
    return table(header, lines)


def estimate(found: Figures, form: str, scale: float = 1.0) -> str:
    """Mean [low, high]; the mean alone where one seed gives no interval; how many seeds where some have no figure."""
    mean = _number(found["mean"], form, scale)
    if found["seeds"] < found["of"]:
        mean += f" ({found['seeds']} of {found['of']} seeds)"
    if found["low"] is None:
        return mean
    return f"{mean} [{_number(found['low'], form, scale)}, {_number(found['high'], form, scale)}]"


def _errors_by_seed(found: Figures, mode: str) -> str:
    both = zip(found["final_error_percent_by_seed"][mode], found["diverged"][mode], strict=True)
    return ", ".join("*diverged*" if diverged else f"{error:.1f}" for error, diverged in both)


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else format(value * scale, form)
