"""Which experiments are alike: those that take equally long."""

from typing import Any

import pytest

from contract.history import fingerprint
from contract.plan import Experiment, plan
from contract.study import parse_study

BASE: dict[str, Any] = {"experiments": [{"name": "one", "mode": "sync", "workers": 4}]}


def experiment(study_id: str = "study-1", **document: Any) -> Experiment:
    return plan(parse_study({**BASE, **document}), study_id)[0]


@pytest.mark.parametrize(
    "other",
    [
        {"experiments": [{"name": "another", "mode": "sync", "workers": 4, "seed": 7}]},
        {"training": {"learning_rate": 0.01, "momentum": 0.5, "weight_decay": 0.1, "schedule": "cosine"}},
        {"experiment_timeout_seconds": 60},
        {"max_cost_usd": 3.0},
        {"tolerated_failures": 2},
    ],
)
def test_what_does_not_decide_how_long_a_step_takes_makes_no_difference(other: dict[str, Any]) -> None:
    assert fingerprint(experiment("study-2", **other), "x86_64") == fingerprint(experiment(), "x86_64")


@pytest.mark.parametrize(
    "other",
    [
        {"experiments": [{"mode": "async", "workers": 4}]},
        {"experiments": [{"mode": "sync", "workers": 8}]},
        {"training": {"model": "mlp"}},
        {"training": {"epochs": 6}},
        {"training": {"batch_size": 32}},
        {"training": {"optimizer": "adam", "learning_rate": 0.001}},
        {"worker": {"cpu": 2048, "memory": 4096}},
        {"worker": {"cpu": 1024, "memory": 2048, "spot": True}},
        {"server": {"cpu": 2048, "memory": 4096}},
        {"exchange": {"compression": "int8"}},
        {"network": {"latency_ms": 5}},
        {"shards": 2},
        {"checkpoint": {"interval_seconds": 5}},
        {"compute": {"mode": "emulated"}},
    ],
)
def test_what_decides_it_makes_one(other: dict[str, Any]) -> None:
    assert fingerprint(experiment(**other), "x86_64") != fingerprint(experiment(), "x86_64")


def test_processors_are_told_apart() -> None:
    assert fingerprint(experiment(), "x86_64") != fingerprint(experiment(), "arm64")
