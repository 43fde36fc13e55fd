"""Reading the state machine in tests: its machines within machines, its states, its expressions."""

from collections.abc import Iterator
from typing import Any

from jsonata import Jsonata  # type: ignore[import-untyped]  # it has no types

import statemachine

SUBSTITUTIONS = {name: f"<{name}>" for name in statemachine.placeholders()} | {"Subnets": "subnet-1,subnet-2"}

Machine = dict[str, Any]


def machines(machine: Machine, name: str = "study") -> Iterator[tuple[str, Machine]]:
    """The machine itself and those inside its states."""
    yield name, machine
    for state_name, state in machine["States"].items():
        for inner in [
            *state.get("Branches", []),
            *([state["ItemProcessor"]] if "ItemProcessor" in state else []),
        ]:
            yield from machines(inner, f"{name}/{state_name}")


def states(machine: Machine) -> dict[str, dict[str, Any]]:
    """Every state by its name, which no other has."""
    found: dict[str, dict[str, Any]] = {}
    for _, inner in machines(machine):
        assert not found.keys() & inner["States"].keys()
        found |= inner["States"]
    return found


def followers(state: dict[str, Any]) -> set[str]:
    """Names of the states that may come next."""
    catchers = [catcher["Next"] for catcher in state.get("Catch", [])]
    choices = [choice["Next"] for choice in state.get("Choices", [])]
    return {*catchers, *choices, *(state[key] for key in ("Next", "Default") if key in state)}


def ends(state: dict[str, Any]) -> bool:
    """Whether its machine may end with it."""
    return bool(state.get("End")) or state["Type"] in {"Succeed", "Fail"}


def expressions(value: object) -> Iterator[str]:
    """The JSONata in a field, however deep."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str) and value.startswith("{%"):
        assert value.endswith("%}")
        yield value[2:-2].strip()


def evaluated(value: Any, **variables: Any) -> Any:
    """A field of a state with every expression in it evaluated."""
    if isinstance(value, dict):
        return {key: evaluated(inner, **variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [evaluated(inner, **variables) for inner in value]
    if isinstance(value, str) and value.startswith("{%"):
        (expression,) = expressions(value)
        compiled = Jsonata(expression)
        for name, given in variables.items():
            compiled.assign(name, given)
        return compiled.evaluate(None)
    return value
