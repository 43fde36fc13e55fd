"""A thread that writes a checkpoint every so often, and when it is asked to.

Runs in the server; knows nothing of what a checkpoint holds or where it goes.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from contract.errors import TrainingFailed
from runtime.checkpoint import Checkpoint
from runtime.checkpoint_store import CheckpointFailed, CheckpointStore

PATIENCE_SECONDS: Final = 20.0
"""How long a stop waits for the last checkpoint: less than the 30 s between a task's SIGTERM and its SIGKILL."""


RETRY_SECONDS: Final = 1.0
"""How long to wait after a write that failed, where somebody waits for it."""


class CheckpointWriter:
    """Once started, writes a checkpoint at once, then one every interval, one at a time, until it is stopped.

    A place that takes no checkpoint is known in the first second, and ends the training: it was asked for more
    safety than it has. Once one was written a failure is only told: training goes on, and so do the attempts.
    """

    def __init__(
        self,
        store: CheckpointStore,
        take: Callable[[], Checkpoint],
        interval_seconds: float,
        *,
        warn: Callable[[str], None],
        give_up: Callable[[TrainingFailed], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Runs in a daemon thread, from `start` on.

        `take`: a copy of the present state; `interval_seconds`: from the start of one checkpoint to the start of
        the next, or as long as it takes; `warn` and `give_up` are called in the thread; after `give_up` it ends.
        """
        self._store = store
        self._take = take
        self._interval = interval_seconds
        self._warn = warn
        self._give_up = give_up
        self._clock = clock
        self._changed = threading.Condition()
        self._stopping = self._final = self._ended = False
        self._asked = self._answered = 0
        self.written = 0
        self.seconds = 0.0
        """Spent on those written, from taking to written."""
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        """Begin. Once only."""
        self._thread.start()

    def write_now(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Return once what is so now is in a checkpoint; or no more will come, or it takes too long, which is told.

        A write that fails is tried again until then.
        """
        with self._changed:
            self._asked = number = self._asked + 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._answered >= number or self._ended, patience_seconds):
                self._warn(
                    f"a checkpoint is not yet written after {patience_seconds:.0f} s: training goes on"
                )

    def stop(self, *, final: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Write no more, but for one last checkpoint if `final`; wait at most `patience_seconds` for it."""
        with self._changed:
            # Who tells this process to stop and who sees the end of training may both come.
            self._stopping, self._final = True, self._final or final
            self._changed.notify_all()
        self._thread.join(patience_seconds)
        if self._thread.is_alive():
            self._warn(f"a checkpoint is not yet written {patience_seconds:.0f} s after training ended")

    def _run(self) -> None:
        try:
            wait_seconds, asked = 0.0, 0
            while not self._stops_within(wait_seconds, asked):
                began, asked = self._clock(), self._asked
                if self._write():
                    self._answer(asked)
                wait_seconds = max(began + self._interval - self._clock(), 0)
                if self._answered < asked:
                    wait_seconds = min(wait_seconds, RETRY_SECONDS)
            if self._final:
                self._write()
        except TrainingFailed as error:
            self._give_up(error)
        except Exception as error:  # noqa: BLE001 - nobody would hear of a thread that is gone
            self._give_up(TrainingFailed(f"no checkpoint could be taken: {type(error).__name__}: {error}"))
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _stops_within(self, seconds: float, asked: int) -> bool:
        """Wait until it is time for a checkpoint, or somebody asks for another; returns whether it is to stop instead.

        `asked`: how often it had been asked for when the last attempt began.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._asked > asked, seconds)
            return self._stopping

    def _answer(self, asked: int) -> None:
        """What was asked for before the last checkpoint was taken is in it."""
        with self._changed:
            self._answered = asked
            self._changed.notify_all()

    def _write(self) -> bool:
        """Write one checkpoint, or tell why not; returns whether it is there.

        Raises CheckpointFailed if there never was one.
        """
        began = self._clock()
        try:
            self._store.save(self._take())
        except CheckpointFailed as error:
            if not self.written:
                raise
            self._warn(str(error))
            return False
        self.written += 1
        self.seconds += self._clock() - began
        return True
