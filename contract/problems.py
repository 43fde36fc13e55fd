"""Turn pydantic's errors into lines a person can act on: where, what, how to fix it.

Imported by every reader of outside input. Pure.
"""

import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_BRIEF = reprlib.Repr()
"""Shows a value without walking all of it: input may be huge, or nested deeper than repr can follow."""
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 3, 60, 60


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each error of `error` as one line; unknown keys get the nearest known key as a suggestion."""
    return [_line(detail, model) for detail in error.errors(include_url=False)]


def _line(detail: ErrorDetails, model: type[BaseModel]) -> str:
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(model, detail["loc"][:-1])
            near = get_close_matches(str(detail["loc"][-1]), known, n=1)
            says = "unknown key; "
            says += f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        case "missing":
            says = "missing"
        case "value_error":
            says = str(detail["ctx"]["error"])
        case "too_short":
            says = "must not be empty"
        case "model_type":
            says = f"must be an object, not {_shown(given)}"
        case "string_pattern_mismatch":
            says = f"must match {detail['ctx']['pattern']}, not {_shown(given)}"
        case _:
            says = f"{_sentence(detail['msg'])}, not {_shown(given)}"
    return f"{path_of(detail['loc'])}: {says}"


def path_of(location: Iterable[int | str]) -> str:
    """('matrix', 'workers', 0) → 'matrix.workers[0]'."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    return path or "document"


def _sentence(message: str) -> str:
    return message.replace("Input should be", "must be")


def _shown(value: object) -> str:
    text = _BRIEF.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that the (nested) model at `location` takes."""
    current: type[BaseModel] = model
    for part in location:
        if isinstance(part, int):
            continue
        field = _fields_by_key(current).get(part)
        nested = _model_in(field.annotation) if field else None
        if nested is None:
            return []
        current = nested
    return list(_fields_by_key(current))


def _fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by what they are called in a document, which an alias may set apart from their name here."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None
