"""The real Docker engine, asked over HTTP/1.1: one connection for each request.

Runs in the proxy, on its event loop; must not know which requests there are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlencode, urlsplit

from contract.errors import LockstepError
from local.engine.http_server import Request, Response

DEFAULT_URL = "unix:///var/run/docker.sock"
_LOOPBACK = {"127.0.0.1", "localhost"}
# The rest of a request's head is about the connection between client and proxy.
_FORWARDED_HEADERS = {"content-type", "x-registry-auth"}
_READ_BYTES = 1 << 16


class UnusableDockerHost(LockstepError):
    """DOCKER_HOST names no Docker engine of this machine."""


class EngineLost(OSError):
    """The engine ended the connection in the middle of an answer, or answered no HTTP."""


@dataclass(frozen=True)
class Upstream:
    """Where the engine listens: a Unix socket's path, or a port on loopback."""

    socket: str = ""
    port: int = 0

    @classmethod
    def parse(cls, url: str) -> Self:
        """From a DOCKER_HOST. Raises UnusableDockerHost: containers must be able to share this host's network."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path:
            return cls(socket=parts.path)
        if parts.scheme in {"tcp", "http"} and parts.hostname in _LOOPBACK and parts.port:
            return cls(port=parts.port)
        raise UnusableDockerHost(
            f"DOCKER_HOST={url} cannot be used: name an engine of this machine, as in {DEFAULT_URL}"
        )

    async def send(self, request: Request) -> Response:
        """The engine's answer; a body of unknown length as a stream. Raises OSError."""
        reader, writer = await self._connect()
        try:
            writer.write(encode_request(request))
            await writer.drain()
            status, headers = parse_head(await reader.readuntil(b"\r\n\r\n"))
            content_type = headers.get("content-type", "application/json")
            if request.method == "HEAD" or status in (204, 304):
                response = Response(status, content_type=content_type)
            elif "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
                response = Response(status, body, content_type)
            else:
                chunked = headers.get("transfer-encoding", "").lower() == "chunked"
                stream = _stream(reader, writer, chunked=chunked)
                return Response(status, content_type=content_type, stream=stream)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            writer.close()
            raise EngineLost(f"no HTTP answer to {request.method} {request.path}: {error}") from error
        except BaseException:
            writer.close()
            raise
        writer.close()
        return response

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.socket:
            return await asyncio.open_unix_connection(self.socket)
        return await asyncio.open_connection("127.0.0.1", self.port)


def encode_request(request: Request) -> bytes:
    """The request as bytes, its connection to end with the answer."""
    target = quote(request.path, safe="/:@")
    if request.query:
        target += f"?{urlencode(request.query)}"
    headers = {k: v for k, v in request.headers.items() if k in _FORWARDED_HEADERS}
    headers |= {"host": "localhost", "connection": "close", "content-length": str(len(request.body))}
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + request.body


def parse_head(head: bytes) -> tuple[int, Mapping[str, str]]:
    """Status and headers, names in lower case. Raises ValueError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status = first.split(" ")[:2]
    if not version.startswith("HTTP/1."):
        raise ValueError(f"not HTTP/1: {first[:200]!r}")
    headers = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status), headers


async def _stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chunked: bool
) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises EngineLost when it breaks off. Source: RFC 9112, section 7.1."""
    try:
        while chunked:
            size = int((await reader.readline()).partition(b";")[0], 16)
            data = (await reader.readexactly(size + 2))[:-2]
            if not size:
                return
            yield data
        while data := await reader.read(_READ_BYTES):
            yield data
    except (asyncio.IncompleteReadError, ValueError) as error:
        raise EngineLost(f"the answer broke off: {error}") from error
    finally:
        writer.close()


async def whole(response: Response) -> bytes:
    """The body of an answer, streamed or not."""
    if response.stream is None:
        return response.body
    return b"".join([data async for data in response.stream])


def engine_url() -> str:
    """The engine that DOCKER_HOST names, or the one where Docker puts it."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_URL
