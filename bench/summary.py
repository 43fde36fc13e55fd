"""What README.md says of the benchmarks: a line each on whole training, push-pull and memory.

Pure: results → Markdown. What was not measured is left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from bench import memory
from bench.case import SIZES
from bench.demands import RAY, RPC, RPC_TCP
from bench.epoch import LOCKSTEP
from bench.peers import SHARED, TCP, Rows, ratios_to_peers
from bench.tables import bytes_text, workers_text

LARGE = "11.2M"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown list."""
    lines = [
        *_epochs(results.get("epoch", {}).get("rows", ())),
        *_push_pull(results.get("push-pull", {}).get("rows", ())),
        *_memory(results.get("memory", {}).get("rows", ())),
    ]
    return "\n".join(lines)


def _epochs(rows: Rows) -> Iterator[str]:
    for system, transport in LOCKSTEP.items():
        own = [row for row in rows if row["system"] == system]
        if not own:
            continue
        ratios = ", ".join(
            f"{row['ratio_to_ddp']:.2f} ({row['workload']}, {row['parameters']:,} parameters)" for row in own
        )
        yield (
            f"- an epoch of sync with {workers_text(own[0]['workers'])}, {_named(transport)}, beside PyTorch's DDP over"
            f" Gloo: {ratios} times as long;"
        )


def _push_pull(rows: Rows) -> Iterator[str]:
    for ours, transport, peers in (
        (TCP, "tcp", {"torch RPC's over TCP": RPC_TCP, "Ray's": RAY}),
        (SHARED, "shared-memory", {"torch RPC's": RPC, "Ray's": RAY}),
    ):
        ratios = ratios_to_peers(rows, ours)
        found = {name: ratios.get((peer, SIZES[LARGE], 1)) for name, peer in peers.items()}
        said = [f"{ratio:.2f} times {name}" for name, ratio in found.items() if ratio is not None]
        if said:
            size = bytes_text(4 * SIZES[LARGE])
            yield f"- updates per second of a {size} model, one worker, {_named(transport)}: {', '.join(said)};"


def _memory(rows: Rows) -> Iterator[str]:
    """The most of either round."""
    said = [
        f"{max(row['private'], row['longer_private']):.1f} ({row['mode']}, {_named(row['transport'])}{_codec(row)})"
        for row in rows
        if (row["parameters"], row["workers"]) == (SIZES[LARGE], memory.WORKERS)
    ]
    if said:
        size = bytes_text(4 * SIZES[LARGE])
        yield f"- the server's own memory with {workers_text(memory.WORKERS)}, in models of {size}: {', '.join(said)};"


def _codec(row: Mapping[str, Any]) -> str:
    return "" if row["compression"] == "none" else f" and {row['compression']}"


def _named(transport: str) -> str:
    return {"tcp": "TCP", "shared-memory": "shared memory"}[transport]
