"""Step Functions as documented, where MiniStack's interpreter of state machines in JSONata does otherwise.

Wraps functions of MiniStack's module, each of them for one documented behaviour, which `install` lists.
"""

import contextvars
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from functools import wraps
from typing import Any

from ministack.services import stepfunctions as interpreter

State = Mapping[str, Any]
Context = dict[str, Any]
Execution = dict[str, Any]
Step = tuple[Any, str | None]
"""Output of a state, and the name of the next one; None at the end."""

RUN_TASK_SYNC = "arn:aws:states:::ecs:runTask.sync"


def install() -> None:
    """Put all of it in place, before MiniStack serves anybody."""
    interpreter._execute_task = with_its_timeout(within_its_lifetime(interpreter._execute_task))
    interpreter._invoke_resource = failing_by_exit_code(interpreter._invoke_resource)
    interpreter._poll_ecs_tasks = as_long_as_it_takes(interpreter._poll_ecs_tasks)
    interpreter._run_distributed_map = with_expressions(interpreter._run_distributed_map)
    interpreter._run_map_items = ending_together(interpreter._run_map_items)
    interpreter._run_parallel_branches = ending_together(interpreter._run_parallel_branches)
    interpreter._run_sub_machine = telling_of_failure(interpreter._run_sub_machine)


def with_its_timeout(execute_task: Callable[..., Step]) -> Callable[..., Step]:
    """TimeoutSeconds of a Task may be an expression.

    Source: Step Functions Developer Guide, Task state fields.
    """

    @wraps(execute_task)
    def execute(state: State, given: Any, execution: Execution, context: Context) -> Step:
        if isinstance(state.get("TimeoutSeconds"), str):
            seconds = interpreter._jsonata_state_field(state, "TimeoutSeconds", "number", given, context)
            state = {**state, "TimeoutSeconds": seconds}
        return execute_task(state, given, execution, context)

    return execute


def failing_by_exit_code(invoke: Callable[..., Any]) -> Callable[..., Any]:
    """`ecs:runTask.sync` fails with ECS's description of the task where a container did not exit with 0.

    Source: Step Functions Developer Guide, integrating optimized services, Run a Job; and Amazon ECS: failures are
    `AmazonECS.Unknown`. The names of errors and the shape of the cause are those that users of AWS report.
    """

    @wraps(invoke)
    def invoke_resource(resource: str, arguments: Any) -> Any:
        result = invoke(resource, arguments)
        if resource != RUN_TASK_SYNC:
            return result
        if result.get("failures"):
            raise interpreter._ExecutionError("AmazonECS.Unknown", _json(pascal_case(result["failures"])))
        task = pascal_case(result["tasks"][0])
        if all(container.get("ExitCode") == 0 for container in task["Containers"]):
            return task
        not_started = task.get("StopCode") == "TaskFailedToStart"
        error = "ECS.TaskFailedToStartException" if not_started else "States.TaskFailed"
        raise interpreter._ExecutionError(error, _json(task))

    return invoke_resource


def as_long_as_it_takes(poll: Callable[..., Any]) -> Callable[..., Any]:
    """`.sync` waits as long as the task runs; only the state's TimeoutSeconds ends that."""

    @wraps(poll)
    def wait(cluster: str, tasks: list[str]) -> Any:
        while True:
            try:
                return poll(cluster, tasks)
            except interpreter._ExecutionError as error:
                if error.error != "States.Timeout":
                    raise

    return wait


def with_expressions(run: Callable[..., Step]) -> Callable[..., Step]:
    """A Distributed Map evaluates Items, MaxConcurrency and Output; its items see none of the variables around it.

    Source: Step Functions Developer Guide, Map state in Distributed mode; passing data with variables, scope.
    """

    @wraps(run)
    def run_distributed(  # noqa: PLR0917 - MiniStack's signature
        state: State, given: Any, effective: Any, processor: State, execution: Execution, context: Context
    ) -> Step:
        if interpreter._state_query_language(state, context) != "JSONata":
            return run(state, given, effective, processor, execution, context)
        evaluated = {
            field: interpreter._jsonata_state_field(state, field, "number", given, context)
            for field in ("MaxConcurrency", "ToleratedFailureCount", "ToleratedFailurePercentage")
            if field in state
        }
        items = interpreter._jsonata_state_field(state, "Items", "array", given, context)
        outside = {**context, "Execution": {}, "variables": {}}
        _lifetime.set(None)  # a child fails alone
        results, following = run({**state, **evaluated}, given, items, processor, execution, outside)
        output = interpreter._apply_jsonata_output(state, given, context, result=results, default=results)
        interpreter._apply_state_assign(state, given, context, result=results)
        return output, following

    return run_distributed


class _Lifetime:
    """What the branches of a Parallel state, or the items of an inline Map, share: the first error ends them all."""

    def __init__(self, around: "_Lifetime | None") -> None:
        self._around = around
        self.error: Exception | None = None
        self.decided = threading.Event()

    def fail(self, error: Exception) -> None:
        """Take note of an error; the first one counts."""
        if self.error is None:
            self.error = error
        self.decided.set()

    @property
    def over(self) -> bool:
        """Whether it, or what it is part of, has failed."""
        return self.error is not None or (self._around is not None and self._around.over)


class _Over(Exception):
    """A state is not begun: what it is part of has failed."""


_lifetime: ContextVar[_Lifetime | None] = ContextVar("lifetime", default=None)


def ending_together(run: Callable[..., Step]) -> Callable[..., Step]:
    """A Parallel state or an inline Map fails at once when a branch or an item does; the others go no further.

    Source: Amazon States Language, Parallel State and Map State. A task that one of them waits for runs on: AWS
    cancels it by best effort, and here nobody does. So Lockstep's own clean-up is what a test sees.
    """

    @wraps(run)
    def run_together(state: State, given: Any, execution: Execution, context: Context) -> Step:
        lifetime = _Lifetime(_lifetime.get())
        outcome: Future[Step] = Future()

        def body() -> None:
            _lifetime.set(lifetime)
            try:
                outcome.set_result(run(state, given, execution, context))
            except Exception as error:  # noqa: BLE001 - handed on below
                outcome.set_exception(error)
            lifetime.decided.set()

        threading.Thread(target=contextvars.copy_context().run, args=(body,), daemon=True).start()
        lifetime.decided.wait()
        if lifetime.error is not None:
            raise lifetime.error
        return outcome.result()

    return run_together


def telling_of_failure(run: Callable[..., Any]) -> Callable[..., Any]:
    """The part of `ending_together` that a branch or an item plays which fails."""

    @wraps(run)
    def run_sub_machine(
        states: Mapping[str, State], start_at: str, given: Any, execution: Execution, context: Context
    ) -> Any:
        try:
            return run(states, start_at, given, execution, context)
        except Exception as error:
            # Also a mistake of the emulator's own: the others would wait for what never comes.
            if (lifetime := _lifetime.get()) is not None:
                lifetime.fail(error)
            raise

    return run_sub_machine


def within_its_lifetime(execute_task: Callable[..., Step]) -> Callable[..., Step]:
    """The part of `ending_together` that a branch or an item plays which goes no further."""

    @wraps(execute_task)
    def execute(state: State, given: Any, execution: Execution, context: Context) -> Step:
        if (lifetime := _lifetime.get()) is not None and lifetime.over:
            raise _Over
        return execute_task(state, given, execution, context)

    return execute


def pascal_case(value: Any) -> Any:
    """ECS's names of fields as Step Functions writes them: `exitCode` is `ExitCode`."""
    if isinstance(value, list):
        return [pascal_case(item) for item in value]
    if isinstance(value, dict):
        return {f"{key[:1].upper()}{key[1:]}": pascal_case(item) for key, item in value.items()}
    return value


def _json(value: Any) -> str:
    """As the causes of AWS: keys in the order of letters, and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
