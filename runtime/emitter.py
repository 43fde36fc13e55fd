"""Print metric records: numbered, one whole line at a time.

Runs on both sides; knows nothing of who reads the lines.
"""

import os
import threading
from typing import Any, Literal

from contract.metrics import Record, to_line, utc_now


class Emitter:
    """Writes one emitter's METRICS_JSON lines to a file descriptor; any thread may call it."""

    def __init__(
        self,
        *,
        study: str,
        experiment: str,
        role: Literal["server", "worker"],
        rank: int,
        attempt: int = 0,
        descriptor: int = 1,
    ) -> None:
        """`attempt`: how many times this role and rank was started before."""
        self.role = role
        self.whose = f"{study}/{experiment}"
        """Stands in every line that is no record, as it does in every record."""
        self._identity: dict[str, Any] = {
            "study": study,
            "experiment": experiment,
            "role": role,
            "rank": rank,
        }
        self.attempt = attempt
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._seq = 0

    def emit(self, kind: type[Record], **fields: Any) -> None:
        """Print a record of `kind` with these fields; whose it is and its number are added."""
        with self._lock:
            record = kind(
                **self._identity, attempt=self.attempt, seq=self._seq, timestamp=utc_now(), **fields
            )
            self._seq += 1
            self._write(to_line(record))  # type: ignore[arg-type]  # every subclass is in the union

    def note(self, text: str) -> None:
        """Print a line for people."""
        with self._lock:
            self._write(f"{self.whose}: {text}")

    def _write(self, line: str) -> None:
        # Straight to the descriptor: nothing is buffered when the process is killed, and one call to write(2)
        # keeps a line whole beside what other threads print.
        data = memoryview(f"{line}\n".encode())
        while data:
            data = data[os.write(self._descriptor, data) :]
