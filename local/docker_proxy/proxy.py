"""Which of the emulator's requests are special, and what the proxy keeps in mind about its containers.

Runs in the proxy, on its event loop; what is not special passes through as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from dataclasses import dataclass, field, replace

from local.docker_proxy import rewriting
from local.docker_proxy.upstream import Upstream, whole
from local.engine import documents
from local.engine.addresses import AddressPool
from local.engine.http_server import Request, Response
from local.engine.polling import PollPacer

log = logging.getLogger("docker-proxy")

_VERSION = r"(?:/v1\.\d+)?"
_CREATE = re.compile(_VERSION + r"/containers/create")
_LIST = re.compile(_VERSION + r"/containers/json")
_INSPECT = re.compile(_VERSION + r"/containers/(?P<name>[^/]+)/json")
_START = re.compile(_VERSION + r"/containers/(?P<name>[^/]+)/start")
_REMOVE = re.compile(_VERSION + r"/containers/(?P<name>[^/]+)")


@dataclass
class _Container:
    """What the proxy knows of a container that was created through it."""

    address: str
    pacer: PollPacer = field(default_factory=PollPacer)
    exit: asyncio.Task[None] | None = None
    """Under way while it runs."""


class Proxy:
    """Answers the emulator. `cloud` marks its containers, `caller_name` is the name it looks itself up under."""

    def __init__(self, upstream: Upstream, addresses: AddressPool, *, cloud: str, caller_name: str) -> None:
        self._upstream, self._pool = upstream, addresses
        self._cloud, self._caller_name = cloud, caller_name
        self._containers: dict[str, _Container] = {}  # by id

    async def handle(self, request: Request) -> Response:
        """Answer one request; an error of the proxy's own is Docker's `{"message": …}`."""
        try:
            return await self._answer(request)
        except rewriting.NotAContainer as error:
            return _refusal(400, str(error))
        except OSError as error:
            log.error("%s %s: %s", request.method, request.path, error)
            return _refusal(503, f"the Docker engine does not answer: {error}")

    async def _answer(self, request: Request) -> Response:
        match request.method:
            case "POST" if _CREATE.fullmatch(request.path):
                return await self._create(request)
            case "GET" if _LIST.fullmatch(request.path):
                query = rewriting.listing(request.query, self._cloud)
                return await self._upstream.send(replace(request, query=query))
            case "GET" if found := _INSPECT.fullmatch(request.path):
                return await self._inspect(request, found["name"])
            case "POST" if found := _START.fullmatch(request.path):
                return await self._start(request, found["name"])
            case "DELETE" if found := _REMOVE.fullmatch(request.path):
                return await self._remove(request, found["name"])
        return await self._upstream.send(request)

    async def _create(self, request: Request) -> Response:
        address = self._pool.take()
        created = False
        try:
            body = rewriting.container(request.body, address=address, cloud=self._cloud)
            response = await self._upstream.send(replace(request, body=body))
            answer = await whole(response)
            created = response.status == 201
        finally:
            if not created:
                self._pool.give_back(address)
        if created:
            self._containers[json.loads(answer)["Id"]] = _Container(address)
            log.info("created %s at %s", request.query.get("name", "a container"), address)
        return Response(response.status, answer, response.content_type)

    async def _inspect(self, request: Request, name: str) -> Response:
        if name == self._caller_name:
            return Response(200, json.dumps(documents.inspect_caller(name)).encode())
        container = self._containers.get(name)
        if container and container.exit and not container.exit.done():
            await container.pacer.pace()
        response = await self._upstream.send(request)
        if container is None or response.status != 200:
            return response
        answer = rewriting.inspected(await whole(response), container.address)
        return Response(200, answer, response.content_type)

    async def _start(self, request: Request, name: str) -> Response:
        response = await self._upstream.send(request)
        if response.status == 204 and (container := self._containers.get(name)):
            container.exit = asyncio.create_task(self._await_exit(name, container))
        return response

    async def _await_exit(self, name: str, container: _Container) -> None:
        with contextlib.suppress(OSError):  # then a poller waits for as long as the pacer lets it, no longer
            await whole(await self._upstream.send(Request("POST", f"/containers/{name}/wait", {}, {}, b"")))
        container.pacer.release()

    async def _remove(self, request: Request, name: str) -> Response:
        response = await self._upstream.send(request)
        if response.status == 204 and (container := self._containers.pop(name, None)):
            self._pool.give_back(container.address)
        return response


def _refusal(status: int, message: str) -> Response:
    return Response(status, json.dumps({"message": message}).encode())
