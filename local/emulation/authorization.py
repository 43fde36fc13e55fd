"""Authorization: IAM is enforced, for every principal that the stack has, and every decision can be told.

Runs in the emulator's process. MiniStack's enforcement (AUTH=true) holds the requests of functions against the policies
of their roles; the modules that this one installs bring the other principals before its evaluator, and it learns here
what it does not know of requests.
"""

import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ministack import app
from ministack.core import iam_actions, iam_evaluator
from ministack.core.responses import get_account_id, get_region
from ministack.services import dynamodb

from local.emulation import integrations, invocations, role_sessions, task_roles
from local.emulation.iam_requests import Place, condition_keys, resource_of

Note = Callable[[Any, bool], None]
"""Told of a decision: MiniStack's EvalContext, and whether the request was allowed."""

WITH_DETAILS = frozenset({"ecs", "logs", "states", "dynamodb"})
"""Services of whose requests iam_requests knows more than MiniStack."""

_asked: ContextVar[list[Any] | None] = ContextVar("asked", default=None)
"""What the evaluator was asked in the course of one check."""


def install(note: Note) -> None:
    """Put all of it in place, before the emulator serves. `note` is told of each decision but those on the account."""
    _know_resources()
    _know_conditions()
    role_sessions.install()
    task_roles.install()
    integrations.install()
    invocations.install(note)
    _tell(note)


def _know_resources() -> None:
    extract = iam_actions.extract_resource_arn

    def extract_resource_arn(service: str, method: str, path: str, *rest: Any) -> Any:
        headers, body, _, region, account = rest
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        known = None
        if operation and service in WITH_DETAILS:
            try:
                place = Place(region, account)
                known = resource_of(
                    service, operation, json.loads(body), place, integrations.state_machine_of
                )
            except (LookupError, ValueError):
                known = None  # such a request the service itself refuses
        return known or extract(service, method, path, *rest)

    iam_actions.extract_resource_arn = extract_resource_arn


def _know_conditions() -> None:
    context_of, pin_origin = iam_actions.request_tag_context, app.pin_request_origin

    def request_tag_context(service: str, action: str, body: Any, params: Any) -> dict[str, Any]:
        context: dict[str, Any] = context_of(service, action, body, params)
        if service in WITH_DETAILS and body[:1] == b"{":
            place = Place(get_region(), get_account_id())
            context |= condition_keys(service, json.loads(body), place, _partition_key)
        return context

    def pin_request_origin(address: str, secure: bool) -> None:  # noqa: ARG001 - MiniStack's signature
        # The endpoint is HTTP on loopback where AWS's is HTTPS: a policy that refuses all but TLS means no loopback.
        pin_origin(address, True)

    iam_actions.request_tag_context = request_tag_context
    app.pin_request_origin = pin_request_origin


def _partition_key(table: str) -> str | None:
    found = dynamodb._tables.get(dynamodb._normalize_table_name(table))
    return found["pk_name"] if found else None


def _tell(note: Note) -> None:
    enforce, evaluate = iam_evaluator.enforce, iam_evaluator.evaluate

    def enforce_and_tell(*arguments: Any, **named: Any) -> Any:
        asked: list[Any] = []
        before = _asked.set(asked)
        try:
            denied = enforce(*arguments, **named)
        finally:
            _asked.reset(before)
        if asked:  # not of the account itself: that may do anything
            note(asked[0], denied is None)
        return denied

    def evaluate_and_keep(request: Any, *policies: Any) -> Any:
        asked = _asked.get()
        if asked is not None:
            asked.append(request)
        return evaluate(request, *policies)

    iam_evaluator.enforce = enforce_and_tell
    iam_evaluator.evaluate = evaluate_and_keep
