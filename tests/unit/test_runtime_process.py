"""What importing the runtime does, and must not do, to a process that will fork; the entry point's words."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.errors import TrainingFailed
from runtime.__main__ import main
from runtime.process import thread_count

FORK_SAFE = """
import os, signal, sys
before = set(os.listdir("/proc/self/task"))
import numpy  # its BLAS starts threads of its own, and knows how to fork
loaded = set(os.listdir("/proc/self/task"))
import runtime.server, runtime.worker, runtime.__main__
assert set(os.listdir("/proc/self/task")) == loaded, "a thread was started"
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a signal handler was set"
assert "boto3" not in sys.modules and "torchvision" not in sys.modules, "imported before it is needed"
pid = os.fork()
if pid == 0:
    os._exit(runtime.__main__.main(["nonsense"]))
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program's exit code, and what it wrote."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-c", script], text=True, check=False, timeout=60, **options)


def test_importing_the_runtime_leaves_a_process_that_can_fork() -> None:
    done = run(FORK_SAFE)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "usage: python -m runtime server|worker|prepare\n"


@pytest.mark.parametrize("argv", [[], ["boss"], ["server", "worker"], ["prepare", "mnist"]])
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == "usage: python -m runtime server|worker|prepare\n"


# Threads that compute are there when a server ends: a session that frees the last gradient is one.
ENDS_WHILE_OTHERS_COMPUTE = """
import runpy, sys, threading
import torch

def compute():
    while True:
        torch.ones(100_000).add_(1)
        computing.set()

computing = threading.Event()
for _ in range(2):
    threading.Thread(target=compute, daemon=True).start()
computing.wait()
sys.argv = ["runtime", "nonsense"]
runpy.run_module("runtime", run_name="__main__", alter_sys=True)
"""


def test_a_task_ends_with_its_exit_code_whatever_its_threads_are_at() -> None:
    done = run(ENDS_WHILE_OTHERS_COMPUTE)
    assert (done.returncode, done.stderr) == (2, "usage: python -m runtime server|worker|prepare\n")


# The state machine stops all tasks of an experiment once one has failed: the others may just be saying so themselves.
TOLD_TO_STOP = """
import os, runpy, signal, sys, threading, time
import runtime.process, runtime.server
from contract.errors import TrainingFailed
from contract.metrics import ServerInterval

INTERVAL = dict(interval_seconds=2.0, version=3, updates=3, updates_per_second=1.5, gradients=3, mean_staleness=1.0,
                max_staleness=2)

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)  # whoever hears of it has all the time to interfere

def run_server(environment, emitter, last_words):
    def say_more(stopped):
        emitter.note("clean-up for " + stopped.reason)
        {before_stop}
    last_words.before_stop = say_more
    {end}

runtime.server.run_server = run_server
sys.argv = ["runtime", "server"]
runpy.run_module("runtime", run_name="__main__", alter_sys=True)
"""


def told_to_stop(
    end: str, before_stop: str = "pass", stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """A server that does `end`, and `before_stop` when it is told to stop."""
    return run(TOLD_TO_STOP.format(end=end, before_stop=before_stop), stdout=stdout, env={})


@pytest.mark.parametrize(
    ("end", "code", "kind", "reason"),
    [
        # Its last record stands for the summary, which has many more fields
        ("last_words.done(ServerInterval, **INTERVAL); stop(); time.sleep(60)", 0, "server_interval", ""),
        ("last_words.failed(TrainingFailed('why')); stop(); time.sleep(60)", 1, "task_failed", "why"),
        ("threading.Thread(target=stop).start(); raise TrainingFailed('why')", None, "task_failed", None),
    ],
    ids=["done", "failed", "failing"],
)
def test_a_task_that_has_told_of_its_end_tells_of_no_other_when_it_is_told_to_stop(
    end: str, code: int | None, kind: str, reason: str | None
) -> None:
    done = told_to_stop(end)
    assert done.returncode in ({code} if code is not None else {1, 128 + signal.SIGTERM})
    (record,) = (line for line in done.stdout.splitlines() if "METRICS_JSON" in line)
    assert f'"kind":"{kind}"' in record
    if reason is not None:
        assert done.stderr == (f"lockstep-server local/experiment: {reason}\n" if reason else "")


@pytest.mark.parametrize(
    ("end", "before_stop"),
    [
        ("stop(); time.sleep(60)", "pass"),
        ("emitter._lock.acquire(); stop(); emitter._lock.release(); time.sleep(60)", "pass"),
        ("stop(); last_words.done(ServerInterval, **INTERVAL)", "stop()"),
        ("stop(); raise TrainingFailed('since it was told to stop')", "stop()"),
        ("stop(); time.sleep(60)", "1 / 0"),
    ],
    ids=["anywhere", "while it prints", "as it is done", "as it fails", "whose clean-up fails"],
)
def test_a_task_that_is_told_to_stop_cleans_up_and_says_so(end: str, before_stop: str) -> None:
    done = told_to_stop(end, before_stop)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines()[-1] == "lockstep-server local/experiment: stopped by SIGTERM"
    assert ("ZeroDivisionError" in done.stderr) == (before_stop == "1 / 0")
    note, record = done.stdout.splitlines()
    assert note == "local/experiment: clean-up for stopped by SIGTERM"
    assert '"reason":"stopped by SIGTERM"' in record


def test_a_task_that_nobody_reads_any_more_stops_all_the_same() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = told_to_stop("stop(); time.sleep(60)", stdout=writer)
    finally:
        os.close(writer)
    assert done.returncode == 128 + signal.SIGTERM


STOPPED_IN_PREPARATION = """
import os, runpy, signal, sys, time
import runtime.prepare
from runtime.temporary import temporary_folder

def run(environ):
    with temporary_folder("dataset-") as folder:
        (folder / "archive").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

runtime.prepare.run = run
sys.argv = ["runtime", "prepare"]
runpy.run_module("runtime", run_name="__main__", alter_sys=True)
"""


def test_a_preparation_that_is_told_to_stop_says_so_and_leaves_no_folder(tmp_path: Path) -> None:
    done = run(STOPPED_IN_PREPARATION, env={"STUDY_ID": "study", "TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (143, "lockstep-prepare: study: stopped by SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "threads"),
    [({}, 1), ({"OMP_NUM_THREADS": ""}, 1), ({"OMP_NUM_THREADS": "3"}, 3), ({"OMP_NUM_THREADS": "16"}, 4)],
)
def test_threads_are_as_many_as_said_and_no_more_than_cores(environ: dict[str, str], threads: int) -> None:
    assert thread_count(environ, cores=4) == threads


@pytest.mark.parametrize("given", ["0", "-1", "two", "4,2", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(TrainingFailed, match=f"OMP_NUM_THREADS is '{given}'; expected a number"):
        thread_count({"OMP_NUM_THREADS": given}, cores=4)
