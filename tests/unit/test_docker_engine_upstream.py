"""The proxy's way to the real engine: requests and answers survive it byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.docker_proxy.upstream import (
    EngineLost,
    UnusableDockerHost,
    Upstream,
    encode_request,
    parse_head,
    whole,
)
from local.engine.http_server import HttpServer, Request, Response, take_request

GET = Request("GET", "/version", {}, {}, b"")
words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


@pytest.mark.parametrize(
    ("url", "upstream"),
    [
        ("unix:///var/run/docker.sock", Upstream(socket="/var/run/docker.sock")),
        ("tcp://127.0.0.1:2375", Upstream(port=2375)),
        ("tcp://localhost:2375", Upstream(port=2375)),
    ],
)
def test_an_engine_of_this_machine_is_understood(url: str, upstream: Upstream) -> None:
    assert Upstream.parse(url) == upstream


@pytest.mark.parametrize("url", ["tcp://192.0.2.1:2375", "ssh://me@there", "unix://", "tcp://localhost", "x"])
def test_an_engine_elsewhere_is_refused_by_name(url: str) -> None:
    with pytest.raises(UnusableDockerHost, match="of this machine") as refusal:
        Upstream.parse(url)
    assert f"DOCKER_HOST={url}" in str(refusal.value)


@given(st.sampled_from(["GET", "POST", "DELETE"]), words, st.dictionaries(words, words), st.binary())
def test_a_request_arrives_as_it_was_made(method: str, name: str, query: dict[str, str], body: bytes) -> None:
    # What the emulator asked for is what the same parser reads behind the proxy
    request = Request(method, f"/v1.41/containers/{name}/json", query, {"content-type": "x/y"}, body)

    arrived = take_request(bytearray(encode_request(request)))

    assert arrived is not None
    assert (arrived.method, arrived.path, arrived.query, arrived.body) == (
        request.method,
        request.path,
        request.query,
        request.body,
    )
    assert arrived.headers["content-type"] == "x/y"
    assert arrived.headers["connection"] == "close"


def test_headers_about_the_emulators_connection_stay_behind() -> None:
    request = Request("POST", "/x", {}, {"connection": "keep-alive", "content-length": "9"}, b"1")

    arrived = take_request(bytearray(encode_request(request)))

    assert arrived is not None
    assert arrived.headers["connection"] == "close"
    assert arrived.headers["content-length"] == "1"


def test_a_head_is_status_and_headers() -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Type: a/b\r\nX:  y \r\n\r\n"
    assert parse_head(head) == (404, {"content-type": "a/b", "x": "y"})


@pytest.mark.parametrize("head", [b"\r\n\r\n", b"SSH-2.0-OpenSSH hello\r\n\r\n", b"HTTP/1.1 ok\r\n\r\n"])
def test_another_protocol_is_no_head(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_head(head)


async def pieces(*items: bytes) -> AsyncGenerator[bytes, None]:
    for item in items:
        yield item


async def answered(path: Path, response: Response, method: str = "GET") -> tuple[int, bytes, bool]:
    """What comes through from an engine that answers so: status, body, whether as a stream."""

    async def handle(_request: Request) -> Response:
        return response

    server = HttpServer(handle)
    await server.listen_at(path)
    answer = await Upstream(socket=str(path)).send(Request(method, "/x", {}, {}, b""))
    body = await whole(answer)
    server.close()
    return answer.status, body, answer.stream is not None


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response(200, b"whole"), (200, b"whole", False)),
        (Response(404, b'{"message": "no"}'), (404, b'{"message": "no"}', False)),
        (Response(204), (204, b"", False)),
        (Response(304), (304, b"", False)),
    ],
)
def test_an_answer_comes_through(
    tmp_path: Path, response: Response, expected: tuple[int, bytes, bool]
) -> None:
    assert asyncio.run(answered(tmp_path / "s", response)) == expected


def test_a_stream_comes_through_as_a_stream(tmp_path: Path) -> None:
    stream = pieces(b"\x01frame\r\n", b"x" * 100_000, b"0\r\n\r\n")

    status, body, streamed = asyncio.run(answered(tmp_path / "s", Response(200, stream=stream)))

    assert (status, streamed) == (200, True)
    assert body == b"\x01frame\r\n" + b"x" * 100_000 + b"0\r\n\r\n"


async def asked(path: Path, raw_answer: bytes) -> bytes:
    """The body of an answer that some program at the socket gives, before it hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw_answer)
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        return await whole(await Upstream(socket=str(path)).send(GET))


def test_an_answer_without_length_ends_with_the_connection(tmp_path: Path) -> None:
    assert asyncio.run(asked(tmp_path / "s", b"HTTP/1.1 200 OK\r\n\r\nall of it")) == b"all of it"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(EngineLost):
        asyncio.run(asked(tmp_path / "s", raw))


def test_no_engine_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(Upstream(socket=str(tmp_path / "none")).send(GET))
