"""Loopback addresses for containers, from /24 networks that one engine holds for itself.

Runs in the engine process; must not know containers.
"""

from __future__ import annotations

import secrets
import socket
from collections import deque

# Every engine marks a /24 as taken by holding this UDP port on its .1 address. Unprivileged, and below the
# ephemeral range (32768-60999), so no outgoing connection can hold it by chance.
RESERVATION_PORT = 31994
_ATTEMPTS = 64
_FIRST_HOST, _LAST_HOST = 2, 254


class NoFreeSubnet(RuntimeError):
    """Every 127.a.b.0/24 tried is held by another engine."""


def reserve_subnet() -> tuple[str, socket.socket]:
    """A random free `127.a.b` (a from 1: never the everyday 127.0.*), and the socket that holds it."""
    for _ in range(_ATTEMPTS):
        prefix = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}"
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            holder.bind((f"{prefix}.1", RESERVATION_PORT))
        except OSError:
            holder.close()
        else:
            return prefix, holder
    raise NoFreeSubnet(
        f"no free 127.a.b.0/24 in {_ATTEMPTS} attempts: stop task engines that are no longer needed"
    )


class AddressPool:
    """Hands out loopback addresses, and reserves one more /24 when all are in use.

    An address that was given back goes to the end of the queue: the longer it rests, the smaller the chance
    that a late packet or a peer's retry meets a stranger there.
    """

    def __init__(self) -> None:
        self._holders: list[socket.socket] = []
        self._free: deque[str] = deque()
        self.subnet = self._grow()

    def _grow(self) -> str:
        prefix, holder = reserve_subnet()
        self._holders.append(holder)
        self._free.extend(f"{prefix}.{host}" for host in range(_FIRST_HOST, _LAST_HOST + 1))
        return prefix

    def take(self) -> str:
        """An address no other container of any engine has. Raises `NoFreeSubnet`."""
        if not self._free:
            self._grow()
        return self._free.popleft()

    def give_back(self, address: str) -> None:
        """Make an address available again; the caller's container is gone."""
        self._free.append(address)

    def close(self) -> None:
        """Let other engines have the subnets."""
        for holder in self._holders:
            holder.close()
