"""Errors of functions under their own names, where MiniStack calls them all `Runtime.HandlerError`.

Source: Lambda Developer Guide, handling errors in Python functions: `errorType` is the name of the exception's class.
Step Functions takes it for the error's name, by which states retry and catch.
"""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from ministack.services import lambda_svc

_UNNAMED = "Runtime.HandlerError"
_RAISED = re.compile(r"^(?:\w+\.)*(\w+)(?=:|$)", re.MULTILINE)
"""The line of a traceback that names the exception: the first one that is not indented."""


def install() -> None:
    """Have MiniStack answer with the names of errors."""
    lambda_svc._execute_function_warm = naming_errors(lambda_svc._execute_function_warm)


def naming_errors(execute: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Take the name from the traceback, which is in the log."""

    @wraps(execute)
    def execute_function(*arguments: Any, **options: Any) -> dict[str, Any]:
        result = execute(*arguments, **options)
        body = result.get("body")
        if result.get("error") and isinstance(body, dict) and body.get("errorType") == _UNNAMED:
            name = raised(str(result.get("log", "")))
            return {**result, "body": {**body, "errorType": name or _UNNAMED}}
        return result

    return execute_function


def raised(log: str) -> str | None:
    """The name of the exception that the last traceback in a log ends with."""
    _, traceback, lines = log.rpartition("Traceback (most recent call last):\n")
    found = _RAISED.search(lines) if traceback else None
    return found[1] if found else None
