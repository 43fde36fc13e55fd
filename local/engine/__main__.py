"""The task engine's command line: `python -m local.engine --entry runtime.__main__:main --announce FILE`.

Runs as one process beside the AWS emulator; ends on SIGTERM, SIGINT, or with the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from local.engine.addresses import AddressPool
from local.engine.api import Api
from local.engine.containers import Engine
from local.engine.http_server import HttpServer
from local.engine.launcher import Launcher, LaunchFailed
from local.engine.lifetime import when_asked_to_end
from local.processes import announce

log = logging.getLogger("task-engine")

STOP_GRACE_SECONDS = 2.0
# What of the caller's environment the engine keeps and gives to every container: where programs, libraries
# and the home are, how Python and C runtimes behave (malloc and OpenMP read theirs once per process image, so
# the warm parent's count). Everything else stays outside, credentials first.
_KEPT_NAMES = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "GLIBC_TUNABLES"}
_KEPT_PREFIXES = ("LC_", "PYTHON", "MALLOC_", "OMP_", "MKL_")
# With the caller's HOME come the caller's ~/.aws files, and botocore asks those before the task role's
# endpoint.
_NO_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull}


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that containers may see."""
    return {k: v for k, v in environment.items() if k in _KEPT_NAMES or k.startswith(_KEPT_PREFIXES)}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m local.engine", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--entry", required=True, help="module:function that every container runs with its command"
    )
    parser.add_argument("--preload", default="", help="modules to import before forking, comma-separated")
    parser.add_argument("--announce", type=Path, required=True, help="JSON file to write when ready")
    parser.add_argument(
        "--self-name", help="the emulator's HOSTNAME: answered for as a container at 127.0.0.1"
    )
    return parser.parse_args(argv)


async def serve(arguments: argparse.Namespace, launcher: Launcher) -> int:
    """Serve until asked to end: the exit code, 1 when the engine cannot start or go on."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int = 0) -> None:
        if not ended.done():
            ended.set_result(code)

    when_asked_to_end(end)

    addresses = AddressPool()
    engine = Engine(launcher, addresses, kept(os.environ) | _NO_AWS_FILES)
    server = HttpServer(Api(engine, arguments.self_name).handle)

    def lost() -> None:
        log.error("the warm parent died: ending")
        engine.zygote_lost()
        end(1)

    async def start() -> None:
        try:
            await launcher.ready(engine.process_exited, lost)
            port = await server.listen(arguments.port)
            announce(arguments.announce, {"port": port, "pid": os.getpid(), "subnet": addresses.subnet})
        except (LaunchFailed, OSError) as error:
            log.error("cannot start: %s", error)
            end(1)
        else:
            log.info("ready on 127.0.0.1:%d, containers get %s.*", port, addresses.subnet)

    starting = loop.create_task(start())
    code = await ended
    starting.cancel()
    server.stop_listening()
    await engine.close(STOP_GRACE_SECONDS)
    server.close()
    return code


def main() -> int:
    """Run the engine; the exit code."""
    arguments = parse_arguments(sys.argv[1:])
    environment = kept(os.environ)
    if os.environ.keys() - environment.keys():
        # By a new process image rather than by deleting: a process's first environment stays readable in its
        # /proc/<pid>/environ, and in those of its copies, which containers are.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - itself again
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    launcher = Launcher(arguments.entry, [name for name in arguments.preload.split(",") if name])
    return asyncio.run(serve(arguments, launcher))


if __name__ == "__main__":
    sys.exit(main())
