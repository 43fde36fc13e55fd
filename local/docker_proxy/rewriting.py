"""What the proxy changes in the emulator's requests: pure functions on Docker's JSON documents.

Runs in the proxy; must not know connections. Source: Docker Engine API v1.41 reference, section Containers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CLOUD_LABEL = "lockstep.cloud"
"""On every container: the embedded cloud that it belongs to."""

ADDRESS_VARIABLE = "TASK_ADDRESS"
"""Where the runtime is told the address to serve at; see local/engine/containers.py."""

CONFINED: Mapping[str, Any] = {
    "ReadonlyRootfs": True,
    "CapDrop": ["ALL"],
    "Tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 - inside the container
}
"""What the stack's task definitions say of a container and the emulator does not pass on.

A mount on /tmp goes before the image's volume there, which would be left behind.
"""

# What means something in a network of the container's own only; the engine refuses some of it beside "host".
_NETWORK_SETTINGS = {
    "ExposedPorts",
    "NetworkingConfig",
    "Hostname",
    "Domainname",
    "MacAddress",
    "NetworkDisabled",
}
_NETWORK_HOST_CONFIG = {
    "ExtraHosts",
    "PortBindings",
    "PublishAllPorts",
    "Links",
    "Dns",
    "DnsOptions",
    "DnsSearch",
}


class NotAContainer(ValueError):
    """The body of a create request is not a container's document."""


def container(body: bytes, *, address: str, cloud: str) -> bytes:
    """The create request's body for a container of `cloud` in the host's network, with an own loopback `address`.

    It is confined as on AWS; everything else that has nothing to do with the network stays as it was asked for.
    Raises NotAContainer.
    """
    try:
        wanted = json.loads(body)
    except ValueError as error:
        raise NotAContainer(f"invalid JSON: {error}") from None
    if not isinstance(wanted, dict):
        raise NotAContainer("invalid JSON: a container is an object")
    document: dict[str, Any] = {k: v for k, v in wanted.items() if k not in _NETWORK_SETTINGS}
    host_config = {k: v for k, v in (wanted.get("HostConfig") or {}).items() if k not in _NETWORK_HOST_CONFIG}
    host_config |= CONFINED
    host_config["NetworkMode"] = "host"
    # The emulator reads logs back from the engine, which not every default of an engine allows.
    host_config["LogConfig"] = {"Type": "json-file", "Config": {}}
    given = [entry for entry in wanted.get("Env") or [] if not entry.startswith(f"{ADDRESS_VARIABLE}=")]
    document["HostConfig"] = host_config
    document["Env"] = [*given, f"{ADDRESS_VARIABLE}={address}"]
    document["Labels"] = {**(wanted.get("Labels") or {}), CLOUD_LABEL: cloud}
    return json.dumps(document).encode()


def listing(query: Mapping[str, str], cloud: str) -> dict[str, str]:
    """The query of a list request, narrowed to the containers of `cloud`: others are none of the emulator's."""
    filters = json.loads(query.get("filters") or "{}")
    labels = [*filters.get("label", []), f"{CLOUD_LABEL}={cloud}"]
    return {**query, "filters": json.dumps({**filters, "label": labels})}


def inspected(body: bytes, address: str) -> bytes:
    """The answer about a container with its loopback `address`, which the engine, knowing the host's network, lacks."""
    document = json.loads(body)
    document["NetworkSettings"] = {
        **document.get("NetworkSettings", {}),
        "Networks": {"host": {"IPAddress": address}},
    }
    return json.dumps(document).encode()
