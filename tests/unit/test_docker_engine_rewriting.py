"""What the Docker proxy makes of the emulator's requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.docker_proxy.rewriting import CLOUD_LABEL, NotAContainer, container, inspected, listing

# As MiniStack's ECS asks for a container, less what docker-py leaves null.
ASKED: dict[str, Any] = {
    "Image": "registry/runtime:1",
    "Cmd": ["worker"],
    "Env": ["WORKER_RANK=1", "AWS_ENDPOINT_URL=http://127.0.0.1:1"],
    "Labels": {"ministack": "ecs"},
    "Hostname": None,
    "ExposedPorts": {"8000/tcp": {}},
    "NetworkingConfig": {"lockstep": None},
    "HostConfig": {
        "NetworkMode": "lockstep",
        "Privileged": False,
        "ExtraHosts": ["host.docker.internal:host-gateway"],
        "PortBindings": {"8000/tcp": [{"HostPort": "8000"}]},
    },
}


def rewritten(asked: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        container(json.dumps(asked).encode(), address="127.7.7.7", cloud="mine")
    )
    return document


def test_a_container_gets_the_hosts_network_and_an_address_is_confined_and_keeps_the_rest() -> None:
    assert rewritten(ASKED) == {
        "Image": "registry/runtime:1",
        "Cmd": ["worker"],
        "Env": ["WORKER_RANK=1", "AWS_ENDPOINT_URL=http://127.0.0.1:1", "TASK_ADDRESS=127.7.7.7"],
        "Labels": {"ministack": "ecs", CLOUD_LABEL: "mine"},
        "HostConfig": {
            "NetworkMode": "host",
            "Privileged": False,
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "Tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 - inside the container
            "LogConfig": {"Type": "json-file", "Config": {}},
        },
    }


def test_nobody_chooses_an_address_but_the_proxy() -> None:
    assert rewritten({"Env": ["TASK_ADDRESS=127.0.0.1", "TASK_ADDRESS_2=kept"]})["Env"] == [
        "TASK_ADDRESS_2=kept",
        "TASK_ADDRESS=127.7.7.7",
    ]


@given(
    st.dictionaries(
        st.sampled_from(["Image", "User", "WorkingDir", "StopSignal", "Entrypoint"]),
        st.none() | st.text() | st.lists(st.text()),
    )
)
def test_what_has_nothing_to_do_with_networks_passes_unchanged(fields: dict[str, Any]) -> None:
    document = rewritten(fields)

    assert {name: document[name] for name in fields} == fields
    assert document.keys() - fields.keys() == {"Env", "Labels", "HostConfig"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_what_is_no_container_is_refused(body: bytes) -> None:
    with pytest.raises(NotAContainer, match="invalid JSON"):
        container(body, address="127.7.7.7", cloud="mine")


@pytest.mark.parametrize(
    ("given_filters", "labels"),
    [({}, []), ({"label": ["ministack=ecs"], "status": ["exited"]}, ["ministack=ecs"])],
)
def test_a_list_shows_containers_of_the_own_cloud_only(
    given_filters: dict[str, list[str]], labels: list[str]
) -> None:
    query = listing({"all": "1", "filters": json.dumps(given_filters)}, "mine")

    assert query["all"] == "1"
    assert json.loads(query["filters"]) == {**given_filters, "label": [*labels, f"{CLOUD_LABEL}=mine"]}


def test_a_list_without_filters_gets_one() -> None:
    assert json.loads(listing({}, "mine")["filters"]) == {"label": [f"{CLOUD_LABEL}=mine"]}


def test_the_address_is_where_the_emulator_looks_for_it() -> None:
    answer = {
        "Id": "1",
        "NetworkSettings": {"Ports": {}, "Networks": {"host": {"IPAddress": "", "MacAddress": ""}}},
    }

    assert json.loads(inspected(json.dumps(answer).encode(), "127.7.7.7")) == {
        "Id": "1",
        "NetworkSettings": {"Ports": {}, "Networks": {"host": {"IPAddress": "127.7.7.7"}}},
    }
