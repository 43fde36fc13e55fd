"""The embedded cloud tells a function's error by the name of its class, as Lambda does."""

import traceback

import pytest

from contract.errors import StudyFailed
from local.emulation.function_errors import naming_errors, raised


def traceback_of(error: Exception, cause: Exception | None = None) -> str:
    try:
        raise error from cause
    except Exception:  # noqa: BLE001 - whatever it is
        return traceback.format_exc()


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (StudyFailed("1 of 2 experiments failed"), "StudyFailed"),
        (KeyError("status"), "KeyError"),
        (ValueError(), "ValueError"),
        (ValueError("several\nlines: of it"), "ValueError"),
    ],
)
def test_the_name_is_that_of_the_class(error: Exception, name: str) -> None:
    assert raised(f"some line\nOther: line\n{traceback_of(error)}") == name
    assert raised(traceback_of(error, cause=RuntimeError("before"))) == name


def test_an_error_without_a_traceback_keeps_its_name() -> None:
    assert raised("Worker exited") is None
    answer = {"error": True, "body": {"errorType": "Runtime.HandlerError", "errorMessage": "gone"}, "log": ""}
    assert naming_errors(lambda: answer)() == answer


def test_only_unnamed_errors_are_named() -> None:
    log = traceback_of(StudyFailed("why"))
    body = {"errorType": "Runtime.HandlerError", "errorMessage": "why"}
    named = naming_errors(lambda: {"error": True, "body": body, "log": log})()
    assert named["body"] == {"errorType": "StudyFailed", "errorMessage": "why"}
    for answer in (
        {"error": True, "body": {**body, "errorType": "Sandbox.Timedout"}, "log": log},
        {"body": {"errorType": "Runtime.HandlerError"}, "log": log},
        {"body": "text", "log": log},
    ):
        assert naming_errors(lambda answer=answer: answer)() == answer
