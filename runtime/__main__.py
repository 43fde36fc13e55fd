"""Start a parameter server, a worker, or what prepares a data set: `python -m runtime server|worker|prepare`.

The first thing that runs in a task; reads the environment, turns every error into one line, one record and an
exit code: 0 done, 1 failed, 2 wrong usage, 128 + signal stopped.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from contract.document import MAX_WORKERS
from contract.metrics import MAX_ATTEMPTS
from contract.task import TaskEnvironment
from runtime import faults, prepare, process
from runtime.emitter import Emitter
from runtime.last_words import LastWords
from runtime.server import run_server
from runtime.worker import run_worker

Role = Literal["server", "worker"]
ROLES: dict[str, Role] = {"server": "server", "worker": "worker"}


def main(argv: Sequence[str]) -> int:
    """Run the role that `argv` names; returns the exit code."""
    if list(argv) == [prepare.ROLE]:
        process.heed_stops(prepare.stopped)
        return prepare.run(os.environ)
    role = ROLES.get(argv[0]) if len(argv) == 1 else None
    if role is None:
        print("usage: python -m runtime server|worker|prepare", file=sys.stderr)  # noqa: T201 - nothing else runs yet
        return 2
    emitter = _emitter(role, os.environ)
    last_words = LastWords(emitter)
    process.heed_stops(last_words.stopped)
    try:
        faults.stay_away(os.environ)
        process.set_up()
        environment = TaskEnvironment.from_environ(os.environ)
        run = run_server if role == "server" else run_worker
        run(environment, emitter, last_words)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it must be told and recorded
        return last_words.failed(error)
    return 0


def _emitter(role: Role, environ: Mapping[str, str]) -> Emitter:
    """An emitter before the environment is checked, so that a refused one can be recorded too."""
    rank = environ.get("WORKER_RANK" if role == "worker" else "SHARD_INDEX", "")
    attempt = environ.get("WORKER_ATTEMPT", "") if role == "worker" else ""
    return Emitter(
        study=environ.get("STUDY_ID", "")[:128] or "local",
        experiment=environ.get("EXPERIMENT_NAME", "")[:128] or "experiment",
        role=role,
        rank=int(rank) if rank.isdecimal() and int(rank) < MAX_WORKERS else 0,
        attempt=int(attempt) if attempt.isdecimal() and int(attempt) < MAX_ATTEMPTS else 0,
    )


if __name__ == "__main__":
    process.end(main(sys.argv[1:]))
