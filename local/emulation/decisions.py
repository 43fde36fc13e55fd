"""Decisions: every authorization decision of the emulator, in a file, for who asks which grants are needed.

Runs in the emulator's process. Knows nothing of MiniStack.
"""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

FILE = "LOCKSTEP_DECISIONS"
"""The environment variable that names the file. A line of it is {"request": …, "allowed": …}; equal ones stand once."""


def noting() -> Callable[[Any, bool], None]:
    """What to do with a decision: write it where LOCKSTEP_DECISIONS says; nothing where that is not set."""
    file = os.environ.get(FILE)
    return Decisions(Path(file)).note if file else _forget


class Decisions:
    """The file and what it holds already; threads may share it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = set[tuple[str, ...]]()
        self._lock = threading.Lock()

    def note(self, request: Any, allowed: bool) -> None:
        """Write one decision. `request`: MiniStack's EvalContext, which its evaluator can decide on again."""
        asked = (request.principal_arn, request.action, request.resource_arn)
        same = (*asked, json.dumps(request.service_context, sort_keys=True), str(allowed))
        with self._lock:
            if same in self._known:
                return
            self._known.add(same)
            with self._file.open("a") as file:
                file.write(json.dumps({"request": asdict(request), "allowed": allowed}) + "\n")


def _forget(request: Any, allowed: bool) -> None:
    """Nobody asked for it."""
