"""Lines of a refusal: where, what, how to fix it."""

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.errors import MAX_LINE_CHARACTERS, LockstepError, MetricLineRefused, Refused, StudyRefused
from contract.problems import path_of, problems_of


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    height: int = 0
    width: int = 0
    schema_location: str = Field("", alias="$schema", exclude=True)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    one: Inner = Inner()
    some: list[Inner] | None = None
    label: str = ""
    inside: Inner = Field(Inner(), alias="in")


def problems(document: object) -> list[str]:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(document)
    return problems_of(error.value, Outer)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ((), "document"),
        (("matrix",), "matrix"),
        (("matrix", "workers", 0), "matrix.workers[0]"),
        (("experiments", 2, "mode"), "experiments[2].mode"),
        ((0, "mode"), "[0].mode"),
    ],
)
def test_a_location_reads_like_a_path(location: tuple[int | str, ...], path: str) -> None:
    assert path_of(location) == path


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ({"lable": ""}, ["lable: unknown key; did you mean 'label'?"]),
        ({"one": {"heihgt": 1}}, ["one.heihgt: unknown key; did you mean 'height'?"]),
        ({"some": [{}, {"widht": 1}]}, ["some[1].widht: unknown key; did you mean 'width'?"]),
        ({"one": {"colour": 1}}, ["one.colour: unknown key; known keys: height, width, $schema"]),
        ({"one": {"schema": ""}}, ["one.schema: unknown key; did you mean '$schema'?"]),
        (
            {"one": {"schema_location": ""}},
            ["one.schema_location: unknown key; known keys: height, width, $schema"],
        ),
        ({"in": {"widht": 1}}, ["in.widht: unknown key; did you mean 'width'?"]),
        ({"label": 3}, ["label: must be a valid string, not 3"]),
        ({"label": list(range(9))}, ["label: must be a valid string, not [0, 1, 2, 3, 4, 5, ...]"]),
        ({"label": [["x" * 60]]}, [f"label: must be a valid string, not [['{'x' * 27}...{'x' * 24}..."]),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one_where_it_stands(
    document: object, lines: list[str]
) -> None:
    assert problems(document) == lines


def test_a_refusal_is_an_error_for_the_user_and_says_of_what() -> None:
    refusal = StudyRefused(["name: missing", "seeds: must not be empty"])
    assert isinstance(refusal, LockstepError)
    assert str(refusal) == "study refused: 2 problems\n  - name: missing\n  - seeds: must not be empty"
    assert str(MetricLineRefused(["x"])) == "metric line refused: 1 problem\n  - x"


def test_a_long_line_is_cut() -> None:
    (problem,) = Refused(["x" * 10_000]).problems
    assert len(problem) == MAX_LINE_CHARACTERS
    assert problem.endswith("x…")
