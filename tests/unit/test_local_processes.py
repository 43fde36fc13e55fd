"""Child processes end with their parent, by the signal that was asked for."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DEADLINE_SECONDS = 20

PARENT = """
import signal, sys, time
from pathlib import Path
from local.processes import spawn
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
process = spawn([sys.executable, "-c", child], log=Path(sys.argv[1]), on_parent_death=signal.SIGKILL)
print(process.pid, flush=True)
time.sleep(60)
"""


def test_a_child_that_ignores_requests_is_killed_with_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", PARENT, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "ready" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        with pytest.raises(psutil.TimeoutExpired):
            child.wait(0.2)
        parent.kill()
    child.wait(DEADLINE_SECONDS)
