"""A condition whose lock counts how long threads waited for it.

Runs in the parameter server. Where nobody has the lock, counting costs nothing.
"""

import threading
from collections.abc import Callable


class TimedCondition(threading.Condition):
    """A Condition; `wait` counts for nothing, since it waits for others on purpose. Its lock is not reentrant."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(threading.Lock())
        self.waited_seconds = 0.0
        """Summed over threads."""
        self._clock = clock

    def __enter__(self) -> bool:
        if not self.acquire(False):
            began = self._clock()
            self.acquire()
            self.waited_seconds += self._clock() - began
        return True

    def __exit__(self, *_: object) -> None:
        self.release()
