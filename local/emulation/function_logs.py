"""All that a function wrote before it answered, however busy the machine: MiniStack waits 50 ms for it.

What came later stood in the log of the function's next invocation, or in none; and an error whose traceback was late
had no name of its own (see function_errors). Of a function that runs out of time MiniStack takes what it has read.
"""

import queue
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ministack.core.lambda_runtime import Worker

PATIENCE_SECONDS: Final = 30.0
"""Only a thread that starves for so long makes a log incomplete."""


def install() -> None:
    """Have MiniStack take logs whole."""
    Worker._drain_stderr_bounded = drained(Worker._drain_stderr_bounded)


def drained(drain: Callable[..., str]) -> Callable[..., str]:
    """Wait for the end of what a worker wrote, which a thread of MiniStack's reads; then take it."""

    def take_all(worker: Any, **bounds: float) -> str:
        mark, process = f"end of log {uuid.uuid4().hex}", worker._proc
        try:
            if process is None or not worker._stderr_thread.is_alive():
                raise ProcessLookupError
            # The function's last line may have no end.
            Path(f"/proc/{process.pid}/fd/2").write_text(f"\n{mark}\n")
        except OSError:
            # It has ended, or is being ended for an error: what it wrote has an end of its own.
            worker._stderr_thread.join(PATIENCE_SECONDS)
            return drain(worker, **bounds)
        return "\n".join(_up_to(mark, worker._stderr_queue))

    return take_all


def _up_to(mark: str, lines: "queue.Queue[str]") -> list[str]:
    """The lines before the mark, without the empty one that came with it."""
    taken: list[str] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while (line := lines.get(timeout=max(deadline - time.monotonic(), 0))) != mark:
            taken.append(line)
    except queue.Empty:
        return taken
    return taken[:-1] if taken and not taken[-1] else taken
