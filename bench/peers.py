"""Lockstep beside its peers: updates per second ÷ theirs, by size and number of workers.

Pure: rows of push-pull → ratios and tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.tables import label_of, size_name, table, workers_text

Rows = Sequence[Mapping[str, Any]]
Where = tuple[str, int, int]
"""Peer, parameters, workers."""

TCP: Final = "Lockstep (tcp)"
TLS: Final = "Lockstep (tcp, TLS)"
SHARED: Final = "Lockstep (shared-memory)"
OURS: Final = (TCP, TLS, SHARED)
RAW: Final = "raw TCP round trip (tcp)"
"""The limit, which is no peer."""


def ratios_to_peers(rows: Rows, ours: str) -> dict[Where, float]:
    """Updates per second of `ours` ÷ the peer's, wherever both were measured."""
    own = {
        (row["parameters"], row["workers"]): row["updates_per_second"]
        for row in rows
        if label_of(row) == ours
    }
    return {
        (label_of(row), *where): own[where] / row["updates_per_second"]
        for row in rows
        if label_of(row) not in {*OURS, RAW} and (where := (row["parameters"], row["workers"])) in own
    }


def peers_tables(rows: Rows) -> list[str]:
    """A table for each way that Lockstep's vectors travel and that was measured."""
    return [
        f"**{ours}**, updates per second ÷ the peer's; in bold where it is behind:\n\n{_table(ratios)}"
        for ours in OURS
        if (ratios := ratios_to_peers(rows, ours))
    ]


def _table(ratios: Mapping[Where, float]) -> str:
    columns = sorted({(parameters, workers) for _, parameters, workers in ratios})
    peers = list(dict.fromkeys(peer for peer, _, _ in ratios))
    header = [
        "peer",
        *(f"{size_name(parameters)}, {workers_text(workers)}" for parameters, workers in columns),
    ]
    return table(header, [[peer, *(_cell(ratios.get((peer, *of))) for of in columns)] for peer in peers])


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.2f}" if ratio > 1 else f"**{ratio:.2f}**"
