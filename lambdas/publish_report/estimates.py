"""Estimate from few seeds: spreads over them, and intervals of paired ratios and differences.

Pure statistics over plain numbers; knows nothing of what was measured. The method is Student's t on pairs
(the same seed under both conditions), on logarithms where ratios are asked for. One pair gives no interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import fmean, stdev

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t for 1, 2 … 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Estimate:
    """A ratio or a difference over pairs, with its 95 % interval where there are at least two pairs."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def has_interval(self) -> bool:
        """Whether there were enough pairs to say how sure the value is."""
        return self.pairs > 1

    def excludes(self, value: float) -> bool:
        """Whether `value` can be ruled out."""
        return self.has_interval and not self.low <= value <= self.high


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, least and greatest of what was measured; None where nothing was."""
    measured = [value for value in values if value is not None]
    return Spread(fmean(measured), min(measured), max(measured), len(measured)) if measured else None


def quantile(histogram: Mapping[float, int], share: float) -> float | None:
    """The least upper bound of a bin that so great a share of the measurements stays below; None where none is."""
    needed, counted = share * sum(histogram.values()), 0
    for bound, measurements in sorted(histogram.items()):
        counted += measurements
        if counted and counted >= needed:
            return bound
    return None


def paired_ratio(pairs: Iterable[tuple[float, float]]) -> Estimate | None:
    """Geometric mean of first ÷ second. None where no pair is positive throughout."""
    estimate = _mean([log(first / second) for first, second in pairs if first > 0 and second > 0])
    if estimate is None:
        return None
    low, high = (exp(estimate.low), exp(estimate.high)) if estimate.has_interval else (0.0, inf)
    return Estimate(exp(estimate.value), low, high, estimate.pairs)


def paired_difference(pairs: Iterable[tuple[float, float]]) -> Estimate | None:
    """Mean of first − second. None without a pair."""
    return _mean([first - second for first, second in pairs])


def _mean(values: Sequence[float]) -> Estimate | None:
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, -inf, inf, 1)
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * stdev(values) / sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))
