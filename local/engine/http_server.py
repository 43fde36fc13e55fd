"""A small HTTP/1.1 server for one client on this machine: keep-alive, fixed and chunked answers, clients that leave.

Runs in the engine process; must not know Docker or containers. Hand-written because an AWS emulator polls it:
this parser costs a few dozen microseconds a request, and the whole of what docker-py sends fits in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

log = logging.getLogger("task-engine")

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """One request: header names in lower case, the path unquoted, of a repeated query key the last."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: a `body` of known length, or a `stream` whose every item is sent as one chunk."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    stream: AsyncGenerator[bytes, None] | None = None


class BadRequest(ValueError):
    """These bytes are no request that this server understands; the connection cannot go on."""


Handler = Callable[[Request], Awaitable[Response]]


def take_request(buffer: bytearray) -> Request | None:
    """Cut the first complete request off the front of `buffer`; None while it is not complete yet.

    Raises `BadRequest`. Source: RFC 9112, sections 2 to 6, less what a client may not rely on.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise BadRequest(f"request head over {MAX_HEAD_BYTES} bytes")
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
    except ValueError:
        raise BadRequest(f"malformed request line: {first[:200]!r}") from None
    if version != "HTTP/1.1":
        raise BadRequest(f"HTTP/1.1 only, not {version[:20]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or not name:
            raise BadRequest(f"malformed header: {line[:200]!r}")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise BadRequest("a request body needs a Content-Length, chunked ones are not read")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
        raise BadRequest(f"Content-Length must be a number up to {MAX_BODY_BYTES}, not {length[:20]!r}")
    total = end + 4 + int(length)
    if len(buffer) < total:
        return None
    body = bytes(buffer[end + 4 : total])
    del buffer[:total]
    try:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
    except ValueError as error:
        raise BadRequest(f"malformed target {target[:200]!r}: {error}") from None
    return Request(method, unquote(url.path), query, headers, body)


def encode_head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and header block of an answer."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Connection(asyncio.Protocol):
    """One client connection: requests one at a time, each answered by a task that ends with the client.

    A client that closes its side is taken as gone, so a follow-stream or a long wait never outlives its
    reader.
    """

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler, self._connections = handler, connections
        self._buffer = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows the type
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio, also after our own close."""
        self._connections.discard(self)
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        """The client reads slower than the answer comes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        if self._answering is None:
            self._next()
        elif len(self._buffer) > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            self.transport.abort()  # pipelines without end while an answer is under way

    def _next(self) -> None:
        try:
            request = take_request(self._buffer)
        except BadRequest as error:
            self._write_fixed(Response(400, str(error).encode(), "text/plain"), close=True)
            self.transport.close()
            return
        if request is not None:
            self._answering = asyncio.get_running_loop().create_task(self._answer(request))
            self._answering.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering = None
        if task.cancelled():
            return
        if error := task.exception():
            # The head may be out: breaking the connection off is the only way left to say that it went wrong.
            log.error("answer broken off", exc_info=error)
            self.transport.abort()
        elif not self.transport.is_closing():
            self._next()

    async def _answer(self, request: Request) -> None:
        response = await self._handler(request)
        close = request.headers.get("connection", "").lower() == "close"
        if response.stream is None:
            self._write_fixed(response, close=close, without_body=request.method == "HEAD")
        else:
            await self._write_stream(response.status, response.content_type, response.stream, close=close)
        if close:
            self.transport.close()

    def _write_fixed(self, response: Response, *, close: bool, without_body: bool = False) -> None:
        headers, body = {}, b""
        if response.status not in (204, 304):  # they have no body, and so no length
            headers = {"Content-Length": str(len(response.body)), "Content-Type": response.content_type}
            body = b"" if without_body else response.body
        if close:
            headers["Connection"] = "close"
        self.transport.write(encode_head(response.status, headers) + body)

    async def _write_stream(
        self, status: int, content_type: str, stream: AsyncGenerator[bytes, None], *, close: bool
    ) -> None:
        headers = {"Content-Type": content_type, "Transfer-Encoding": "chunked"}
        if close:
            headers["Connection"] = "close"
        async with contextlib.aclosing(stream):
            self.transport.write(encode_head(status, headers))
            async for item in stream:
                self.transport.write(b"%x\r\n%b\r\n" % (len(item), item))
                await self._writable.wait()
        self.transport.write(b"0\r\n\r\n")


class HttpServer:
    """Listens on 127.0.0.1 or on a Unix socket and answers with `handler`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Accept connections on `port`, or on a free one if 0: the port. Raises OSError if it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, "127.0.0.1", port, backlog=256)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def listen_at(self, path: Path) -> None:
        """Accept connections on a Unix socket. Raises OSError, for one if `path` is over 107 bytes long."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connection, path, backlog=256)

    def _connection(self) -> Connection:
        return Connection(self._handler, self._connections)

    def stop_listening(self) -> None:
        """Accept nobody any more; answers under way go on."""
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        """Break every connection off."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.transport.abort()
