"""The task engine's HTTP parser: any fragmentation, any garbage."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.engine.http_server import BadRequest, HttpServer, Request, Response, take_request

names = st.text("abcxyz", min_size=1, max_size=8)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Request]:
    path = "/" + draw(st.text("ab1/-", max_size=12)).lstrip("/")
    query = draw(st.dictionaries(names, names, max_size=3))
    body = draw(st.binary(max_size=60))
    headers = {
        "host": "localhost",
        "content-length": str(len(body)),
        **draw(st.dictionaries(names, names, max_size=3)),
    }
    target = path + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
    lines = [f"POST {target} HTTP/1.1", *(f"{k.title()}:  {v} " for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body, Request("POST", path, query, headers, body)


@given(st.lists(requests(), min_size=1, max_size=4), st.integers(1, 50))
def test_requests_are_read_whole_whatever_the_packets(cases: list[tuple[bytes, Request]], step: int) -> None:
    stream = b"".join(raw for raw, _ in cases)
    buffer, read = bytearray(), []

    for start in range(0, len(stream), step):
        buffer += stream[start : start + step]
        while (request := take_request(buffer)) is not None:
            read.append(request)

    assert read == [request for _, request in cases]
    assert not buffer


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for_but_never_crashes(garbage: bytes) -> None:
    with contextlib.suppress(BadRequest):
        take_request(bytearray(garbage + b"\r\n\r\n"))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"GET /\r\n\r\n", "request line"),
        (b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 only"),
        (b"GET / HTTP/1.1\r\nbroken\r\n\r\n", "malformed header"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "malformed header"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "Content-Length"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "Content-Length"),
        (b"x" * 70_000, "request head"),
    ],
)
def test_what_cannot_be_understood_is_named(raw: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        take_request(bytearray(raw))


def test_a_client_that_leaves_takes_its_answer_with_it() -> None:
    async def scenario() -> None:
        cancelled = asyncio.Event()

        async def never(_request: Request) -> Response:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return Response(200)

        server = HttpServer(never)
        _, writer = await asyncio.open_connection("127.0.0.1", await server.listen(0))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.01)
        writer.close()
        await asyncio.wait_for(cancelled.wait(), 10)
        server.close()

    asyncio.run(scenario())


def test_answers_without_a_body_leave_the_connection_in_step() -> None:
    async def scenario() -> bytes:
        async def handler(request: Request) -> Response:
            return Response(int(request.path[1:]), b'{"message":"already so"}')

        server = HttpServer(handler)
        reader, writer = await asyncio.open_connection("127.0.0.1", await server.listen(0))
        writer.write(b"POST /304 HTTP/1.1\r\n\r\nPOST /204 HTTP/1.1\r\n\r\n")
        writer.write(b"HEAD /200 HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        server.close()
        return answer

    answer = asyncio.run(scenario())

    heads = answer.decode().split("\r\n\r\n")
    assert [head.split("\r\n")[0] for head in heads] == [
        "HTTP/1.1 304 Not Modified",
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 200 OK",
        "",
    ]
