"""How rounds are laid out and what their figures become: interleaving, medians, rows.

Pure; knows nothing of processes or of any system but the limit that the others are set beside.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median, quantiles
from typing import TypeVar

from bench.case import PAYLOAD_BYTES_PER_PARAMETER, Sample, Variant

MIN_ROUNDS = 3
"""Fewer say nothing about the spread: this many are measured even when the time is over.

After them each system goes on in its fastest variant alone.
"""

MIN_UPDATES = 2
"""Of each worker in a round, however slow a system is."""

FEW_WORKERS = 4
"""What starts slowly is started several times with so many workers, and once with more."""


@dataclass(frozen=True)
class Contestant:
    """A system as the command line names it, run in one way."""

    system: str
    variant: Variant


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of many figures."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Row:
    """A system's figures for one size and number of workers: those of its fastest variant."""

    system: str
    transport: str
    parameters: int
    workers: int
    variant: str
    rounds: int
    """Or laps of one, where starting takes too long."""
    updates_per_second: float
    updates_per_second_quartiles: tuple[float, float]
    bytes_per_second: float
    """Payload: gradients and parameters."""
    ratio_to_raw_tcp: float | None
    server_cpu_seconds_per_gb: float | None
    """Per 10⁹ bytes of payload; median of the rounds."""
    server_peak_bytes: int | None
    """Above the idle process; the largest of the rounds."""
    loopback_bytes_per_update: float
    other_variants: dict[str, float]
    """Their updates per second."""


T = TypeVar("T")


def shuffled(contestants: Sequence[T], seed: int) -> list[T]:
    """An order for one round: none always runs after the same neighbour, or when the machine is warmest."""
    order = list(contestants)
    random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    return order


def pilot_updates(parameters: int) -> int:
    """Updates of each worker in the round that only tells how fast a system is."""
    return max(3, min(50, 4_000_000 // parameters))


def updates_each(rate: float, workers: int, seconds: float) -> int:
    """Updates of each worker that take about `seconds`, at `rate` updates per second of all workers."""
    return max(MIN_UPDATES, round(rate * seconds / workers))


def warm_up_of(updates: int) -> int:
    """Updates before the clock starts: the first ones meet cold memory."""
    return max(2, updates // 10)


def goes_on(done: int, wanted: int, *, in_time: bool) -> bool:
    """Whether another round is measured after `done` of at most `wanted`."""
    return done < wanted and (in_time or done < MIN_ROUNDS)


def rounds_for(wanted: int, workers: int, *, slow_start: bool) -> int:
    """At most so many rounds: fewer where each takes long to start."""
    if not slow_start:
        return wanted
    return min(wanted, MIN_ROUNDS) if workers <= FEW_WORKERS else 1


def laps_for(workers: int, *, slow_start: bool) -> int:
    """Laps of a round: where there is but one, several, so that it has a median."""
    return MIN_ROUNDS if slow_start and workers > FEW_WORKERS else 1


def share_of_time(now: float, deadline: float, left: float) -> float:
    """When the next of `left` configurations should be done: what one does not use, the later ones have."""
    return now + max(deadline - now, 0) / left


def spread_of(figures: Sequence[float]) -> Spread:
    """Median and quartiles; of a single figure, itself."""
    if len(figures) == 1:
        return Spread(figures[0], figures[0], figures[0])
    lower, middle, upper = quantiles(figures, n=4, method="inclusive")
    return Spread(middle, lower, upper)


def median_interval(figures: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval that has the median of what `figures` are drawn from, whatever its distribution.

    Between two order statistics: as many of n draws are below the median as of n coins show heads. Of fewer than six
    figures the extremes, which have it less often. Source: Conover, "Practical Nonparametric Statistics" (1999), 3.2.
    """
    ordered = sorted(figures)
    n, outside, cut = len(ordered), 0.0, 0
    while cut < n // 2 and outside + comb(n, cut) / 2**n <= (1 - confidence) / 2:
        outside += comb(n, cut) / 2**n
        cut += 1
    lowest = max(cut - 1, 0)
    return ordered[lowest], ordered[n - 1 - lowest]


def median_rates(samples: Mapping[Contestant, Sequence[Sample]]) -> dict[Contestant, float]:
    """Median updates per second."""
    return {who: median(s.updates_per_second for s in found) for who, found in samples.items() if found}


def fastest_variants(rates: Mapping[Contestant, float]) -> dict[str, Contestant]:
    """System → its fastest variant."""
    best: dict[str, Contestant] = {}
    for who, rate in rates.items():
        if who.system not in best or rate > rates[best[who.system]]:
            best[who.system] = who
    return best


def rows_of(
    samples: Mapping[Contestant, Sequence[Sample]],
    names: Mapping[str, tuple[str, str]],
    *,
    limit: str,
    parameters: int,
    workers: int,
) -> list[Row]:
    """Rows of one size and number of workers; `names`: system → its name and transport, in the order of the rows.

    Systems without a sample have no row; without one of `limit`, no row has a ratio.
    """
    rates = median_rates(samples)
    best = fastest_variants(rates)
    limit_rate = rates[best[limit]] if limit in best else None
    rows = []
    for system, (name, transport) in names.items():
        if system in best:
            who = best[system]
            others = {
                str(other.variant): rounded(rate)
                for other, rate in rates.items()
                if other.system == system and other != who
            }
            rows.append(
                _row(
                    samples[who],
                    limit_rate,
                    system=name,
                    transport=transport,
                    parameters=parameters,
                    workers=workers,
                    variant=who.variant,
                    others=others,
                )
            )
    return rows


def _row(
    samples: Sequence[Sample],
    limit_rate: float | None,
    *,
    system: str,
    transport: str,
    parameters: int,
    workers: int,
    variant: Variant,
    others: dict[str, float],
) -> Row:
    payload = PAYLOAD_BYTES_PER_PARAMETER * parameters
    rate = spread_of([sample.updates_per_second for sample in samples])
    costs = [
        sample.server_cpu_seconds / (sample.updates * payload / 1e9)
        for sample in samples
        if sample.server_cpu_seconds is not None
    ]
    peaks = [sample.server_peak_bytes for sample in samples if sample.server_peak_bytes is not None]
    return Row(
        system=system,
        transport=transport,
        parameters=parameters,
        workers=workers,
        variant=str(variant),
        rounds=len(samples),
        updates_per_second=rounded(rate.median),
        updates_per_second_quartiles=(rounded(rate.lower), rounded(rate.upper)),
        bytes_per_second=rounded(rate.median * payload),
        ratio_to_raw_tcp=rounded(rate.median / limit_rate) if limit_rate else None,
        server_cpu_seconds_per_gb=rounded(median(costs)) if costs else None,
        server_peak_bytes=max(peaks) if peaks else None,
        loopback_bytes_per_update=rounded(median(s.loopback_bytes / s.updates for s in samples)),
        other_variants=others,
    )


def rounded(figure: float) -> float:
    """Four significant digits: more would be noise in the committed file."""
    return float(f"{figure:.4g}")
