"""Count what the server did: updates, staleness, time.

Pure; runs in the parameter server, which tells it the (monotonic) time. Knows nothing of gradients or workers.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any


class Accounting:
    """Running figures of one experiment, in the fields of the server's records.

    The staleness of a gradient is the version that it is applied to, less the version it was computed on.
    """

    def __init__(self) -> None:
        self.all_training = False
        """Every worker has pushed once and will push again. Before and after, staleness and time have other
        laws: those that are left have fewer others, and the last one is as slow as the slowest."""

        self._started = self._last_update = self._finished = self._interval_began = 0.0
        self._apply_seconds = self._seconds_all_training = 0.0
        self._updates = self._interval_updates = self._updates_all_training = 0
        self._dropped = self._repeated = 0
        self._stalenesses: Counter[int] = Counter()
        self._stalenesses_all_training: Counter[int] = Counter()
        self._stalenesses_interval: Counter[int] = Counter()

    def start(self, now: float) -> None:
        """All workers are there."""
        self._started = self._last_update = self._finished = self._interval_began = now

    def update(self, now: float, stalenesses: Iterable[int], apply_seconds: float) -> None:
        """One update was made of gradients that were so stale; the optimizer took `apply_seconds`."""
        counted = Counter(stalenesses)
        self._stalenesses += counted
        self._stalenesses_interval += counted
        if self.all_training:
            self._stalenesses_all_training += counted
            self._updates_all_training += 1
            self._seconds_all_training += now - self._last_update
        self._updates += 1
        self._interval_updates += 1
        self._apply_seconds += apply_seconds
        self._last_update = now

    def drop(self) -> None:
        """A gradient came too late to count."""
        self._dropped += 1

    def repeat(self) -> None:
        """A step was pushed again."""
        self._repeated += 1

    def finish(self, now: float) -> None:
        """A worker finished; the last one's time counts."""
        self._finished = now

    def interval(self, now: float) -> dict[str, Any]:
        """Fields of a ServerInterval, but for the version; the next interval begins."""
        seconds = now - self._interval_began
        updates, stalenesses = self._interval_updates, self._stalenesses_interval
        self._interval_began, self._interval_updates, self._stalenesses_interval = now, 0, Counter()
        return {
            "interval_seconds": seconds,
            "updates": updates,
            "updates_per_second": updates / seconds if seconds else 0.0,
            "gradients": stalenesses.total(),
            "mean_staleness": _mean(stalenesses),
            "max_staleness": max(stalenesses, default=None),
        }

    def summary(self) -> dict[str, Any]:
        """Fields of a ServerSummary, but for mode and workers. Rates are over the time up to the last update."""
        seconds = self._last_update - self._started
        return {
            "total_training_time_seconds": self._finished - self._started,
            "global_steps_completed": self._updates,
            "gradients_processed": self._stalenesses.total(),
            "dropped_gradients": self._dropped,
            "repeated_pushes": self._repeated,
            "updates_per_second": self._updates / seconds if seconds else 0.0,
            "mean_step_seconds": seconds / self._updates if self._updates else 0.0,
            "average_gradient_staleness": _mean(self._stalenesses) or 0.0,
            "average_gradient_staleness_all_training": _mean(self._stalenesses_all_training),
            "gradients_all_training": self._stalenesses_all_training.total(),
            "updates_all_training": self._updates_all_training,
            "all_training_seconds": self._seconds_all_training,
            "staleness_histogram": dict(sorted(self._stalenesses.items())),
            "apply_seconds": self._apply_seconds,
        }


def _mean(stalenesses: Counter[int]) -> float | None:
    count = stalenesses.total()
    return sum(value * times for value, times in stalenesses.items()) / count if count else None
