"""The emulator of the embedded cloud: MiniStack, with what `local.emulation` adds, as a process of its own.

Serves every AWS API that the stack uses on one loopback port. Knows nothing of the stack.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from local.emulation.decisions import FILE as DECISIONS
from local.processes import ProcessFailed, free_port, spawn, stop, tail

REGION = "us-east-1"
ACCOUNT = "000000000000"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
"""What the emulator takes from anybody; no secret."""

FUNCTION_PROCESSES = 16
"""How many function processes the emulator runs at a time."""

START_SECONDS = 60
ATTEMPTS = 3
"""A free port may be taken by somebody else before the emulator binds it."""


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    process: subprocess.Popen[bytes]
    endpoint: str

    def stop(self) -> None:
        """End it and the function processes that it keeps warm."""
        stop(self.process, grace_seconds=5)


def client_environment(endpoint: str) -> dict[str, str]:
    """What points an AWS client, boto3 or the AWS CLI, to an emulator."""
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": REGION, "AWS_REGION": REGION, **CREDENTIALS}


def start_emulator(state: Path, *, docker_host: str, host_name: str) -> Emulator:
    """Start MiniStack with its files under `state`. Raises ProcessFailed with its last words.

    `docker_host`: the task engine's URL. `host_name`: the container that MiniStack takes itself for.
    """
    for attempt in range(ATTEMPTS):
        port = free_port()
        log = state / "emulator.log"
        process = spawn(
            [sys.executable, "-m", "local.emulation"],
            log=log,
            env=_environment(state, port, docker_host, host_name),
            # Asked to end, it waits for its threads, which an execution keeps for minutes; nobody is left then
            # to lose patience. Its function processes end with it, as their standard input does.
            on_parent_death=signal.SIGKILL,
        )
        emulator = Emulator(process, f"http://127.0.0.1:{port}")
        if _becomes_ready(emulator):
            return emulator
        emulator.stop()
        if attempt + 1 == ATTEMPTS:
            raise ProcessFailed(f"the emulator did not start:\n{tail(log)}")
    raise AssertionError("unreachable")


def _environment(state: Path, port: int, docker_host: str, host_name: str) -> dict[str, str]:
    """MiniStack's settings: loopback only, every file under `state`, no listener that the stack has no use for."""
    temporary = state / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "HOME": os.environ.get("HOME", str(state)),
        "TMPDIR": str(temporary),
        "STATE_DIR": str(state / "ministack"),
        "S3_DATA_DIR": str(state / "s3"),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_REGION": REGION,
        "DOCKER_HOST": docker_host,
        "HOSTNAME": host_name,
        # IAM is enforced, as on AWS; only the credentials above may do anything, as the account itself may.
        "AUTH": "true",
        **{name: os.environ[name] for name in (DECISIONS,) if name in os.environ},
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        # A function process each: without a bound, a machine that falls behind with metric lines starts hundreds and
        # falls behind further. What is throttled is read from the log streams by ReconcileMetrics.
        "LAMBDA_ACCOUNT_CONCURRENCY": str(FUNCTION_PROCESSES),
        "PYTHONDONTWRITEBYTECODE": "1",
        **client_environment(f"http://127.0.0.1:{port}"),
    }


def _becomes_ready(emulator: Emulator) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and emulator.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{emulator.endpoint}/_ministack/health", timeout=2):  # noqa: S310 - http on loopback
                return emulator.process.poll() is None
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False
