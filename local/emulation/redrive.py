"""Redriving a failed execution, which MiniStack's Step Functions does not know.

Source: Step Functions Developer Guide, restarting state machine executions with redrive. The state that failed runs
again with the same input, and `Execution.RedriveCount` is in the context object from then on. Variables of the first
attempt are lost here. What was ABORTED is refused: its states run on in MiniStack.
"""

import contextvars
import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from ministack.services import stepfunctions as interpreter


def install() -> None:
    """Have MiniStack answer the API action RedriveExecution."""
    interpreter.handle_request = with_redrive(interpreter.handle_request)


def with_redrive(handle: Callable[..., Any]) -> Callable[..., Any]:
    """RedriveExecution beside the actions that MiniStack knows."""

    @wraps(handle)
    async def handle_request(
        method: str, path: str, headers: Mapping[str, str], body: bytes, query: Any
    ) -> Any:
        if headers.get("x-amz-target", "").endswith(".RedriveExecution"):
            return interpreter._finalize_response(redrive(json.loads(body)["executionArn"]))
        return await handle(method, path, headers, body, query)

    return handle_request


def redrive(execution_arn: str) -> Any:
    """Start a failed execution again at the state that failed; MiniStack's form of a response."""
    execution = interpreter._executions.get(execution_arn)
    if execution is None:
        return interpreter.error_response_json("ExecutionDoesNotExist", f"no execution {execution_arn}", 400)
    entered = next((e for e in reversed(execution["events"]) if e["type"].endswith("StateEntered")), None)
    if execution["status"] != "FAILED" or entered is None:
        return interpreter.error_response_json(
            "ExecutionNotRedrivable", f"the execution is {execution['status']}", 400
        )
    count = execution.get("redriveCount", 0) + 1
    execution.update(status="RUNNING", stopDate=None, error=None, cause=None, output=None, redriveCount=count)
    interpreter._add_event(
        execution, "ExecutionRedriven", {"executionRedrivenEventDetails": {"redriveCount": count}}
    )
    interpreter._emit_execution_status_event(execution)
    details = entered["stateEnteredEventDetails"]
    threading.Thread(
        target=contextvars.copy_context().run,
        args=(_go_on, execution, details["name"], json.loads(details["input"])),
        daemon=True,
    ).start()
    return interpreter.json_response({"redriveDate": time.time()})


def _go_on(execution: dict[str, Any], name: str | None, given: Any) -> None:
    machine = interpreter._state_machines[execution["stateMachineArn"]]
    definition = json.loads(machine["definition"])
    context = {
        "QueryLanguage": definition.get("QueryLanguage", "JSONPath"),
        "Execution": {
            "Id": execution["executionArn"],
            "Input": json.loads(execution["input"]),
            "Name": execution["name"],
            "StartTime": execution["startDate"],
            "RedriveCount": execution["redriveCount"],
        },
        "StateMachine": {"Id": execution["stateMachineArn"], "Name": machine["name"]},
        "variables": {},
    }
    try:
        while name is not None and execution["status"] == "RUNNING":
            kind = definition["States"][name]["Type"]
            details = {"name": name, "input": json.dumps(given)}
            interpreter._add_event(execution, f"{kind}StateEntered", {"stateEnteredEventDetails": details})
            given, name = run_state(definition["States"], name, given, execution, context)
    except interpreter._ExecutionError as error:
        interpreter._fail_execution(execution, error.error, error.cause)
        return
    if execution["status"] == "RUNNING":
        execution.update(status="SUCCEEDED", output=json.dumps(given), stopDate=interpreter.now_iso())
        interpreter._add_event(
            execution, "ExecutionSucceeded", {"executionSucceededEventDetails": {"output": json.dumps(given)}}
        )
        interpreter._emit_execution_status_event(execution)


def run_state(
    states: Mapping[str, Any], name: str, given: Any, execution: dict[str, Any], context: dict[str, Any]
) -> tuple[Any, str | None]:
    """Run one state of a machine, with its retries and catchers; returns its output and the name of the next state.

    Raises MiniStack's error where none catches.
    """
    alone = _OneState(name, states[name])
    output = interpreter._run_sub_machine(alone, name, given, execution, context)
    return output, alone.following


class _OneState(dict[str, Any]):
    """A state machine of one state; whichever other one is asked for ends it and is kept in mind."""

    def __init__(self, name: str, state: Mapping[str, Any]) -> None:
        super().__init__({name: state})
        self.following: str | None = None

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - dict's signature
        """The state, or one that ends the machine with the output there was."""
        if name in self:
            return self[name]
        self.following = name
        return {"Type": "Succeed"}
