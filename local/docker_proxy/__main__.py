"""The Docker proxy's command line: `python -m local.docker_proxy --engine URL --socket PATH …`.

Runs as one process beside the AWS emulator; ends on SIGTERM, SIGINT, or with the process that started it, and
removes the cloud's containers then.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from docker.errors import DockerException

from contract.errors import LockstepError
from local.docker_proxy.proxy import Proxy
from local.docker_proxy.sweep import remove_containers
from local.docker_proxy.upstream import Upstream
from local.engine.addresses import AddressPool
from local.engine.http_server import HttpServer
from local.engine.lifetime import when_asked_to_end
from local.processes import announce

log = logging.getLogger("docker-proxy")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m local.docker_proxy", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--engine", required=True, help="URL of the real engine, as in DOCKER_HOST")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--cloud", required=True, help="value of the label on every container")
    parser.add_argument(
        "--self-name", required=True, help="the emulator's HOSTNAME: a container at 127.0.0.1"
    )
    parser.add_argument("--announce", type=Path, required=True, help="JSON file to write when ready")
    return parser.parse_args(argv)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until asked to end, then remove the containers.

    Raises OSError when it cannot listen, docker.errors.DockerException when a container cannot be removed.
    """
    ended = asyncio.Event()
    when_asked_to_end(ended.set)
    addresses = AddressPool()
    upstream = Upstream.parse(arguments.engine)
    server = HttpServer(
        Proxy(upstream, addresses, cloud=arguments.cloud, caller_name=arguments.self_name).handle
    )
    await server.listen_at(arguments.socket)
    announce(arguments.announce, {"pid": os.getpid(), "subnet": addresses.subnet})
    log.info("ready at %s, containers get %s.*", arguments.socket, addresses.subnet)
    await ended.wait()
    server.close()
    # Beside the loop, which goes on taking signals: a second one must not cut this short.
    removed = await asyncio.to_thread(remove_containers, arguments.engine, arguments.cloud)
    log.info("removed %d containers", removed)
    addresses.close()


def main() -> int:
    """Run the proxy; the exit code."""
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    os.umask(0o077)  # the socket is for its owner only
    try:
        asyncio.run(serve(arguments))
    except (LockstepError, OSError, DockerException) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
