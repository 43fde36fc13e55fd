"""The parts of docs/benchmarks.md that are filled in: one function for each file of results.

Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.tables import (
    bytes_text,
    label_of,
    machine_line,
    rounds_text,
    size_name,
    table,
    time_text,
    training_of,
    with_quartiles,
    workers_text,
)

Rows = Sequence[Mapping[str, Any]]
Found = Mapping[str, Any]

PARTS = ("check_seconds", "apply_seconds", "copy_seconds")


def push_pull_section(found: Found) -> str:
    """Machine, what was skipped, and a table per size."""
    rows: Rows = found["rows"]
    rounds = rounds_text([row["rounds"] for row in rows])
    parts = [f"{machine_line(found['machine'])} {rounds} rounds of about {found['settings']['seconds']:g} s."]
    parts += [f"**Not measured:** {system}. {reason}" for system, reason in found["skipped"].items()]
    parts += [
        f"**Failed:** {entry['system']}, {entry['variant']}, {size_name(entry['parameters'])} parameters,"
        f" {entry['workers']} workers: {entry['reason']}"
        for entry in found["failed"]
    ]
    for parameters in dict.fromkeys(row["parameters"] for row in rows):
        of_size = [row for row in rows if row["parameters"] == parameters]
        parts.append(
            f"### {size_name(parameters)} parameters, {bytes_text(4 * parameters)}\n\n{size_table(of_size)}"
        )
    return "\n\n".join(parts)


def size_table(rows: Rows) -> str:
    """Systems by numbers of workers; costs of the server at the least and the most workers."""
    counts = list(dict.fromkeys(row["workers"] for row in rows))
    few, many = min(counts), max(counts)
    header = ["system", *(f"updates/s, {workers_text(count)}" for count in counts)]
    header += [f"of raw TCP, {workers_text(few)}", f"server CPU s/GB, {workers_text(few)}"]
    header += [f"server memory ÷ model, {workers_text(many)}", f"fastest as, {workers_text(few)}"]
    lines = []
    for label in dict.fromkeys(label_of(row) for row in rows):
        own = {row["workers"]: row for row in rows if label_of(row) == label}
        first, last = own.get(few), own.get(many)
        line = [_name(label)]
        line += [_rate(own[count]) if count in own else "–" for count in counts]
        line += [_figure(first, "ratio_to_raw_tcp", ".2f")]
        line += [_figure(first, "server_cpu_seconds_per_gb", ".2f")]
        line += [_models(last), first["variant"] if first else "–"]
        lines.append(line)
    return table(header, lines)


def epoch_section(found: Found) -> str:
    """Machine, and one table of all workloads."""
    header = ["model, data", "parameters", "system", "s/epoch", "of DDP's", "runs", "last loss", "malloc"]
    lines = [
        [
            f"{row['workload']}, {row['dataset']}",
            f"{row['parameters']:,}",
            _name(row["system"]),
            with_quartiles(row["epoch_seconds"], row["epoch_seconds_quartiles"]),
            f"{row['ratio_to_ddp']:.2f}",
            str(row["rounds"]),
            f"{row['last_loss']:.4f}",
            row["variant"],
        ]
        for row in found["rows"]
    ]
    return f"{machine_line(found['machine'])}\n\n{table(header, lines)}"


def instrumentation_section(found: Found) -> str:
    """Both ways of asking, side by side; then what a step does, and what each of that takes."""
    rows: Rows = found["rows"]
    header = ["workload", "transport", "a step", "steps/s without ÷ with", "95 % of that median", "pairs"]
    header += ["instrumentation of a step", "of the step"]
    lines = []
    for row in rows:
        lower, upper = row["off_over_on_interval"]
        lines.append(
            [
                _workload(row),
                row["transport"],
                time_text(row["step_seconds"]),
                f"{row['off_over_on']:.4f}",
                f"{lower:.4f}–{upper:.4f}",
                str(row["laps"]),
                time_text(row["cost_seconds"]),
                f"{row['cost_share']:.2%}",
            ]
        )
    names = list(dict.fromkeys(name for row in rows for name in row["counts"]))
    details = [
        [
            f"{_workload(row)}, {row['transport']}",
            *(
                f"{row['counts'][name]:.3g} × {row['nanoseconds'][name]:.0f}"
                if name in row["counts"]
                else "–"
                for name in names
            ),
        ]
        for row in rows
    ]
    return "\n\n".join(
        [
            machine_line(found["machine"]),
            table(header, lines),
            "What the last two columns are made of: times a step × nanoseconds.",
            table(["", *names], details),
        ]
    )


def blocks_section(found: Found) -> str:
    """Updates per second: a line per length, a column per size and transport."""
    rows: Rows = found["rows"]
    columns = list(dict.fromkeys((row["parameters"], row["transport"]) for row in rows))
    header = ["block", *(f"{size_name(parameters)}, {transport}" for parameters, transport in columns)]
    lengths = sorted({row["block_length"] for row in rows if row["blocks"] > 1})
    lines = [
        [_block(length), *(_block_rate(rows, column, length) for column in columns)] for length in lengths
    ]
    lines.append(["one block", *(_block_rate(rows, column, column[0]) for column in columns)])
    rounds = rounds_text([row["rounds"] for row in rows])
    settings = f"{rounds} rounds of about {found['settings']['seconds']:g} s."
    return f"{machine_line(found['machine'])} {settings}\n\n{table(header, lines)}"


def memory_section(found: Found) -> str:
    """Server memory in models; a line per size, mode and way to travel."""
    rows: Rows = found["rows"]
    header = ["mode, transport, compression", "parameters", "workers", "resident", "private", "proportional"]
    header += ["times the steps", "resident then", "private then"]
    lines = [
        [
            f"{row['mode']}, {row['transport']}, {row['compression']}",
            size_name(row["parameters"]),
            str(row["workers"]),
            *(f"{row[name]:.1f}" for name in ("resident", "private", "proportional")),
            f"{row['longer_steps'] // row['steps']}",
            *(f"{row[name]:.1f}" for name in ("longer_resident", "longer_private")),
        ]
        for row in rows
    ]
    return f"{machine_line(found['machine'])}\n\n{table(header, lines)}"


def compression_section(found: Found) -> str:
    """A table per training, a line per codec."""
    rows: Rows = found["rows"]
    parts = [f"{machine_line(found['machine'])} topk sends {found['settings']['topk_ratio']:.0%}."]
    for training in dict.fromkeys(map(training_of, rows)):
        own = [row for row in rows if training_of(row) == training]
        parts.append(f"{_training(own[0])}\n\n{_codecs_table(own)}")
    return "\n\n".join(parts)


def _training(row: Mapping[str, Any]) -> str:
    return (
        f"**{training_of(row)}**: {row['parameters']:,} parameters,"
        f" {workers_text(row['workers'])}, {row['epochs']} epochs, {row['mbit_per_second']:g} Mbit/s each way,"
        f" {row['seeds']} seeds."
    )


def _codecs_table(rows: Rows) -> str:
    header = ["compression", "s/epoch", "times shorter", "bytes a step and worker", "accuracy"]
    header += ["difference, points", "95 % over seeds", "least and greatest of the seeds"]
    lines = [
        [
            row["compression"],
            with_quartiles(row["epoch_seconds"], row["epoch_seconds_quartiles"]),
            f"{row['times_shorter']:.1f}",
            bytes_text(row["bytes_per_step"]),
            f"{row['accuracy']:.2f} %",
            f"{row['accuracy_difference']:+.2f}",
            _range(row["accuracy_interval"]),
            _range(row["accuracy_differences"]),
        ]
        for row in rows
    ]
    return table(header, lines)


def parts_section(found: Found) -> str:
    """What the server does beside carrying bytes; a line per size."""
    header = ["parameters", "finite values", "apply", "copy", "together"]
    lines = [
        [
            size_name(row["parameters"]),
            *(time_text(row[name]) for name in PARTS),
            time_text(sum(row[name] for name in PARTS)),
        ]
        for row in found["rows"]
    ]
    return f"{machine_line(found['machine'])}\n\n{table(header, lines)}"


def _range(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def _block(length: int) -> str:
    """Of so many elements of fp32."""
    kibibytes = 4 * length >> 10
    return f"{kibibytes >> 10} MiB" if kibibytes >= 1024 else f"{kibibytes} KiB"


def _block_rate(rows: Rows, column: tuple[int, str], length: int) -> str:
    """In bold where it is the runtime's own."""
    for row in rows:
        if (row["parameters"], row["transport"]) == column and row["block_length"] == length:
            rate = _rate(row)
            return f"**{rate}**" if row["is_runtimes"] else rate
    return "–"


def _workload(row: Mapping[str, Any]) -> str:
    return f"{row['workload']}, {size_name(row['parameters'])} parameters, {workers_text(row['workers'])}"


def _name(label: str) -> str:
    return f"**{label}**" if label.startswith("Lockstep") else label


def _rate(row: Mapping[str, Any]) -> str:
    return with_quartiles(row["updates_per_second"], row["updates_per_second_quartiles"])


def _figure(row: Mapping[str, Any] | None, name: str, form: str) -> str:
    return "–" if row is None or row[name] is None else format(row[name], form)


def _models(row: Mapping[str, Any] | None) -> str:
    """The server's peak memory in models."""
    peak = row["server_peak_bytes"] if row else None
    return f"{peak / (4 * row['parameters']):.1f}" if row and peak is not None else "–"
