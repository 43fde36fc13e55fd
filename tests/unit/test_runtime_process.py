"""What importing the runtime does, and must not do, to a process that will fork; the entry point's words."""

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


# The state machine stops all tasks of an experiment once one has failed: the others are then saying so themselves.
TOLD_TO_STOP_AT_ITS_END = """
import os, runpy, signal, sys
import runtime.last_words, runtime.process, runtime.server
from contract.errors import TrainingFailed

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def told_to_stop(call):
    def first(*given):
        stop()
        call(*given)
    return first

def run_server(environment, emitter):
    try:
        {end}
    finally:
        {clean_up}

runtime.server.run_server = run_server
runtime.last_words.say_failed = told_to_stop(runtime.last_words.say_failed)
runtime.process.end = told_to_stop(runtime.process.end)
sys.argv = ["runtime", "server"]
runpy.run_module("runtime", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("end", "clean_up", "code", "reason"),
    [
        ("pass", "pass", 0, ""),
        ("raise TrainingFailed('why')", "pass", 1, "why"),
        ("stop()", "pass", 143, "stopped by SIGTERM"),
        ("stop()", "stop(); emitter.note('cleaned up')", 143, "stopped by SIGTERM"),
    ],
    ids=["done", "failed", "stopped", "stopped twice"],
)
def test_a_task_that_ends_is_not_cut_short_by_being_told_to_stop(
    end: str, clean_up: str, code: int, reason: str
) -> None:
    script = TOLD_TO_STOP_AT_ITS_END.format(end=end, clean_up=clean_up)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={},
    )
    said = f"lockstep-server local/experiment: {reason}\n" if reason else ""
    assert (done.returncode, done.stderr) == (code, said)
    *notes, last = done.stdout.splitlines() or [""]
    assert (f'"reason":"{reason}"' in last) == bool(reason)
    assert notes == (["local/experiment: cleaned up"] if "note" in clean_up else [])


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
