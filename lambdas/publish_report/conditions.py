"""Conditions of a study: completed experiments alike in all but their seed, runs side by side.

Alike: mode, what it was told, how gradients travel, the injected network, and the number of workers.
Pure; what plots, findings and tables mean by "async with 4 workers".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, get_args

from contract.aggregation import KEY_OF, SYMBOL_OF, Mode
from contract.exchange import Compression
from contract.network import Network
from lambdas.publish_report.estimates import Spread, spread
from lambdas.publish_report.labels import compression_label, network_label
from lambdas.publish_report.results import ExperimentResult

Measure = Callable[[ExperimentResult], float | None]


@dataclass(frozen=True)
class Condition:
    """All completed experiments of one variant with one number of workers; never without results."""

    mode: Mode
    label: str
    """The mode, with what tells this variant from the study's others: "ksync (k = 2)", "sync (int8)"."""
    link: "Link"
    workers: int
    results: Sequence[ExperimentResult]

    def by_seed(self, measure: Measure) -> Mapping[int, float]:
        """A figure for every seed that has it, ascending: the mean of the runs that repeat the seed."""
        values: dict[int, list[float]] = {}
        for result in self.results:
            if (value := measure(result)) is not None:
                values.setdefault(result.seed, []).append(value)
        return {seed: fmean(repeated) for seed, repeated in sorted(values.items())}

    def spread(self, measure: Measure) -> Spread | None:
        """Mean and range of a figure over the seeds; None where none has it."""
        return spread(self.by_seed(measure).values())


def conditions(results: Iterable[ExperimentResult], mode: Mode) -> list[Condition]:
    """The completed experiments of `mode`, by variant and by number of workers, both ascending.

    Seeds ascend in each; the order of `results` does not matter.
    """
    completed = [result for result in results if result.completed]
    links = {link_of(result) for result in completed}
    own = [result for result in completed if result.mode is mode]
    several_told = len({_told(result) for result in own}) > 1
    found: dict[tuple[float, Link, int], list[ExperimentResult]] = {}
    for result in sorted(
        own, key=lambda r: (_told(r), link_of(r), r.total_workers, r.seed, r.experiment_name)
    ):
        found.setdefault((_told(result), link_of(result), result.total_workers), []).append(result)
    return [
        Condition(mode, _label(together[0], links, told=several_told), link, workers, together)
        for (_, link, workers), together in found.items()
    ]


def lines(results: Sequence[ExperimentResult]) -> dict[str, list[Condition]]:
    """What a line of a plot joins: label → its conditions by number of workers; in the order of the modes."""
    joined: dict[str, list[Condition]] = {}
    for mode in Mode:
        for condition in conditions(results, mode):
            joined.setdefault(condition.label, []).append(condition)
    return joined


def compared(results: Sequence[ExperimentResult]) -> list[tuple[Condition, Condition]]:
    """(sync, async) for every number of workers that completed in both modes over the same link, ascending."""
    of_async = {
        (condition.workers, condition.link): condition for condition in conditions(results, Mode.ASYNC)
    }
    both = [
        (condition, of_async[condition.workers, condition.link])
        for condition in conditions(results, Mode.SYNC)
        if (condition.workers, condition.link) in of_async
    ]
    return sorted(both, key=lambda pair: (pair[0].workers, pair[0].link))


def pictured(results: Sequence[ExperimentResult]) -> list[tuple[Condition, Condition]]:
    """Of what is compared, the pairs with a plot: for every number of workers that over the plainest link."""
    by_workers: dict[int, tuple[Condition, Condition]] = {}
    for pair in compared(results):
        by_workers.setdefault(pair[0].workers, pair)
    return list(by_workers.values())


def pairs(first: Condition, second: Condition, measure: Measure) -> list[tuple[float, float]]:
    """A figure under both conditions, for every seed that has it under both, seeds ascending."""
    one, other = first.by_seed(measure), second.by_seed(measure)
    return [(value, other[seed]) for seed, value in one.items() if seed in other]


class Link(NamedTuple):
    """How gradients and parameters travel, in an order for people: the least is done to them first."""

    slowness: float
    """Seconds for a megabit; 0 where no bandwidth is injected."""
    latency_ms: float
    own_links: tuple[tuple[int, float, float], ...]
    """Of workers whose link is another one: rank, slowness, latency."""
    compression: int
    """Place among the compressions."""
    kept: float
    """Of topk, the less the later."""
    transport: str
    tls: str


def link_of(result: ExperimentResult) -> Link:
    """The link of an experiment; equal for experiments that differ in nothing of it."""
    exchange = result.exchange
    return Link(
        _slowness(result.network),
        result.network.latency_ms,
        tuple(_own_links(result.network)),
        get_args(Compression).index(exchange.compression),
        -exchange.topk_ratio if exchange.compression == "topk" else 0.0,
        exchange.transport,
        "" if exchange.tls is None else f"TLS {'on' if exchange.tls else 'off'}",
    )


def _own_links(network: Network) -> Iterator[tuple[int, float, float]]:
    for rank in sorted(worker.rank for worker in network.workers):
        link = network.of(rank)
        yield rank, _slowness(link), link.latency_ms


def _slowness(network: Network) -> float:
    bandwidth = network.bandwidth_mbit_per_second
    return 1 / bandwidth if bandwidth else 0.0


def _told(result: ExperimentResult) -> float:
    """What tells variants of a mode apart; a mode that is told nothing has one."""
    return float(result.aggregation.value(result.mode) or 0)


def _label(result: ExperimentResult, links: Iterable[Link], *, told: bool) -> str:
    """The mode, and in brackets what differs in the study: what the mode is told, and parts of the link."""
    mode, own = result.mode, link_of(result)
    parts = [f"{SYMBOL_OF[KEY_OF[mode]]} = {_told(result):g}"] if told else []
    differing = {name for name in Link._fields if len({getattr(link, name) for link in links}) > 1}
    if differing & {"compression", "kept"}:
        parts.append(compression_label(result.exchange))
    if differing & {"slowness", "latency_ms", "own_links"}:
        parts.append(network_label(result.network) if result.network.injected else "network as it is")
    if "transport" in differing and own.transport != "auto":
        parts.append(own.transport)
    if "tls" in differing and own.tls:
        parts.append(own.tls)
    return f"{mode} ({', '.join(parts)})" if parts else mode.value
