"""Hypothesis strategies for metric records, read off the fields of each kind."""

from datetime import UTC
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import AwareDatetime
from pydantic.fields import FieldInfo

from contract.metrics import (
    MetricRecord,
    Record,
    ServerInterval,
    ServerSummary,
    TaskFailed,
    TaskStarted,
    WorkerEpoch,
    WorkerSummary,
)

KINDS: tuple[type[Record], ...] = (
    TaskStarted,
    WorkerEpoch,
    WorkerSummary,
    ServerInterval,
    ServerSummary,
    TaskFailed,
)
LINE_ENDS = st.sampled_from(
    ["\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\x00", "é", "🙂", '"', "\\"]
)
TEXT_CHARACTERS = st.characters(exclude_categories=["Cs"]) | LINE_ENDS


def records(*kinds: type[Record]) -> st.SearchStrategy[MetricRecord]:
    """Records of these kinds (default: of all), with any values that their fields take."""
    return st.one_of(*(_built(kind) for kind in kinds or KINDS))


def _built(kind: type[Record]) -> st.SearchStrategy[Any]:
    fields = {
        name: _values(field.annotation, _limits(field.metadata)) for name, field in kind.model_fields.items()
    }
    return st.builds(kind, **fields)


def _limits(metadata: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in metadata:
        inner = part.metadata if isinstance(part, FieldInfo) else [part]
        for limit in inner:
            names = ("ge", "le", "lt", "min_length", "max_length")
            found |= {name: getattr(limit, name) for name in names if hasattr(limit, name)}
    return found


def _values(annotation: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one per type
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0], limits | _limits(list(arguments[1:])))
    if origin in {UnionType, Union}:
        return st.one_of(*(_values(argument, limits) for argument in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is dict:
        return st.dictionaries(_values(arguments[0], {}), _values(arguments[1], {}), max_size=5)
    if origin is list:
        return st.lists(_values(arguments[0], {}), max_size=5)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    if annotation is type(None):
        return st.none()
    if annotation is int:
        return st.integers(limits["ge"], limits.get("lt", 2**63) - 1)
    if annotation is float:
        return st.floats(limits["ge"], limits["le"], allow_nan=False)
    if annotation is str:
        return st.text(TEXT_CHARACTERS, min_size=limits.get("min_length", 0), max_size=20)
    if annotation is AwareDatetime:
        return st.datetimes(timezones=st.just(UTC))
    raise TypeError(f"no values for {annotation}")
