"""What importing the runtime does, and must not do, to a process that will fork; the entry point's words."""

import subprocess
import sys

import pytest

from runtime.__main__ import main

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
    assert done.stderr == "usage: python -m runtime server|worker\n"


@pytest.mark.parametrize("argv", [[], ["boss"], ["server", "worker"]])
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == "usage: python -m runtime server|worker\n"
