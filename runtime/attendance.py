"""A worker's watch over the server: reads its notices, and notices when they stop.

Runs in the worker, in two threads of its own; knows nothing of parameters.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from contract.errors import LockstepError
from runtime.ending import Ending
from runtime.liveness import NEWS_SECONDS, SILENCE_SECONDS, STUCK_SECONDS

SERVER = "server"
"""What the server is called, lost or followed."""

_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""The server lives and says no. Any other status means that it, or the way to it, is gone."""


def ending_of(error: grpc.RpcError) -> Ending:
    """What a failed call means for this worker."""
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.ABORTED:
        return Ending(details, SERVER, told=True)
    if code in _REFUSALS:
        return Ending(f"refused by the server: {details}")
    return Ending(f"the server vanished: {code.name}: {details}", SERVER)


class Attendance:
    """What the server's notices said so far. Once training has ended early, the reason stays."""

    def __init__(
        self,
        notices: Any,
        *,
        hang_up: Callable[[], None],
        abandon: Callable[[LockstepError], None],
        look: Callable[[], None] = lambda: None,
        silence_seconds: float = SILENCE_SECONDS,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        """`notices`: the open Attend call; `hang_up` cancels every call that is under way.

        `abandon` ends the process where the worker, deep in a computation, does not see that training ended; `look`
        is called every second, until training is over.
        """
        self._notices = notices
        self._hang_up = hang_up
        self._abandon = abandon
        self._look = look
        self._stuck_seconds = stuck_seconds
        self._noticed = threading.Event()
        self._silence_seconds = silence_seconds
        self._heard_at = time.monotonic()
        self._attended = threading.Event()
        self._started = threading.Event()
        self._over = threading.Event()
        self._news = threading.Condition()
        self._superseded = 0
        self._next_step = 0
        self._ending: Ending | None = None
        for task in (self._listen, self._watch):
            threading.Thread(target=task, name=f"attendance{task.__name__}", daemon=True).start()

    def wait_attended(self) -> None:
        """Wait until the server knows that this worker attends. Raises the reason if it does not let it."""
        self._attended.wait()
        self.check()

    def wait_started(self) -> int:
        """Wait until all workers are ready; returns the step to push next. Raises the reason if training ends."""
        self._started.wait()
        self.check()
        return self._next_step

    def wait_over(self, seconds: float) -> None:
        """Wait, at most so long, for the news that training has ended."""
        self._over.wait(seconds)

    def sleep(self, seconds: float, version: int) -> bool:
        """Sleep, unless a gradient computed on `version` cannot count any more; returns whether it can.

        No longer than training goes on: raises the reason if it ended.
        """
        with self._news:
            self._news.wait_for(lambda: self._over.is_set() or self._superseded > version, max(seconds, 0))
        self.check()
        return self._superseded <= version

    def check(self) -> None:
        """Raise the reason if training has ended early."""
        if self._ending:
            self._noticed.set()
            raise self._ending.error()

    def cause_of(self, error: grpc.RpcError) -> LockstepError:
        """Why a call failed: what the server said of it, or else what the status says."""
        ending = ending_of(error)
        if error.code() not in _REFUSALS:
            # The same event closed the call and sent, or broke, the notices: wait for the better story.
            self._over.wait(NEWS_SECONDS)
            ending = self._ending or ending
        self._noticed.set()
        return ending.error()

    def leave(self) -> None:
        """Stop watching: what happens to the server now does not matter any more. Nor does anything else go on."""
        self._noticed.set()
        self._end(Ending("this worker has hung up"))
        self._hang_up()

    def _listen(self) -> None:
        try:
            for notice in self._notices:
                self._heard_at = time.monotonic()
                self._attended.set()
                match notice.WhichOneof("notice"):
                    case "started":
                        self._next_step = notice.started.next_step
                        self._started.set()
                    case "superseded":
                        with self._news:
                            self._superseded = notice.superseded.version
                            self._news.notify_all()
                    case "ended":
                        # Where no peer was lost, the server gave up: that is what this worker follows.
                        ended = notice.ended
                        return self._end(Ending(ended.reason, ended.lost_peer or SERVER, told=True))
        except grpc.RpcError as error:
            return self._end(ending_of(error))
        return self._end(Ending("the server vanished: it closed the connection", SERVER))

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            silent = time.monotonic() - self._heard_at
            if silent > self._silence_seconds:
                self._end(Ending(f"the server vanished: not heard of for {silent:.0f} s", SERVER))
                self._hang_up()
            self._look()
        if not self._noticed.wait(self._stuck_seconds) and self._ending:
            self._abandon(self._ending.error())

    def _end(self, ending: Ending) -> None:
        with self._news:
            if not self._over.is_set():
                self._ending = ending
                self._over.set()
                self._attended.set()
                self._started.set()
                self._news.notify_all()
