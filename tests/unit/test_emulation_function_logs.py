"""The embedded cloud has a function's log whole, also where whoever reads it is slow."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ministack.core.lambda_runtime import Worker

from local.emulation.function_logs import drained

TAKEN_AFTER_SECONDS = 0.3
"""Longer than MiniStack waits for a line."""

FUNCTION = """
import sys
for request in sys.stdin:
    sys.stderr.write(request.rstrip("\\n").replace("|", "\\n"))
    sys.stderr.flush()
    print("answer", flush=True)
"""

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class SlowWorker(Worker):
    """A worker whose log is read late, as on a machine that has other things to do."""

    def _read_stderr(self) -> None:
        for line in self._proc.stderr:
            time.sleep(TAKEN_AFTER_SECONDS)
            self._stderr_queue.put(line.rstrip("\n"))

    def call(self, said: str) -> None:
        """Have it write that, and answer."""
        self._proc.stdin.write(f"{said}\n")
        self._proc.stdin.flush()
        assert self._proc.stdout.readline() == "answer\n"


@pytest.fixture
def worker() -> Iterator[SlowWorker]:
    worker: Any = SlowWorker("function", {}, b"")
    command = [sys.executable, "-c", FUNCTION]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1) as process:
        worker._proc = process
        worker._stderr_thread = threading.Thread(target=worker._read_stderr, daemon=True)
        worker._stderr_thread.start()
        yield worker
        process.kill()
        worker._stderr_thread.join(10)


@pytest.mark.parametrize("said", ["one line|", "two|lines|", "no end", "", "first||last|"])
def test_an_invocation_has_its_own_lines_and_all_of_them(worker: SlowWorker, said: str) -> None:
    take = drained(Worker._drain_stderr_bounded)
    for _ in range(2):
        worker.call(said)
        assert take(worker).splitlines() == said.replace("|", "\n").splitlines()


def test_what_a_worker_wrote_before_it_was_ended_is_there(worker: SlowWorker) -> None:
    worker.call("Traceback|KeyError|")
    process, worker._proc = worker._proc, None
    process.kill()
    process.wait()
    assert drained(Worker._drain_stderr_bounded)(worker).splitlines() == ["Traceback", "KeyError"]


def test_a_worker_that_is_gone_leaves_what_was_read(worker: SlowWorker) -> None:
    worker.call("last words|")
    worker._proc.kill()
    worker._proc.wait()
    worker._stderr_thread.join(10)
    assert drained(Worker._drain_stderr_bounded)(worker) == "last words"
