"""Count what the server did: updates, staleness, time.

Pure; runs in the parameter server, which tells it the (monotonic) time. Knows nothing of gradients or workers.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

SHORTEST_WAIT: Final = 0.001
"""Bound of the first bin of waiting times, seconds."""


class Accounting:
    """Running figures of one experiment, in the fields of the server's records.

    The staleness of a gradient is the version that it is applied to, less the version it was computed on. An update
    only adds to what is new; that goes into the figures when they are asked for, or would go into others from now on.
    """

    def __init__(self) -> None:
        self._all_training = False
        self._started: float | None = None
        self._last_update = self._last_addition = self._finished = self._interval_began = 0.0
        self._seconds_all_training = 0.0
        self._past_seconds = 0.0
        """Training before the server was restarted."""
        self._new_updates = self._updates = self._interval_updates = self._updates_all_training = 0
        self._dropped = self._repeated = 0
        self._new_stalenesses: defaultdict[int, int] = defaultdict(int)
        self._stalenesses: Counter[int] = Counter()
        self._stalenesses_all_training: Counter[int] = Counter()
        self._stalenesses_interval: Counter[int] = Counter()
        self._waits: defaultdict[float, int] = defaultdict(int)
        self._lost: list[int] = []
        self._rejoined: list[int] = []

    def start(self, now: float) -> None:
        """All workers are there."""
        self._started = now - self._past_seconds
        self._last_update = self._last_addition = self._finished = self._interval_began = now

    @property
    def all_training(self) -> bool:
        """Every worker has pushed once since it came, or came back, or the server did, and will push again.

        Before and after, staleness and time have other laws: those that are left have fewer others, and the last one
        is as slow as the slowest.
        """
        return self._all_training

    @all_training.setter
    def all_training(self, value: bool) -> None:
        self._add_up()
        self._all_training = value

    def facts(self, now: float) -> dict[str, Any]:
        """All of it as JSON values, for a server that takes this one's place."""
        self._add_up()
        return {
            "seconds": self._seconds_until(now),
            "updates": self._updates,
            "dropped": self._dropped,
            "repeated": self._repeated,
            "stalenesses": _pairs(self._stalenesses),
            "stalenesses_all_training": _pairs(self._stalenesses_all_training),
            "updates_all_training": self._updates_all_training,
            "seconds_all_training": self._seconds_all_training,
            "waits": _pairs(self._waits),
            "lost": list(self._lost),
            "rejoined": list(self._rejoined),
        }

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on counting from there, when training starts again."""
        self._past_seconds = facts["seconds"]
        self._updates = facts["updates"]
        self._dropped, self._repeated = facts["dropped"], facts["repeated"]
        self._stalenesses = Counter(dict(facts["stalenesses"]))
        self._stalenesses_all_training = Counter(dict(facts["stalenesses_all_training"]))
        self._updates_all_training = facts["updates_all_training"]
        self._seconds_all_training = facts["seconds_all_training"]
        self._waits = defaultdict(int, facts["waits"])
        self._lost, self._rejoined = list(facts["lost"]), list(facts["rejoined"])

    def update(self, now: float, stalenesses: Iterable[int]) -> None:
        """One update was made of gradients that were so stale."""
        for staleness in stalenesses:
            self._new_stalenesses[staleness] += 1
        self._new_updates += 1
        self._last_update = now

    def _add_up(self) -> None:
        """What is new counts where it belongs."""
        self._updates += self._new_updates
        self._interval_updates += self._new_updates
        self._stalenesses.update(self._new_stalenesses)
        self._stalenesses_interval.update(self._new_stalenesses)
        if self._all_training:
            self._updates_all_training += self._new_updates
            self._seconds_all_training += self._last_update - self._last_addition
            self._stalenesses_all_training.update(self._new_stalenesses)
        self._new_updates, self._last_addition = 0, self._last_update
        self._new_stalenesses.clear()

    def drop(self) -> None:
        """A gradient came too late to count."""
        self._dropped += 1

    def repeat(self) -> None:
        """A step was pushed again."""
        self._repeated += 1

    def wait(self, seconds: float) -> None:
        """A gradient was held for so long before its worker could go on."""
        self._waits[_bin_of(seconds) if seconds > SHORTEST_WAIT else SHORTEST_WAIT] += 1

    def lose(self, rank: int) -> None:
        """A worker vanished; the others go on."""
        self._lost.append(rank)

    def rejoin(self, rank: int) -> None:
        """A worker that had vanished is back."""
        self._rejoined.append(rank)

    def finish(self, now: float) -> None:
        """A worker finished; the last one's time counts."""
        self._finished = now

    def interval(self, now: float) -> dict[str, Any]:
        """Fields of a ServerInterval, but for the version; the next interval begins."""
        self._add_up()
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
        self._add_up()
        seconds = self._seconds_until(self._last_update)
        return {
            "total_training_time_seconds": self._seconds_until(self._finished),
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
            "barrier_wait_histogram": dict(sorted(self._waits.items())),
            "lost_workers": list(self._lost),
            "rejoined_workers": list(self._rejoined),
        }

    def _seconds_until(self, moment: float) -> float:
        """Training up to a moment, with that before a restart."""
        return self._past_seconds if self._started is None else moment - self._started


def _pairs(counter: Mapping[Any, int]) -> list[list[Any]]:
    """What it counts, and how often, in lists: JSON keeps no tuples, and no keys that are numbers."""
    return [[value, times] for value, times in sorted(counter.items())]


def _bin_of(seconds: float) -> float:
    """Upper bound of the bin of a waiting time: a millisecond, or twice, four times … as much."""
    bound = SHORTEST_WAIT
    while bound < seconds:
        bound *= 2
    return bound


def _mean(stalenesses: Counter[int]) -> float | None:
    count = stalenesses.total()
    return sum(value * times for value, times in stalenesses.items()) / count if count else None
