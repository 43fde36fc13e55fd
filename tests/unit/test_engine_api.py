"""What the Docker API's requests are taken to mean, and what is refused."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime

import pytest

from local.engine.api import parse_filters, parse_signal, parse_spec
from local.engine.containers import Container, InvalidRequest
from local.engine.http_server import Request


def create(body: object, content_type: str = "application/json") -> Request:
    return Request(
        "POST", "/containers/create", {}, {"content-type": content_type}, json.dumps(body).encode()
    )


def test_a_create_request_becomes_a_spec() -> None:
    body = {
        "Image": "a/b:1",
        "Cmd": ["train"],
        "Env": ["A=1=2", "B="],
        "Labels": {"k": "v"},
        "HostConfig": {},
    }

    assert parse_spec(create(body)) == {
        "image": "a/b:1",
        "command": ["train"],
        "environment": {"A": "1=2", "B": ""},
        "labels": {"k": "v"},
    }


def test_every_problem_is_named_at_once() -> None:
    body = {"Image": "", "Cmd": "train", "Env": ["=x"], "Tty": True, "HostConfig": {"Binds": ["/a:/b"]}}

    with pytest.raises(InvalidRequest) as refusal:
        parse_spec(create(body))

    assert all(name in str(refusal.value) for name in ("Image", "Cmd", "Env", "Tty", "HostConfig.Binds"))


@pytest.mark.parametrize("request_", [create([]), create({"Image": "x"}, "text/plain")])
def test_what_a_web_form_could_send_makes_no_container(request_: Request) -> None:
    with pytest.raises(InvalidRequest):
        parse_spec(request_)


def container(**changes: object) -> Container:
    fields: dict[str, object] = {
        "id": "abc123",
        "name": "worker-1",
        "image": "x",
        "command": [],
        "environment": {},
        "labels": {"role": "worker", "empty": ""},
        "address": "127.1.1.2",
        "created": datetime.now(UTC),
    }
    return Container(**{**fields, **changes})  # type: ignore[arg-type]  # built by name


@pytest.mark.parametrize(
    ("filters", "accepted"),
    [
        ({}, True),
        ({"label": ["role"]}, True),
        ({"label": ["role=worker", "empty="]}, True),
        ({"label": {"role=worker": True}}, True),
        ({"label": ["role=worker", "other"]}, False),
        ({"label": ["role=server"]}, False),
        ({"name": ["worker"], "id": ["abc"]}, True),
        ({"name": ["server"]}, False),
        ({"status": ["running", "exited"]}, True),
        ({"status": ["exited"]}, False),
    ],
)
def test_filters(filters: object, accepted: bool) -> None:
    async def scenario() -> bool:
        return parse_filters({"filters": json.dumps(filters)})(container(status="running"))

    assert asyncio.run(scenario()) is accepted


def test_only_running_containers_unless_all_are_wanted() -> None:
    async def scenario() -> list[bool]:
        stopped = container(status="exited")
        return [parse_filters(query)(stopped) for query in ({}, {"all": "0"}, {"all": "1"}, {"all": "True"})]

    assert asyncio.run(scenario()) == [False, False, True, True]


@pytest.mark.parametrize("filters", ['{"ancestor": ["x"]}', "[1]", "{", '{"label": 1}'])
def test_filters_that_are_not_understood_are_refused(filters: str) -> None:
    with pytest.raises(InvalidRequest, match="filter"):
        parse_filters({"filters": filters})


@pytest.mark.parametrize("text", ["15", "TERM", "SIGTERM", "sigterm"])
def test_signals_by_number_and_name(text: str) -> None:
    assert parse_signal(text) == signal.SIGTERM


@pytest.mark.parametrize("text", ["", "0", "999", "SIGNOTHING"])
def test_unknown_signals_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_signal(text)
