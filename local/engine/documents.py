"""Docker's JSON documents about containers and images, as far as its Python client and MiniStack read them.

Pure functions in the engine process; the shapes are those of the Docker Engine API v1.44 reference.
"""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from typing import Any

from local.engine.containers import Container

API_VERSION = "1.44"
MIN_API_VERSION = "1.24"
NETWORK = "lockstep"
_NEVER = "0001-01-01T00:00:00Z"  # how Docker writes a time that has not come


def version() -> dict[str, Any]:
    """Answer of `GET /version`."""
    return {
        "Version": "lockstep-task-engine",
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": "linux",
        "Arch": platform.machine(),
    }


def image(name: str) -> dict[str, Any]:
    """Answer of `GET /images/{name}/json`: every name exists, all stand for the engine's one entry point."""
    digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    return {"Id": digest, "RepoTags": [name], "RepoDigests": [], "Os": "linux", "Config": {"Labels": {}}}


def _network(address: str) -> dict[str, Any]:
    return {
        "IPAddress": address,
        "Ports": {},
        "Networks": {NETWORK: {"IPAddress": address, "Gateway": "127.0.0.1"}},
    }


def _time(moment: datetime | None) -> str:
    return _NEVER if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def inspect(container: Container) -> dict[str, Any]:
    """Answer of `GET /containers/{id}/json`. Its environment is left out: it holds the task role's token."""
    return {
        "Id": container.id,
        "Name": f"/{container.name}",
        "Created": _time(container.created),
        "Image": image(container.image)["Id"],
        "Path": "",
        "Args": list(container.command),
        "State": {
            "Status": container.status,
            "Running": container.status == "running",
            "Pid": container.pid,
            "ExitCode": container.exit_code,
            "Error": container.error,
            "StartedAt": _time(container.started),
            "FinishedAt": _time(container.finished),
        },
        "Config": {
            "Image": container.image,
            "Cmd": list(container.command),
            "Labels": dict(container.labels),
            "Tty": False,
        },
        "HostConfig": {"NetworkMode": NETWORK, "LogConfig": {"Type": "json-file", "Config": {}}},
        # Docker blanks the address when a container exits; then MiniStack would lose the address of a quick task.
        "NetworkSettings": _network(container.address),
    }


def inspect_caller(name: str) -> dict[str, Any]:
    """The same for the emulator: MiniStack looks itself up to learn where its tasks reach it."""
    return {
        "Id": hashlib.sha256(name.encode()).hexdigest(),
        "Name": f"/{name}",
        "State": {"Status": "running", "Running": True, "ExitCode": 0},
        "Config": {"Image": name, "Labels": {}, "Tty": False},
        "HostConfig": {"NetworkMode": NETWORK},
        "NetworkSettings": _network("127.0.0.1"),
    }


def listed(container: Container) -> dict[str, Any]:
    """One item of the answer of `GET /containers/json`."""
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.image,
        "ImageID": image(container.image)["Id"],
        "Command": " ".join(container.command),
        "Created": int(container.created.timestamp()),
        "Labels": dict(container.labels),
        "State": container.status,
        "Status": _summary(container),
        "Ports": [],
        "NetworkSettings": _network(container.address),
    }


def _summary(container: Container) -> str:
    match container.status:
        case "running":
            seconds = (datetime.now(UTC) - (container.started or container.created)).total_seconds()
            return f"Up {seconds:.0f} seconds"
        case "exited":
            return f"Exited ({container.exit_code})"
        case _:
            return "Created"
