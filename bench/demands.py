"""What the benchmarks must show: every demand, what was measured, and whether that is enough.

Pure: results → demands. Only the thresholds stand here; everything beside them is computed. What is demanded is what
the bench measures in full: a part of it that the results lack is said to be missing, and never met.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from bench import instrumentation, memory
from bench.case import SIZES, WORKERS
from bench.compression import MBIT_PER_SECOND, SETTINGS
from bench.epoch import LOCKSTEP
from bench.peers import OURS, RAW, SHARED, TCP, TLS, Rows, peers_tables, ratios_to_peers
from bench.registry import SYSTEMS
from bench.tables import bytes_text, label_of, size_name, table, training_of, workers_text
from bench.workload import WORKLOADS
from contract.model_sizes import size_of
from runtime.blocks import blocks_of

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
UNDECIDED: Final = "undecided"


@dataclass(frozen=True)
class Demand:
    """One line: something that must be shown."""

    what: str
    demanded: str
    measured: str
    met: bool | None
    """None: not measured, there is no threshold, or what was measured does not tell."""
    undecided: bool = False
    """What was measured does not tell."""

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "yes", False: "**no**", None: UNDECIDED if self.undecided else "–"}[self.met]


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


PEERS: Final = tuple(system.label for system in SYSTEMS.values() if system.label not in {*OURS, RAW})

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
    """The aim, beside the thresholds; not over TLS, since no peer encrypts."""
    demanded = "aim: ahead of each"
    for ours in (TCP, SHARED):
        what = f"{ours}: every peer, size and number of workers"
        if not (ratios := ratios_to_peers(rows, ours)):
            yield _not_measured(what, demanded)
            continue
        ahead = sum(ratio > 1 for ratio in ratios.values())
        (peer, parameters, workers), least = min(ratios.items(), key=lambda item: item[1])
        where = f"{peer}, {size_name(parameters)}, {workers_text(workers)}"
        measured = f"{ahead} of {len(ratios)}; least {least:.2f} × ({where})"
        missing = set(product(PEERS, SIZES.values(), WORKERS)) - ratios.keys()
        yield _as_far_as_known(Demand(what, demanded, measured, ahead == len(ratios)), len(missing))


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
    found = {(row["workload"], row["system"]): row for row in rows}
    for (name, workload), system in product(WORKLOADS.items(), LOCKSTEP):
        parameters = size_of(workload.dataset, workload.model).parameters
        what = (
            f"{system}, {name}, {parameters:,} parameters in {_blocks(parameters)},"
            f" {workers_text(workload.workers)}, time per epoch"
        )
        row = found.get((name, system))
        if row is None:
            yield _not_measured(what, demanded)
        else:
            ratio = row["ratio_to_ddp"]
            yield Demand(what, demanded, f"{ratio:.2f} ×", ratio <= LONGEST_EPOCH)


def _blocks(parameters: int) -> str:
    count = len(blocks_of(parameters))
    return f"{count} block{'s' * (count > 1)}"


def _instrumentation(rows: Rows) -> Iterator[Demand]:
    """Added up, and in pairs of laps, which show nothing while they differ by more than what is asked for."""
    demanded = f"< {DEAREST_INSTRUMENTATION:.0%} of a step"
    what = "instrumentation, {}".format
    found = {(row["workload"], row["parameters"], row["transport"]) for row in rows}
    missing = [lap for lap in instrumentation.MEASURED if lap not in found]
    for workload, parameters, transport in missing:
        yield _not_measured(what(f"{workload}, {size_name(parameters)}, {transport}"), demanded)
    if not rows:
        return
    dearest = max(rows, key=lambda row: row["cost_share"])
    added_up = Demand(
        what("added up"),
        demanded,
        f"at most {dearest['cost_share']:.2%} ({_lap(dearest)})",
        dearest["cost_share"] < DEAREST_INSTRUMENTATION,
    )
    for demand in (added_up, _with_against_without(what("with against without"), demanded, rows)):
        yield _as_far_as_known(demand, len(missing))


def _with_against_without(what: str, demanded: str, rows: Rows) -> Demand:
    """Met where no interval is wider than the threshold or reaches beyond it; not where one has nothing but more."""
    most = 1 + DEAREST_INSTRUMENTATION
    medians = [row["off_over_on"] - 1 for row in rows]
    measured = f"medians {min(medians):+.1%} to {max(medians):+.1%}"
    too_dear = [row for row in rows if row["off_over_on_interval"][0] > most]
    widest = max(rows, key=_width)
    for row in too_dear or [widest]:
        lower, upper = (end - 1 for end in row["off_over_on_interval"])
        measured += f"; {lower:+.1%} to {upper:+.1%} in 95 % ({_lap(row)})"
    if too_dear:
        return Demand(what, demanded, measured, False)
    told = _width(widest) <= DEAREST_INSTRUMENTATION and all(
        row["off_over_on_interval"][1] <= most for row in rows
    )
    return Demand(what, demanded, measured, True if told else None, undecided=not told)


def _width(row: Mapping[str, Any]) -> float:
    lower, upper = row["off_over_on_interval"]
    width: float = upper - lower
    return width


def _lap(row: Mapping[str, Any]) -> str:
    return f"{row['workload']}, {size_name(row['parameters'])}, {row['transport']}"


def _memory(rows: Rows) -> Iterator[Demand]:
    """Thresholds are on the largest model.

    The server's own memory is `private`: what it maps beside that are the workers' pages.
    """
    queued = f"≤ {MOST_GROWTH:g} × the memory with more steps"
    found = {(_way(row), row["parameters"], row["workers"]): row for row in rows}
    large = []
    for size, mode, (transport, codec) in product(memory.SIZES_MEASURED, memory.MODES, memory.WAYS):
        parameters, workers = SIZES[size], memory.WORKERS
        way = _way({"mode": mode, "transport": transport, "compression": codec})
        what = f"server's own memory, {workers_text(workers)} × {bytes_text(4 * parameters)}, {way}"
        is_largest = size == memory.SIZES_MEASURED[-1]
        demanded = f"≤ {MOST_MODELS:g} models" if is_largest else "no threshold"
        row = found.get((way, parameters, workers))
        if row is None:
            yield _not_measured(what, demanded)
            continue
        most = max(row["private"], row["longer_private"])
        yield Demand(what, demanded, f"{most:.1f} models", most <= MOST_MODELS if is_largest else None)
        large += [row] * is_largest
    if not large:
        yield _not_measured("no queue without a bound", queued)
        return
    worst = max(large, key=_grown)
    grown = Demand(
        "no queue without a bound",
        queued,
        f"{_grown(worst):.2f} × with {worst['longer_steps'] // worst['steps']} times the steps ({_way(worst)})",
        _grown(worst) <= MOST_GROWTH,
    )
    yield _as_far_as_known(grown, len(memory.MODES) * len(memory.WAYS) - len(large))


def _grown(row: Mapping[str, Any]) -> float:
    grown: float = row["longer_private"] / row["private"]
    return grown


def _way(row: Mapping[str, Any]) -> str:
    codec = "" if row["compression"] == "none" else f", {row['compression']}"
    return f"{row['mode']}, {row['transport']}{codec}"


def _compression(rows: Rows) -> Iterator[Demand]:
    """Of each training the codecs that do both; where none does, the one that makes the epoch shortest."""
    demanded = f"≥ {SHORTER:g} × shorter, within {MOST_POINTS:g} point"
    for setting in SETTINGS:
        what = f"compression, {MBIT_PER_SECOND:g} Mbit/s, {setting}"
        own = {row["compression"]: row for row in rows if training_of(row) == str(setting)}
        if missing := [codec for codec in setting.codecs if codec not in own]:
            yield _not_measured(f"{what}: {', '.join(missing)}", demanded)
        found = [row for codec, row in own.items() if codec != "none"]
        if not found:
            continue
        enough = [row for row in found if _does(row)]
        shown = enough or [max(found, key=lambda row: row["times_shorter"])]
        yield Demand(what, demanded, "; ".join(_codec(row) for row in shown), bool(enough))


def _does(row: Mapping[str, Any]) -> bool:
    met: bool = row["times_shorter"] >= SHORTER and row["accuracy_difference"] >= -MOST_POINTS
    return met


def _codec(row: Mapping[str, Any]) -> str:
    found = f"{row['compression']} {row['times_shorter']:.1f} ×, {row['accuracy_difference']:+.2f} points"
    if row["accuracy_interval"] is None:
        return found
    lower, upper = row["accuracy_interval"]
    return f"{found} [{lower:+.2f}, {upper:+.2f}]"


def _as_far_as_known(demand: Demand, missing: int) -> Demand:
    """Of many figures together, so many of which are missing: one is enough to fail, and all are needed to pass."""
    if not missing:
        return demand
    measured = f"{demand.measured}; {missing} {NOT_MEASURED}"
    if demand.met:
        return replace(demand, measured=measured, met=None, undecided=True)
    return replace(demand, measured=measured)


def _not_measured(what: str, demanded: str) -> Demand:
    return Demand(what, demanded, NOT_MEASURED, None)
