"""docs/study.schema.json: up to date, helpful in an editor, and of one mind with validation."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cfnlint  # type: ignore[import-untyped]  # it has no types
import pytest

# The validator that cfn-lint brings: no other is needed.
from cfnlint.jsonschema import StandardValidator  # type: ignore[import-untyped]  # it has no types

from contract.errors import StudyRefused
from contract.fargate import FARGATE_MEMORY, size_problem
from contract.schema import DIALECT, FILE, ROOT, main, study_schema
from contract.study import parse_study


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / FILE).read_text(encoding="utf-8"))
    return loaded


def is_valid(schema: dict[str, Any], document: object) -> bool:
    return not list(StandardValidator(schema=schema).iter_errors(document))


def test_the_file_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_is_told_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err == "docs/study.schema.json is stale; run: python -m contract.schema\n"
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / FILE).write_text("{}")
    assert main(["--check"], tmp_path) == 1


def test_the_schema_says_which_dialect_it_is(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == DIALECT == "https://json-schema.org/draft/2020-12/schema"
    assert schema == study_schema()


def test_every_field_is_described(schema: dict[str, Any]) -> None:
    def undescribed() -> Iterator[str]:
        for name, definition in {"Study": schema, **schema["$defs"]}.items():
            if not definition.get("description"):
                yield name
            for key, value in definition.get("properties", {}).items():
                target = schema["$defs"].get(value.get("$ref", "").removeprefix("#/$defs/"), {})
                if not value.get("description", target.get("description")):
                    yield f"{name}.{key}"

    assert list(undescribed()) == []


VALID: list[dict[str, Any]] = [
    {},
    {"preset": "full", "seeds": [0, 1, 2]},
    {"matrix": {"mode": ["async"], "workers": [1, 32]}},
    {
        "experiments": [
            {"mode": "sync", "workers": 4},
            {"name": "b", "mode": "async", "workers": 1, "seed": 3},
        ]
    },
    {"experiments": None, "matrix": {}},
    {"training": {"dataset": "cifar10", "data": "/data", "augment": True}},
    {"training": {"dataset": "cifar10"}},
    {"training": {"dataset": "mnist", "data": None}},
    {"training": {"dataset": "cifar100", "data": "s3://bucket/prefix", "model": None}},
    {"training": {"dataset": "fashion-mnist", "data": "/data", "model": "resnet18", "augment": False}},
    {"training": {"data": None, "augment": False, "model": "logistic-regression"}},
    {"training": {"dataset": "synthetic", "model": "cifar-cnn", "learning_rate": 1}},
    {"compute": {"mode": "emulated", "mean_ms": 0.5}, "server": {"cpu": 256, "memory": 512}},
    {"matrix": {"mode": ["ssp", "staleness-aware"]}, "aggregation": {"staleness_bound": 0, "k": None}},
    {"experiments": [{"mode": "ksync", "workers": 4, "aggregation": {"k": 3}}]},
    {"training": {"optimizer": "adam", "learning_rate": 0.001, "weight_decay": 0.0001}},
    {"training": {"schedule": "step", "decay_epochs": 2.5, "decay_factor": 0.5, "warmup_epochs": 1}},
    {"training": {"schedule": "cosine", "decay_epochs": None}},
    {"compute": {"mode": "emulated", "distribution": "shifted-exponential", "shift_ms": 20}},
    {"compute": {"mode": "emulated", "distribution": "pareto", "tail_index": 1.5}},
    {"compute": {"mode": "emulated", "stragglers": [{"rank": 0, "slowdown": 10}]}},
    {"exchange": {"compression": "topk", "topk_ratio": 0.5, "transport": "shared-memory", "tls": True}},
    {"exchange": {"compression": "int8", "tls": None}, "network": {"latency_ms": 0}},
    {"network": {"bandwidth_mbit_per_second": 0.5, "latency_ms": 10000}},
    {"network": {"workers": [{"rank": 0, "bandwidth_mbit_per_second": 10}, {"rank": 3, "latency_ms": 0}]}},
    {"experiments": [{"mode": "sync", "workers": 2, "exchange": None, "network": {"latency_ms": 1}}]},
    {"faults": {"crashes": [{"rank": 0, "step": 0}]}, "checkpoint": {}},
    {
        "faults": {"crashes": [{"rank": 0, "step": 9, "restart_after_seconds": 0.5}]},
        "on_worker_loss": "continue",
        "checkpoint": {"interval_seconds": 3600, "location": "s3://bucket/checkpoints"},
    },
    {"shards": 8},
    {"faults": {"crashes": []}, "checkpoint": None},
]
MISTAKEN: list[object] = [
    [],
    {"trainning": {}},
    {"training": {"epoch": 3}},
    {"training": {"learning_rate": "0.1"}},
    {"training": {"momentum": 1}},
    {"training": {"dataset": "cifar10", "data": "/data", "model": "digits-cnn"}},
    {"training": {"dataset": "cifar10", "data": "data"}},
    {"training": {"data": "/data"}},
    {"training": {"augment": True}},
    {"training": {"dataset": "mnist", "data": "/data", "augment": True}},
    {"training": {"model": "cifar-cnn"}},
    {"training": {"dataset": "imagenet", "data": "/data"}},
    {"preset": "all"},
    {"name": "my study"},
    {"matrix": {"mode": "sync"}},
    {"matrix": {"mode": ["asp"]}},
    {"aggregation": {"K": 1}},
    {"matrix": {"mode": ["ksync"]}, "aggregation": {"k": 0}},
    {"matrix": {"mode": ["ssp"]}, "aggregation": {"staleness_bound": -1}},
    {"training": {"optimizer": "adam"}},
    {"training": {"optimizer": "adam", "learning_rate": 0.001, "momentum": 0.9}},
    {"training": {"schedule": "step"}},
    {"training": {"decay_epochs": 1}},
    {"training": {"schedule": "cosine", "decay_factor": 0.5}},
    {"compute": {"distribution": "pareto"}},
    {"compute": {"distribution": "pareto", "tail_index": 1}},
    {"compute": {"distribution": "exponential", "shift_ms": 5}},
    {"compute": {"tail_index": 2}},
    {"compute": {"stragglers": [{"rank": 0, "slowdown": 10}]}},
    {"compute": {"mode": "emulated", "stragglers": [{"rank": 0}]}},
    {"compute": {"mode": "emulated", "stragglers": [{"rank": 0, "slowdown": 0.5}]}},
    {"exchange": {"compression": "gzip"}},
    {"exchange": {"topk_ratio": 0.1}},
    {"exchange": {"compression": "fp16", "topk_ratio": 0.1}},
    {"exchange": {"compression": "topk", "topk_ratio": 0}},
    {"exchange": {"compression": "topk", "topk_ratio": 0.51}},
    {"exchange": {"transport": "udp"}},
    {"experiments": [{"mode": "sync", "workers": 2, "exchange": {"topk_ratio": 0.1}}]},
    {"network": {"bandwidth_mbit_per_second": 0}},
    {"network": {"latency_ms": 10001}},
    {"network": {"workers": [{"rank": 0, "bandwidth_mbit_per_second": 0}]}},
    {"network": {"workers": [{"latency_ms": 5}]}},
    {"network": {"latency_ms": None}},
    {"faults": {"crashes": [{"rank": 0}]}},
    {"faults": {"crashes": [{"rank": 0, "step": -1}]}},
    {"faults": {"crashes": [{"rank": 0, "step": step} for step in range(33)]}},
    {"on_worker_loss": "ignore"},
    {"checkpoint": {"interval_seconds": 0}},
    {"checkpoint": {"location": "checkpoints"}},
    {"shards": 0},
    {"shards": 9},
    {"matrix": {"mode": ["sync", "sync"]}},
    {"matrix": {"workers": [0]}},
    {"matrix": {"workers": [33]}},
    {"matrix": {"workers": []}},
    {"matrix": {"workers": [4, 4]}},
    {"seeds": [1, 1]},
    {"seeds": [-1]},
    {"experiments": []},
    {"experiments": [{"mode": "sync"}]},
    {"experiments": [{"mode": "sync", "workers": 2}], "matrix": {}},
    {"experiments": [{"mode": "sync", "workers": 2}], "seeds": [0]},
    {"experiments": [{"mode": "sync", "workers": 2}], "preset": "full"},
    {"worker": {"cpu": 1024}},
    {"worker": {"cpu": 1000, "memory": 2048}},
    {"worker": {"cpu": 256, "memory": 1536}},
    {"max_parallel_experiments": 41},
]


@pytest.mark.parametrize("document", VALID, ids=json.dumps)
def test_what_validation_takes_is_valid(schema: dict[str, Any], document: dict[str, Any]) -> None:
    parse_study(document)
    assert is_valid(schema, document)


@pytest.mark.parametrize("document", MISTAKEN, ids=json.dumps)
def test_what_validation_refuses_is_not_valid(schema: dict[str, Any], document: object) -> None:
    with pytest.raises(StudyRefused):
        parse_study(document)
    assert not is_valid(schema, document)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.json")), ids=lambda path: path.name)
def test_every_example_is_valid(schema: dict[str, Any], example: Path) -> None:
    document = json.loads(example.read_text(encoding="utf-8"))
    parse_study(document)
    assert is_valid(schema, document)


def test_every_study_that_the_documentation_shows_is_valid(schema: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    shown = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert len(shown) >= 2
    for document in shown:
        parse_study(document)
        assert is_valid(schema, document)


def test_there_are_examples() -> None:
    assert (ROOT / "examples" / "demo.json").exists()


def test_fargate_sizes_are_those_that_the_linter_of_cloudformation_knows() -> None:
    rules = Path(cfnlint.__path__[0]).joinpath(
        "data", "schemas", "extensions", "aws_ecs_taskdefinition", "fargate_cpu_memory.json"
    )
    pairs: dict[int, list[int]] = {}
    for rule in json.loads(rules.read_text())["then"]["anyOf"]:
        cpu, memory = (rule["properties"][key]["then"] for key in ("Cpu", "Memory"))
        pairs[int(cpu["enum"][0])] = memory.get("enum") or list(
            range(memory["minimum"], memory["maximum"] + 1, memory["multipleOf"])
        )
    assert {cpu: list(sizes) for cpu, sizes in FARGATE_MEMORY.items()} == {
        cpu: sizes for cpu, sizes in pairs.items() if cpu in FARGATE_MEMORY
    }


def test_every_pair_of_fargate_is_taken_and_its_neighbours_are_not() -> None:
    for cpu, sizes in FARGATE_MEMORY.items():
        assert [size_problem(cpu, size) for size in sizes] == [""] * len(sizes)
        assert size_problem(cpu, sizes[0] - 1)
        assert size_problem(cpu, sizes[-1] + 1024)
        assert size_problem(cpu + 1, sizes[0])
