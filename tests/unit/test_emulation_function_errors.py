"""The embedded cloud tells a function's error by the name of its class, as Lambda does."""

import json
import traceback

import pytest
from ministack.services import stepfunctions as interpreter

from contract.errors import StudyFailed
from local.emulation.function_errors import naming_errors, naming_throttles, raised


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


def test_a_throttled_call_has_the_name_that_states_retry() -> None:
    throttled = json.dumps(
        {"__type": "TooManyRequestsException", "Reason": "ConcurrentInvocationLimitExceeded"}
    )

    def call(cause: str) -> None:
        raise interpreter._ExecutionError("Lambda.Unknown", cause)

    with pytest.raises(interpreter._ExecutionError, match=r"^Lambda\.TooManyRequestsException: "):
        naming_throttles(call)(throttled)
    for cause in ("out of memory", '{"__type": "ServiceException"}', "[]"):
        with pytest.raises(interpreter._ExecutionError, match=r"^Lambda\.Unknown: "):
            naming_throttles(call)(cause)
    assert naming_throttles(lambda: "answer")() == "answer"
