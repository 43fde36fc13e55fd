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
