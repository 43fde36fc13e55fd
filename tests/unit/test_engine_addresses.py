"""Loopback addresses: no two owners, longest rest first, no end at 253."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from local.engine import addresses
from local.engine.addresses import AddressPool, NoFreeSubnet


def test_two_pools_share_no_address_and_every_address_can_be_bound() -> None:
    first, second = AddressPool(), AddressPool()
    taken = [pool.take() for pool in (first, second) for _ in range(253)]

    assert len(set(taken)) == 2 * 253
    assert all(ipaddress.ip_address(address).is_loopback for address in taken)
    assert not any(address.startswith("127.0.") for address in taken)
    for address in (taken[0], taken[-1]):
        with socket.socket() as listener:
            listener.bind((address, 0))
    first.close()
    second.close()


def test_an_address_comes_back_last_and_a_full_subnet_gets_a_second_one() -> None:
    pool = AddressPool()
    taken = [pool.take() for _ in range(253)]
    assert {address.rpartition(".")[0] for address in taken} == {pool.subnet}

    another = pool.take()
    assert another.rpartition(".")[0] != pool.subnet

    pool.give_back(taken[7])
    following = [pool.take() for _ in range(253)]
    assert following[-1] == taken[7]
    pool.close()


def test_a_subnet_held_by_another_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = AddressPool()
    first, second = (int(part) for part in holder.subnet.split(".")[1:])
    # From now on every draw is that one
    monkeypatch.setattr(addresses.secrets, "randbelow", lambda limit: first - 1 if limit == 254 else second)

    with pytest.raises(NoFreeSubnet, match="task engines"):
        AddressPool()

    holder.close()
    AddressPool().close()
