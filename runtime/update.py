"""Updates: which gradients change the parameters together, and which blocks have got them.

Runs in the parameter server; knows nothing of how gradients are added up or decided on.
"""

import threading
from collections.abc import Callable, Sequence


class Update:
    """Gradients that change the parameters together: one of each of `members`.

    Until it is decided, members may join it. All attributes change under the lock of the server's state only.
    """

    def __init__(self, blocks: int) -> None:
        self.members: set[int] = set()
        """Ranks."""
        self.decided = False
        """No gradient is added to it any more."""
        self.weight = 1.0
        """What the mean of its gradients is multiplied by."""
        self.learning_factor = 1.0
        """What the learning rate is multiplied by."""
        self.complete_at = 0.0
        """When the last gradient was there of the last block that was applied, seconds."""
        self.held_seconds: dict[int, float] = {}
        """Rank → how long the rest of its gradient was not taken, since it was not its turn."""
        self._applied = bytearray(blocks)
        self._missing = blocks
        self._followers: list[Callable[[int], None]] = []
        self._lock = threading.Lock()

    def follow(self, notify: Callable[[int], None]) -> None:
        """Have `notify` called once with each block, as soon as this update has been applied to it."""
        with self._lock:
            for index, applied in enumerate(self._applied):
                if applied:
                    notify(index)
            if self._missing:
                self._followers.append(notify)

    @property
    def is_complete(self) -> bool:
        """Every block has it."""
        return not self._missing

    def mark(self, index: int, complete_at: float) -> None:
        """A block has this update now; `complete_at`: when the last gradient for it was there."""
        with self._lock:
            if not self._applied[index]:
                self._applied[index] = True
                self._missing -= 1
                self.complete_at = max(self.complete_at, complete_at)
                for notify in self._followers:
                    notify(index)


def follow_all(updates: Sequence[Update], blocks: int, notify: Callable[[int], None]) -> None:
    """Have `notify` called once with each of so many blocks, as soon as all of `updates` have been applied to it."""
    if not updates:
        for index in range(blocks):
            notify(index)
        return
    if len(updates) == 1:
        updates[0].follow(notify)
        return
    missing, lock = [len(updates)] * blocks, threading.Lock()

    def applied(index: int) -> None:
        with lock:
            missing[index] -= 1
            complete = not missing[index]
        if complete:
            notify(index)

    for update in updates:
        update.follow(applied)
