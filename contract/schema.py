"""JSON Schema of the study document (draft 2020-12), so that editors complete and check it.

`python -m contract.schema` writes docs/study.schema.json; with `--check` it fails where that file is stale.
What takes the whole expanded study to tell (names used twice, too many experiments, what its modes need), and what
one section says against another, is not in it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from contract.catalogue import AUGMENTED, MODELS_FOR, STORED, Dataset
from contract.compute import COMPUTE_RULES, Compute
from contract.document import belonging_schema
from contract.exchange import EXCHANGE_RULES, Exchange
from contract.fargate import FARGATE_MEMORY
from contract.study import Study
from contract.training import TRAINING_RULES, Training

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
FILE: Final = Path("docs", "study.schema.json")
ROOT: Final = Path(__file__).resolve().parent.parent


class _Untitled(GenerateJsonSchema):
    """Fields have descriptions; titles made of their names would say nothing more."""

    def field_title_should_be_set(self, schema: core_schema.CoreSchema | Any) -> bool:  # noqa: ARG002 - pydantic's
        return False


def study_schema() -> dict[str, Any]:
    """The schema: fields as pydantic knows them, and the rules between fields."""
    schema = Study.model_json_schema(schema_generator=_Untitled)
    schema["$defs"]["TaskSize"]["anyOf"] = [
        {"properties": {"cpu": {"const": cpu}, "memory": {"enum": list(sizes)}}}
        for cpu, sizes in FARGATE_MEMORY.items()
    ]
    schema["$defs"]["Training"]["allOf"] = [
        *_what_fits_datasets(),
        *belonging_schema(Training, TRAINING_RULES),
    ]
    schema["$defs"]["Training"]["allOf"] += [_ADAM_SAYS_ITS_RATE]
    schema["$defs"]["Compute"]["allOf"] = [*belonging_schema(Compute, COMPUTE_RULES), _REAL_HAS_NO_STRAGGLER]
    schema["$defs"]["Exchange"]["allOf"] = belonging_schema(Exchange, EXCHANGE_RULES)
    return {
        "$schema": DIALECT,
        **schema,
        "if": {"properties": {"experiments": {"type": "array"}}, "required": ["experiments"]},
        "then": {"properties": {"preset": False, "matrix": False, "seeds": False}},
    }


_ADAM_SAYS_ITS_RATE: Final = {
    "if": {"properties": {"optimizer": {"const": "adam"}}, "required": ["optimizer"]},
    "then": {"required": ["learning_rate"]},
}
_REAL_HAS_NO_STRAGGLER: Final = {
    "if": {"properties": {"mode": {"const": "real"}}},
    "then": {"properties": {"stragglers": {"maxItems": 0}}},
}


def _what_fits_datasets() -> list[dict[str, Any]]:
    return [
        {
            # Where the key is absent, the rule of the default dataset holds.
            "if": {
                "properties": {"dataset": {"const": dataset}},
                "required": [] if dataset is Training().dataset else ["dataset"],
            },
            "then": _rule(dataset),
        }
        for dataset in Dataset
    ]


def _rule(dataset: Dataset) -> dict[str, Any]:
    """What the other fields may be beside a dataset."""
    properties: dict[str, Any] = {"model": {"enum": [*MODELS_FOR[dataset], None]}}
    if dataset not in STORED:
        properties["data"] = {"const": None}
    if dataset not in AUGMENTED:
        properties["augment"] = {"const": False}
    return {"properties": properties}


def text() -> str:
    """What the file says."""
    return json.dumps(study_schema(), indent=2) + "\n"


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Write the file below `root`, or check it. Returns the exit status."""
    file = root / FILE
    if "--check" in arguments:
        if file.exists() and file.read_text(encoding="utf-8") == text():
            return 0
        sys.stderr.write(f"{FILE} is stale; run: python -m contract.schema\n")
        return 1
    file.parent.mkdir(exist_ok=True)
    file.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
