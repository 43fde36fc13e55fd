"""What the parts of the study document have in common, and the rule that ties one key to another.

Imported by every part; knows none of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, ConfigDict, Field

MAX_WORKERS: Final = 32
"""Largest number of workers of one experiment."""

MAX_SHARDS: Final = 8
"""Largest number of servers that one experiment's parameters are spread over."""

S3_SCHEME: Final = "s3://"

Location = Annotated[str, Field(pattern=r"^(/|s3://[a-z0-9.-]{3,63}(/|$))[^\x00-\x1f]*$", max_length=256)]
"""An absolute folder, or a bucket with or without a prefix."""

OnceEach = Field(min_length=1, json_schema_extra={"uniqueItems": True})


class Document(BaseModel):
    """A part of the study document: unknown keys are refused, numbers are no strings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Belonging:
    """A key that means something only beside certain choices of another key."""

    key: str
    choice: str
    """The other key; its type is a Literal."""
    choices: tuple[str, ...]
    needed: bool = False
    """These choices cannot do without the key."""

    def problem(self, section: Mapping[str, object], chosen: object, name: Callable[[str], str]) -> str:
        """What is wrong in `section`, where `chosen` was chosen; empty if nothing is."""
        given, belongs = section.get(self.key) is not None, chosen in self.choices
        if given and not belongs:
            return (
                f"{name(self.key)}: belongs to {self.choice} {' or '.join(self.choices)},"
                f" not to {chosen}; leave it out"
            )
        if belongs and self.needed and not given:
            return f"{name(self.key)}: missing; {self.choice} {chosen} needs it"
        return ""


def misplaced(
    section: object, model: type[Document], rules: Iterable[Belonging], name: Callable[[str], str]
) -> list[str]:
    """Keys of a raw section of the document that its own choices exclude or call for.

    `name` says what a key is called in a message. What is no section, or no choice, is left to validation.
    """
    if not isinstance(section, Mapping):
        return []
    problems = []
    for rule in rules:
        field = model.model_fields[rule.choice]
        chosen = section.get(rule.choice, field.default)
        if isinstance(chosen, str) and chosen in get_args(field.annotation):
            problems.append(rule.problem(section, chosen, name))
    return [problem for problem in problems if problem]


def belonging_schema(model: type[Document], rules: Iterable[Belonging]) -> list[dict[str, Any]]:
    """The same rules as JSON Schema, for the `allOf` of a section."""
    return [clause for rule in rules for clause in _clauses(model, rule)]


def _clauses(model: type[Document], rule: Belonging) -> list[dict[str, Any]]:
    field = model.model_fields[rule.choice]
    clauses = []
    for value in get_args(field.annotation):
        absent_or_null = {"properties": {rule.key: {"type": "null"}}}
        there = {"required": [rule.key], "properties": {rule.key: {"not": {"type": "null"}}}}
        if value in rule.choices and not rule.needed:
            continue
        clauses.append(
            {
                # Where the choice is absent, the rule of the default holds.
                "if": {
                    "properties": {rule.choice: {"const": value}},
                    "required": [] if value == field.default else [rule.choice],
                },
                "then": there if value in rule.choices else absent_or_null,
            }
        )
    return clauses
