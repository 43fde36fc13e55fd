"""The supervisor of one embedded cloud: starts its parts, deploys the stack, ends them all when it ends.

`python -m local --state DIR`. Ends on SIGTERM or SIGINT, with its starter where it is tied to one, and when a
part dies.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import boto3

from contract.errors import LockstepError
from local.cloud import STATE, STEP, Cloud, Engine, remove_files
from local.deploy import STACK, deploy, hash_of_sources, synthesize
from local.emulator import client_environment, start_emulator
from local.engines import start_engine
from local.images import task_images


class _Stopped(BaseException):
    """A signal asked for the end."""


def main() -> int:
    """Run until stopped. Returns the exit status: 0 when asked to end, 1 when the cloud failed."""
    parser = argparse.ArgumentParser(prog="python -m local", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of this cloud's files")
    parser.add_argument("--engine", choices=["process", "docker"], default="process")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with ExitStack() as parts:
            watched = _start(arguments.state, arguments.engine, parts)
            while all(process.poll() is None for process in watched):
                time.sleep(0.5)
            _say("a part of the embedded cloud has died; ending the others")
    except _Stopped:
        remove_files(arguments.state)  # logs are kept only where something went wrong
        return 0
    except LockstepError as error:
        _say(str(error))
    return 1


def _start(state: Path, engine: Engine, parts: ExitStack) -> list[subprocess.Popen[bytes]]:
    sources = hash_of_sources()  # before anything is read from them
    _say("starting the task engine")
    task_engine = start_engine(engine, state)
    parts.callback(task_engine.stop)
    assembly = synthesize(STATE / "synth", _say)  # while the engine warms up
    task_engine.await_ready()
    _say("starting the AWS emulator")
    emulator = start_emulator(state, docker_host=task_engine.docker_host, host_name=task_engine.host_name)
    parts.callback(emulator.stop)
    os.environ.update(client_environment(emulator.endpoint))
    session = boto3.Session()
    outputs = deploy(session, assembly, _say)
    task_engine.provide_images(task_images(session), assembly / f"{STACK}.assets.json", _say)
    Cloud(
        pid=os.getpid(),
        endpoint=emulator.endpoint,
        outputs=outputs,
        state=str(state),
        engine=engine,
        sources=sources,
    ).save()
    return [emulator.process, *task_engine.processes]


def _say(text: str) -> None:
    print(f"{STEP}{text}", flush=True)  # noqa: T201 - the supervisor's log is its standard output


def _stop(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)  # ending is under way: a second signal must not cut it short
    raise _Stopped


if __name__ == "__main__":
    sys.exit(main())
