"""What ECS says of this task: its ARN, and the address that others reach it by.

Runs in both roles, on ECS and elsewhere; knows no AWS SDK.
"""

import json
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any

METADATA_SECONDS = 2.0


class TaskMetadata:
    """The ECS task metadata endpoint, version 4; empty answers where there is none.

    Source: Amazon ECS Developer Guide, "Task metadata endpoint version 4".
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        base = environ.get("ECS_CONTAINER_METADATA_URI_V4", "")
        self._task: dict[str, Any] = _read_json(f"{base}/task") if base else {}

    @property
    def task_arn(self) -> str:
        """ARN of this task; empty outside ECS."""
        return str(self._task.get("TaskARN", ""))

    @property
    def address(self) -> str:
        """IPv4 address under which other tasks reach this one: TASK_ADDRESS, or what ECS or the system says."""
        if given := self._environ.get("TASK_ADDRESS"):
            return given
        for container in self._task.get("Containers", []):
            for network in container.get("Networks", []):
                if addresses := network.get("IPv4Addresses"):
                    return str(addresses[0])
        return _own_address()


def _own_address() -> str:
    """The address that this machine would send from; connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _read_json(url: str) -> dict[str, Any]:
    """The JSON object at `url`; empty where it cannot be read: no training fails for want of an ARN."""
    try:
        with urllib.request.urlopen(url, timeout=METADATA_SECONDS) as response:  # noqa: S310 - ECS sets the URL
            document = json.load(response)
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
