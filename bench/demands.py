"""What the benchmarks must show: every demand, what was measured, and whether that is enough.

Pure: results → demands. Only the thresholds stand here; everything beside them is computed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.case import SIZES
from bench.peers import OURS, SHARED, TCP, TLS, Rows, peers_tables, ratios_to_peers
from bench.tables import bytes_text, label_of, size_name, table, training_of, workers_text

Results = Mapping[str, Mapping[str, Any]]
"""What was measured, as the command line calls it → the file of it."""

RPC, RPC_TCP = "torch RPC (default)", "torch RPC (tcp)"
RAY, GLOO = "Ray actor (object store)", "Gloo send/recv (tcp)"

LONGEST_EPOCH: Final = 1.25
"""Of DDP's."""

DEAREST_INSTRUMENTATION: Final = 0.01
"""Of a step."""

MOST_MODELS: Final = 6.0
"""Of the server's own memory, above the idle process."""

MOST_GROWTH: Final = 1.25
"""Of that memory, with more steps: what queues up without a bound grows as they do."""

SHORTER: Final = 3.0
"""Times that compression must make an epoch shorter."""

MOST_POINTS: Final = 1.0
"""Of accuracy that it may cost."""

NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True)
class Demand:
    """One line: something that must be shown."""

    what: str
    demanded: str
    measured: str
    met: bool | None
    """None: not measured, or there is no threshold."""

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "yes", False: "**no**", None: "–"}[self.met]


@dataclass(frozen=True)
class Race:
    """A demand on updates per second with one worker."""

    ours: str
    peer: str
    size: str
    least: float
    """Times the peer's."""
    strictly: bool = False
    """More than that."""


RACES: Final = (
    Race(TCP, RPC_TCP, "11.2M", 1.2),
    Race(TCP, RAY, "11.2M", 1.5),
    Race(TCP, RAY, "1M", 1.0),
    Race(TCP, RAY, "62k", 3.0),
    Race(TCP, RPC, "62k", 0.4),
    Race(TCP, RPC_TCP, "62k", 0.4),
    Race(SHARED, RPC, "11.2M", 1.5),
    Race(SHARED, RPC, "1M", 1.5),
    Race(SHARED, GLOO, "11.2M", 1.0, strictly=True),
    Race(SHARED, GLOO, "1M", 1.0, strictly=True),
)


def demands_of(results: Results) -> list[Demand]:
    """All demands, in the order of the page."""
    push_pull: Rows = results.get("push-pull", {}).get("rows", ())
    return [
        *(_race(race, push_pull) for race in RACES),
        *_ahead_of_all(push_pull),
        *_of_the_limit(push_pull),
        *_epochs(results.get("epoch", {}).get("rows", ())),
        *_instrumentation(results.get("instrumentation", {}).get("rows", ())),
        *_memory(results.get("memory", {}).get("rows", ())),
        *_compression(results.get("compression", {}).get("rows", ())),
    ]


def demands_section(results: Results) -> str:
    """The demands; then, for each way that Lockstep's vectors travel, every peer by size and number of workers."""
    lines = [
        [demand.what, demand.demanded, demand.measured, demand.verdict] for demand in demands_of(results)
    ]
    rows: Rows = results.get("push-pull", {}).get("rows", ())
    return "\n\n".join([table(["what", "demanded", "measured", "met"], lines), *peers_tables(rows)])


def _race(race: Race, rows: Rows) -> Demand:
    sign = ">" if race.strictly else "≥"
    what = f"{race.ours}, {race.size}, 1 worker"
    demanded = f"{sign} {race.least:g} × {race.peer}"
    rates = {label_of(row): row["updates_per_second"] for row in _of(rows, SIZES[race.size], 1)}
    if race.ours not in rates or race.peer not in rates:
        return _not_measured(what, demanded)
    ratio = rates[race.ours] / rates[race.peer]
    met = ratio > race.least if race.strictly else ratio >= race.least
    return Demand(what, demanded, f"{ratio:.2f} ×", met)


def _of(rows: Rows, parameters: int, workers: int) -> Rows:
    return [row for row in rows if (row["parameters"], row["workers"]) == (parameters, workers)]


def _ahead_of_all(rows: Rows) -> Iterator[Demand]:
    """The aim, beside the thresholds."""
    demanded = "aim: ahead of each"
    for ours in OURS:
        what = f"{ours}: every peer, size and number of workers"
        if not (ratios := ratios_to_peers(rows, ours)):
            yield _not_measured(what, demanded)
            continue
        ahead = sum(ratio > 1 for ratio in ratios.values())
        (peer, parameters, workers), least = min(ratios.items(), key=lambda item: item[1])
        where = f"{peer}, {size_name(parameters)}, {workers_text(workers)}"
        yield Demand(
            what,
            demanded,
            f"{ahead} of {len(ratios)}; least {least:.2f} × ({where})",
            ahead == len(ratios),
        )


def _of_the_limit(rows: Rows) -> Iterator[Demand]:
    for ours in (TCP, TLS):
        shares = [
            f"{row['ratio_to_raw_tcp']:.2f} ({size_name(row['parameters'])})"
            for row in rows
            if label_of(row) == ours and row["workers"] == 1 and row["ratio_to_raw_tcp"] is not None
        ]
        what, demanded = f"{ours}, 1 worker, of raw TCP", "close to it; no threshold"
        yield Demand(what, demanded, ", ".join(shares), None) if shares else _not_measured(what, demanded)


def _epochs(rows: Rows) -> Iterator[Demand]:
    demanded = f"≤ {LONGEST_EPOCH:g} × DDP"
    if not rows:
        yield _not_measured("sync training, time per epoch", demanded)
    for row in rows:
        if row["system"].startswith("Lockstep"):
            ratio = row["ratio_to_ddp"]
            yield Demand(
                f"{row['system']}, {row['workload']}, {row['parameters']:,} parameters,"
                f" {workers_text(row['workers'])}, time per epoch",
                demanded,
                f"{ratio:.2f} ×",
                ratio <= LONGEST_EPOCH,
            )


def _instrumentation(rows: Rows) -> Iterator[Demand]:
    """Added up, and in pairs of laps: there it is too dear where the interval has nothing but more."""
    demanded = f"< {DEAREST_INSTRUMENTATION:.0%} of a step"
    what = "instrumentation, {}".format
    if not rows:
        yield from (_not_measured(what(how), demanded) for how in ("added up", "with against without"))
        return
    dearest = max(rows, key=lambda row: row["cost_share"])
    yield Demand(
        what("added up"),
        demanded,
        f"at most {dearest['cost_share']:.2%} ({_lap(dearest)})",
        dearest["cost_share"] < DEAREST_INSTRUMENTATION,
    )
    too_dear = [row for row in rows if row["off_over_on_interval"][0] > 1 + DEAREST_INSTRUMENTATION]
    medians = [row["off_over_on"] - 1 for row in rows]
    measured = f"medians {min(medians):+.1%} to {max(medians):+.1%}"
    for row in too_dear:
        lower, upper = (end - 1 for end in row["off_over_on_interval"])
        measured += f"; {lower:.1%} to {upper:.1%} in 95 % ({_lap(row)})"
    yield Demand(
        what("with against without"), f"{demanded}, at the interval's lower end", measured, not too_dear
    )


def _lap(row: Mapping[str, Any]) -> str:
    return f"{row['workload']}, {size_name(row['parameters'])}, {row['transport']}"


def _memory(rows: Rows) -> Iterator[Demand]:
    """Of the largest model; the server's own memory is `private`: what it maps beside that are the workers' pages."""
    demanded = f"≤ {MOST_MODELS:g} models"
    large = [row for row in rows if row["parameters"] == SIZES["11.2M"]]
    size = bytes_text(4 * SIZES["11.2M"])
    queued = f"≤ {MOST_GROWTH:g} × the memory with more steps"
    if not large:
        yield _not_measured(f"server's own memory, {size}", demanded)
        yield _not_measured("no queue without a bound", queued)
        return
    for row in large:
        most = max(row["private"], row["longer_private"])
        yield Demand(
            f"server's own memory, {workers_text(row['workers'])} × {size}, {_way(row)}",
            demanded,
            f"{most:.1f} models",
            most <= MOST_MODELS,
        )
    worst = max(large, key=_grown)
    yield Demand(
        "no queue without a bound",
        queued,
        f"{_grown(worst):.2f} × with {worst['longer_steps'] // worst['steps']} times the steps ({_way(worst)})",
        _grown(worst) <= MOST_GROWTH,
    )


def _grown(row: Mapping[str, Any]) -> float:
    grown: float = row["longer_private"] / row["private"]
    return grown


def _way(row: Mapping[str, Any]) -> str:
    codec = "" if row["compression"] == "none" else f", {row['compression']}"
    return f"{row['mode']}, {row['transport']}{codec}"


def _compression(rows: Rows) -> Iterator[Demand]:
    """Of each training the codecs that do both; where none does, the one that makes the epoch shortest."""
    demanded = f"≥ {SHORTER:g} × shorter, within {MOST_POINTS:g} point"
    if not rows:
        yield _not_measured("compression over a slow link", demanded)
    for training in dict.fromkeys(map(training_of, rows)):
        own = [row for row in rows if training_of(row) == training and row["compression"] != "none"]
        enough = [row for row in own if _does(row)]
        shown = enough or [max(own, key=lambda row: row["times_shorter"])]
        yield Demand(
            f"compression, {own[0]['mbit_per_second']:g} Mbit/s, {training}",
            demanded,
            "; ".join(_codec(row) for row in shown),
            bool(enough),
        )


def _does(row: Mapping[str, Any]) -> bool:
    met: bool = row["times_shorter"] >= SHORTER and row["accuracy_difference"] >= -MOST_POINTS
    return met


def _codec(row: Mapping[str, Any]) -> str:
    found = f"{row['compression']} {row['times_shorter']:.1f} ×, {row['accuracy_difference']:+.2f} points"
    if row["accuracy_interval"] is None:
        return found
    lower, upper = row["accuracy_interval"]
    return f"{found} [{lower:+.2f}, {upper:+.2f}]"


def _not_measured(what: str, demanded: str) -> Demand:
    return Demand(what, demanded, NOT_MEASURED, None)
