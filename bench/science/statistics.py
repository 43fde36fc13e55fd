"""Figures over seeds, curves over time, and the law of the K-th shortest draw.

Pure; knows nothing of studies. Intervals are the report's: Student's t over seeds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, lgamma
from statistics import fmean
from typing import Any

from contract.compute import Compute
from contract.draws import draw_seconds
from lambdas.publish_report.estimates import Estimate, paired_difference, paired_ratio
from lambdas.publish_report.laws import draw_of_rank


@dataclass(frozen=True)
class Curve:
    """A quantity over time, straight between its points; `seconds` ascend."""

    seconds: Sequence[float]
    values: Sequence[float]

    def at(self, second: float) -> float:
        """The value at a time. Raises ValueError outside the curve."""
        if not self.seconds[0] <= second <= self.seconds[-1]:
            raise ValueError(f"{second} s is outside the curve, {self.seconds[0]} to {self.seconds[-1]} s")
        for (t0, v0), (t1, v1) in zip(self._points, self._points[1:], strict=False):
            if second <= t1:
                return v0 + (v1 - v0) * (second - t0) / (t1 - t0)
        return self.values[0]

    def first(self, reached: float) -> float | None:
        """When the values first come down to `reached`; None if they never do."""
        if self.values[0] <= reached:
            return self.seconds[0]
        for (t0, v0), (t1, v1) in zip(self._points, self._points[1:], strict=False):
            if v1 <= reached:
                return t0 + (t1 - t0) * (v0 - reached) / (v0 - v1)
        return None

    @property
    def _points(self) -> list[tuple[float, float]]:
        return list(zip(self.seconds, self.values, strict=True))


def crossing(late: Curve, early: Curve) -> float | None:
    """From when on `late` stays below `early`, as long as both last; None if it does not end there or began so."""
    begin = max(late.seconds[0], early.seconds[0])
    end = min(late.seconds[-1], early.seconds[-1])
    if begin >= end:
        return None
    inner = {second for second in (*late.seconds, *early.seconds) if begin < second < end}
    moments = [begin, *sorted(inner), end]
    # Between two moments both curves are straight, and so is their difference.
    gaps = [late.at(second) - early.at(second) for second in moments]
    if gaps[-1] >= 0:
        return None
    above = max((i for i, gap in enumerate(gaps) if gap >= 0), default=None)
    if above is None:
        return None
    before, after = gaps[above], gaps[above + 1]
    return moments[above] + (moments[above + 1] - moments[above]) * before / (before - after)


def slope(curve: Curve) -> float:
    """By how much the values rise in a second: least squares. Of a single point, 0."""
    middle, mean = fmean(curve.seconds), fmean(curve.values)
    spread = sum((second - middle) ** 2 for second in curve.seconds)
    rise = sum((t - middle) * (v - mean) for t, v in zip(curve.seconds, curve.values, strict=True))
    return rise / spread if spread else 0.0


def over_seeds(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean and 95 % interval of those that are known, as JSON: mean, low, high, and how many of how many seeds."""
    return difference((value, 0.0) for value in values)


def difference(pairs: Iterable[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Mean and 95 % interval of first − second, of pairs that share a seed."""
    return _estimate(paired_difference, pairs)


def ratio(pairs: Iterable[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Geometric mean and 95 % interval of first ÷ second, of pairs that share a seed."""
    return _estimate(paired_ratio, pairs)


def kth_draw_seconds(compute: Compute, workers: int, k: int) -> float:
    """Mean of the `k`-th shortest of `workers` draws: the law of a barrier that waits for K.

    Pareto, with least value x0 and tail index a: x0·Γ(N+1)·Γ(N-K+1-1/a) / (Γ(N+1-1/a)·Γ(N-K+1)).
    Source: Malik 1966, Exact moments of order statistics from the Pareto distribution. Others: the report's laws.
    """
    if compute.distribution == "pareto" and compute.tail_index:
        a, later = compute.tail_index, workers - k + 1
        least = compute.mean_ms / 1000 * (a - 1) / a
        logs = lgamma(workers + 1) + lgamma(later - 1 / a) - lgamma(workers + 1 - 1 / a) - lgamma(later)
        return least * exp(logs)
    law = draw_of_rank(compute, workers, k)
    if law is None:
        raise ValueError(f"no formula for the {k}th of {workers} {compute.distribution} draws")
    return law[0]


def drawn_seconds(compute: Compute, workers: int, k: int, *, steps: int, seed: int) -> float:
    """The same mean of the very draws that an experiment had: behind a barrier all begin each step together."""
    total = 0.0
    for step in range(steps):
        total += sorted(draw_seconds(seed, rank, step, compute) for rank in range(workers))[k - 1]
    return total / steps


def on_grid(curves: Sequence[Curve], points: int = 80) -> list[tuple[float, float, float, float]]:
    """(second, mean, least, greatest) of several curves, over the time that all of them cover."""
    begin = max(curve.seconds[0] for curve in curves)
    end = min(curve.seconds[-1] for curve in curves)
    grid = []
    for i in range(points):
        second = min(begin + (end - begin) * i / (points - 1), end)
        values = [curve.at(second) for curve in curves]
        grid.append((second, sum(values) / len(values), min(values), max(values)))
    return grid


def _estimate(
    estimate: Callable[[Iterable[tuple[float, float]]], Estimate | None],
    pairs: Iterable[tuple[float | None, float | None]],
) -> dict[str, Any]:
    """`seeds` of `of` seeds were known; `low` and `high` are null with fewer than two, `mean` with none."""
    given = list(pairs)
    known = [(first, second) for first, second in given if first is not None and second is not None]
    found = estimate(known)
    if found is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0, "of": len(given)}
    low, high = (found.low, found.high) if found.has_interval else (None, None)
    return {"mean": found.value, "low": low, "high": high, "seeds": found.pairs, "of": len(given)}
