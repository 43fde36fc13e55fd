"""What importing the runtime does, and must not do, to a process that will fork; the entry point's words."""

import signal
import subprocess
import sys

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


def test_importing_the_runtime_leaves_a_process_that_can_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK_SAFE], capture_output=True, text=True, check=False, timeout=60
    )
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
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_OTHERS_COMPUTE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (2, "usage: python -m runtime server|worker|prepare\n")


# The state machine stops all tasks of an experiment once one has failed: the others may just be saying so themselves.
TOLD_TO_STOP = """
import os, runpy, signal, sys, threading, time
import runtime.emitter, runtime.process, runtime.server
from contract.errors import TrainingFailed

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)  # as long as whoever hears of it may take to interfere

def told_to_stop(call):
    def first(*given, **named):
        stop()
        return call(*given, **named)
    return first

def run_server(environment, emitter, last_words):
    def say_more(stopped):
        emitter.note("clean-up for " + stopped.reason)
        {before_stop}
    last_words.before_stop = say_more
    {end}

runtime.server.run_server = run_server
{told}
sys.argv = ["runtime", "server"]
runpy.run_module("runtime", run_name="__main__", alter_sys=True)
"""
AS_IT_ENDS = """
runtime.emitter.Emitter.emit_last = told_to_stop(runtime.emitter.Emitter.emit_last)
runtime.process.end = told_to_stop(runtime.process.end)
"""


def told_to_stop(end: str, before_stop: str = "pass", told: str = "") -> subprocess.CompletedProcess[str]:
    """A server that does `end`."""
    script = TOLD_TO_STOP.format(end=end, before_stop=before_stop, told=told)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, env={}
    )


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [("pass", 0, ""), ("raise TrainingFailed('why')", 1, "why")],
    ids=["done", "failed"],
)
def test_a_task_that_ends_is_not_cut_short_by_being_told_to_stop(end: str, code: int, reason: str) -> None:
    done = told_to_stop(end, told=AS_IT_ENDS)
    assert done.returncode == code
    assert done.stderr == (f"lockstep-server local/experiment: {reason}\n" if reason else "")
    assert [line.count(f'"reason":"{reason}"') for line in done.stdout.splitlines()] == [1] * bool(reason)


@pytest.mark.parametrize(
    ("signum", "end", "before_stop"),
    [
        ("SIGTERM", "stop()", "pass"),
        ("SIGINT", "stop()", "pass"),
        ("SIGTERM", "emitter._lock.acquire(); stop(); emitter._lock.release(); time.sleep(60)", "pass"),
        ("SIGTERM", "stop(); raise TrainingFailed('since it was told to stop')", "stop()"),
        ("SIGTERM", "stop()", "1 / 0"),
    ],
    ids=["SIGTERM", "SIGINT", "while it prints", "twice, while it fails", "whose clean-up fails"],
)
def test_a_task_that_is_told_to_stop_cleans_up_and_says_so(signum: str, end: str, before_stop: str) -> None:
    end = end.replace("stop()", f"os.kill(os.getpid(), signal.{signum}); time.sleep(1)")
    done = told_to_stop(end, before_stop)
    assert done.returncode == 128 + signal.Signals[signum]
    assert done.stderr.splitlines()[-1] == f"lockstep-server local/experiment: stopped by {signum}"
    assert ("ZeroDivisionError" in done.stderr) == (before_stop == "1 / 0")
    note, record = done.stdout.splitlines()
    assert note == f"local/experiment: clean-up for stopped by {signum}"
    assert f'"reason":"stopped by {signum}"' in record


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
