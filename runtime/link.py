"""An injected network condition: one direction of one worker's link, with a bandwidth and a latency.

Runs in the worker, beside its real connection. Knows nothing of what passes.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Timetable:
    """When bytes that queue for one direction of a link have passed. Pure; times and durations in seconds."""

    bytes_per_second: float
    free_at: float = -math.inf
    """When all that queued so far has passed."""

    def book(self, now: float, n_bytes: int) -> float:
        """Queue bytes at a time; returns when they have passed. A link that was idle does not make up for it."""
        self.free_at = max(self.free_at, now) + n_bytes / self.bytes_per_second
        return self.free_at


class Link:
    """One direction of a link; several threads may use it, and their bytes queue.

    For each message: `pass_through` for each of its pieces, and `arrive` once, before the first or after the last.
    As with a socket's buffer, a caller may prepare the next piece of a message while one passes: what it does between
    them is idle time of the link only as far as it lasts longer than the first of them took.
    Where there is nothing to wait for, neither costs a system call.
    """

    def __init__(
        self,
        bandwidth_bytes_per_second: float | None,
        latency_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """No bandwidth: no limit. Raises ValueError for figures that no link has."""
        if bandwidth_bytes_per_second is not None and not 0 < bandwidth_bytes_per_second < math.inf:
            raise ValueError(f"bandwidth is {bandwidth_bytes_per_second} bytes/s; expected above 0, or None")
        if not 0 <= latency_seconds < math.inf:
            raise ValueError(f"latency is {latency_seconds} s; expected 0 or more")
        self._timetable = Timetable(bandwidth_bytes_per_second) if bandwidth_bytes_per_second else None
        self._latency_seconds = latency_seconds
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._late_seconds = 0.0
        self._overlap_seconds = 0.0
        self._delayed_seconds = 0.0

    @property
    def delayed_seconds(self) -> float:
        """How long callers were made to sleep, all together."""
        return self._delayed_seconds

    def pass_through(self, n_bytes: int) -> None:
        """Sleep until these bytes have passed: before they are sent, or after they were received."""
        if self._timetable is None:
            return
        with self._lock:
            now = self._clock()
            due = self._timetable.book(now - self._late_seconds - self._overlap_seconds, n_bytes)
        self._sleep_until(due, now, overlap_seconds=n_bytes / self._timetable.bytes_per_second)

    def arrive(self) -> None:
        """Sleep for the latency, once per message. Bytes of other messages pass meanwhile."""
        if self._timetable is None and not self._latency_seconds:
            return
        with self._lock:
            now = self._clock()
            due = now - self._late_seconds + self._latency_seconds
        self._sleep_until(due, now, overlap_seconds=0.0)

    def _sleep_until(self, due: float, now: float, overlap_seconds: float) -> None:
        woke = now
        if due > now:
            self._sleep(due - now)
            woke = self._clock()
        with self._lock:
            # A sleep ends late. The caller goes on late by as much, and must not be taken for idle: its next
            # bytes are booked for when they would have come.
            self._late_seconds = woke - due if due > now else min(self._late_seconds, now - due)
            self._overlap_seconds = overlap_seconds
            self._delayed_seconds += woke - now
