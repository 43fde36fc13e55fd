"""The Docker Engine HTTP API, in the part that the `docker` Python client needs to run and watch a container.

Runs in the engine process; turns requests into calls of the engine and its refusals into Docker's status
codes. Source: Docker Engine API v1.44 reference, section Containers.
"""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from local.engine import documents
from local.engine.containers import Conflict, Container, Engine, InvalidRequest, NotFound, NotModified
from local.engine.delivery import DeliveryPacer
from local.engine.http_server import Request, Response
from local.engine.launcher import LaunchFailed
from local.engine.logs import LogBuffer, Stream, encode_frame

log = logging.getLogger("task-engine")

_STATUS: Mapping[type[Exception], int] = {
    NotModified: 304,
    InvalidRequest: 400,
    NotFound: 404,
    Conflict: 409,
    LaunchFailed: 500,
}
_LOCAL_HOSTS = {"127.0.0.1", "localhost"}
_DEFAULT_STOP_SECONDS = 10.0
_RAW_STREAM = "application/vnd.docker.multiplexed-stream"
# Asked for, these would silently not be there: the one entry point runs as this user, in this file system.
_UNSUPPORTED = {
    "Entrypoint": "every image has the engine's one entry point; use Cmd",
    "Tty": "output comes through pipes",
    "User": "containers run as the engine's user",
    "WorkingDir": "containers run in the engine's directory",
    "HostConfig.Binds": "containers see the machine's own files",
    "HostConfig.Privileged": "containers are plain processes",
    "HostConfig.PortBindings": "each container has its own address: use network mode awsvpc",
}

Route = Callable[[Request, str], Awaitable[Response]]


def _json(status: int, document: object) -> Response:
    return Response(status, json.dumps(document, separators=(",", ":")).encode())


def _refusal(status: int, message: str) -> Response:
    return _json(status, {"message": message})


def _flag(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """A boolean the way Docker reads it (httputils.BoolValue); docker-py writes 1, 0, True and False."""
    if name not in query:
        return default
    return query[name].strip().lower() not in {"", "0", "no", "false", "none"}


class Api:
    """Answers requests. `caller_name` is the container name under which the emulator looks itself up."""

    def __init__(self, engine: Engine, caller_name: str | None) -> None:
        self._engine = engine
        self._caller_name = caller_name
        self._delivery = DeliveryPacer()
        reference = r"/containers/(?P<name>[^/]+)"
        routes: list[tuple[str, str, Route]] = [
            ("GET", r"/_ping", self._ping),
            ("HEAD", r"/_ping", self._ping),
            ("GET", r"/version", self._version),
            ("GET", r"/images/(?P<name>.+)/json", self._image),
            ("GET", r"/containers/json", self._list),
            ("POST", r"/containers/create", self._create),
            ("GET", reference + "/json", self._inspect),
            ("GET", reference + "/logs", self._logs),
            ("POST", reference + "/start", self._start),
            ("POST", reference + "/wait", self._wait),
            ("POST", reference + "/stop", self._stop),
            ("POST", reference + "/kill", self._kill),
            ("DELETE", reference, self._remove),
        ]
        self._routes = [
            (method, re.compile(r"(?:/v1\.\d+)?" + pattern), route) for method, pattern, route in routes
        ]

    async def handle(self, request: Request) -> Response:
        """Answer one request; an error is Docker's `{"message": …}`."""
        # A web page must not start processes here, neither by a form nor by pointing its own name at
        # 127.0.0.1.
        if request.headers.get("host", "").partition(":")[0] not in _LOCAL_HOSTS:
            return _refusal(403, "only requests to 127.0.0.1 or localhost are answered")
        for method, pattern, route in self._routes:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                try:
                    return await route(request, match.groupdict().get("name") or "")
                except tuple(_STATUS) as refusal:
                    return _refusal(_STATUS[type(refusal)], str(refusal))
        return _refusal(404, f"{request.method} {request.path} is not a part of this engine's API")

    async def _ping(self, _request: Request, _name: str) -> Response:
        return Response(200, b"OK", "text/plain")

    async def _version(self, _request: Request, _name: str) -> Response:
        return _json(200, documents.version())

    async def _image(self, _request: Request, name: str) -> Response:
        return _json(200, documents.image(name))

    async def _create(self, request: Request, _name: str) -> Response:
        spec = parse_spec(request)
        container = self._engine.create(name=request.query.get("name"), **spec)
        return _json(201, {"Id": container.id, "Warnings": []})

    async def _start(self, _request: Request, name: str) -> Response:
        await self._engine.start(self._engine.find(name))
        return Response(204)

    async def _inspect(self, _request: Request, name: str) -> Response:
        if name == self._caller_name:
            return _json(200, documents.inspect_caller(name))
        container = self._engine.find(name)
        if container.status == "running":
            await container.pacer.pace()
        return _json(200, documents.inspect(container))

    async def _list(self, request: Request, _name: str) -> Response:
        accept = parse_filters(request.query)
        return _json(200, [documents.listed(container) for container in self._engine.select(accept)])

    async def _logs(self, request: Request, name: str) -> Response:
        container, query = self._engine.find(name), request.query
        if refused := [k for k in ("since", "until", "timestamps") if _flag(query, k)]:
            raise InvalidRequest(f"logs: {', '.join(refused)} not supported")
        streams = {
            s for s, key in ((Stream.STDOUT, "stdout"), (Stream.STDERR, "stderr")) if _flag(query, key)
        }
        if not streams:
            raise InvalidRequest("Bad parameters: you must choose at least one stream")
        tail_text = query.get("tail", "all")
        tail = int(tail_text) if tail_text.isdecimal() else None
        follow = _flag(query, "follow") and container.status != "exited"
        return Response(
            200, content_type=_RAW_STREAM, stream=self._frames(container.logs, streams, tail, follow=follow)
        )

    async def _frames(
        self, logs: LogBuffer, streams: set[Stream], tail: int | None, *, follow: bool
    ) -> AsyncGenerator[bytes, None]:
        """Docker's frames, one line each: MiniStack takes a chunk for a whole log event."""
        if not follow:
            lines, _ = logs.read()
            for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
                if line.stream in streams:
                    yield encode_frame(line)
            return
        async for line in logs.follow(tail):
            if line.stream in streams:
                await self._delivery.turn(line.text)
                yield encode_frame(line)

    async def _wait(self, request: Request, name: str) -> Response:
        container = self._engine.find(name)
        match request.query.get("condition", "not-running"):
            case "not-running":
                if container.status == "running":
                    await container.exited.wait()
            case "next-exit":
                await container.exited.wait()
            case "removed":
                await container.removed.wait()
            case other:
                raise InvalidRequest(f'invalid condition: "{other}"')
        return _json(200, {"StatusCode": container.exit_code, "Error": None})

    async def _stop(self, request: Request, name: str) -> Response:
        try:
            seconds = float(request.query.get("t", _DEFAULT_STOP_SECONDS))
        except ValueError:
            raise InvalidRequest(f"stop: t must be a number of seconds, not {request.query['t']!r}") from None
        await self._engine.stop(self._engine.find(name), seconds)
        return Response(204)

    async def _kill(self, request: Request, name: str) -> Response:
        self._engine.kill(self._engine.find(name), parse_signal(request.query.get("signal", "SIGKILL")))
        return Response(204)

    async def _remove(self, request: Request, name: str) -> Response:
        await self._engine.remove(self._engine.find(name), force=_flag(request.query, "force"))
        return Response(204)


def parse_spec(request: Request) -> dict[str, Any]:
    """Image, command, environment, labels of a create request. Raises `InvalidRequest`, naming all wrongs."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise InvalidRequest("containers/create takes application/json")
    try:
        body = json.loads(request.body)
    except ValueError as error:
        raise InvalidRequest(f"invalid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("invalid JSON: a container is an object")
    problems = []
    for option, reason in _UNSUPPORTED.items():
        section, _, key = option.rpartition(".")
        if ((body.get(section) or {}) if section else body).get(key):
            problems.append(f"{option} is not supported: {reason}")
    command, entries, labels = body.get("Cmd") or [], body.get("Env") or [], body.get("Labels") or {}
    if not isinstance(body.get("Image"), str) or not body["Image"]:
        problems.append("Image must be a name")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        problems.append("Cmd must be a list of strings")
    if not isinstance(entries, list) or not all(
        isinstance(entry, str) and "=" in entry[1:] for entry in entries
    ):
        problems.append("Env must be a list of NAME=value")
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        problems.append("Labels must be an object of strings")
    if problems:
        raise InvalidRequest("; ".join(problems))
    environment = dict(entry.split("=", 1) for entry in entries)
    return {"image": body["Image"], "command": command, "environment": environment, "labels": labels}


def parse_filters(query: Mapping[str, str]) -> Callable[[Container], bool]:
    """What a list request accepts: `all`, and filters label (key or key=value), name, id, status.

    Several labels must all match; of several names, ids or states one must. Raises `InvalidRequest`.
    """
    try:
        filters = json.loads(query.get("filters") or "{}")
        wanted = {key: list(values) for key, values in filters.items()}  # old clients send {"value": true}
    except (ValueError, AttributeError, TypeError):
        raise InvalidRequest("filters must be a JSON object of lists") from None
    if unknown := wanted.keys() - {"label", "name", "id", "status"}:
        raise InvalidRequest(f"invalid filter: {', '.join(sorted(unknown))}")
    show_all = _flag(query, "all") or "status" in wanted

    def accept(container: Container) -> bool:
        labels = {*container.labels, *(f"{key}={value}" for key, value in container.labels.items())}
        return (
            (show_all or container.status == "running")
            and labels.issuperset(wanted.get("label", []))
            and any(part in container.name for part in wanted.get("name", [""]))
            and any(container.id.startswith(part) for part in wanted.get("id", [""]))
            and container.status in wanted.get("status", [container.status])
        )

    return accept


def parse_signal(text: str) -> int:
    """A signal by number or name, with or without SIG. Raises `InvalidRequest`."""
    try:
        if text.isdecimal():
            return signal.Signals(int(text))
        return signal.Signals["SIG" + text.upper().removeprefix("SIG")]
    except (ValueError, KeyError):
        raise InvalidRequest(f"Invalid signal: {text}") from None
