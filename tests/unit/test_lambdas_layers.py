"""Layers go before what Lambda brings: what its SDK needs too is pinned there, in a version that fits both."""

from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAYERS = Path(__file__).resolve().parents[2] / "lambdas" / "layers"


def pins(layer: str) -> dict[str, str]:
    """Package → the requirement that a layer has of it."""
    lines = (LAYERS / layer / "requirements.txt").read_text().splitlines()
    found = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in found}


def needed_by(*packages: str) -> set[str]:
    """The packages, and whatever they need."""
    found: set[str] = set()
    wanted = list(packages)
    while wanted:
        if (name := canonicalize_name(wanted.pop())) not in found:
            found.add(name)
            needed = map(Requirement, requires(name) or ())
            wanted += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("layer", ["base", "report"])
def test_what_the_sdk_needs_too_is_pinned_in_a_version_that_it_takes(layer: str) -> None:
    pinned = pins(layer)
    shared = needed_by(*pinned) & needed_by("boto3")
    assert shared <= pinned.keys()
    assert pinned == {name: f"=={version(name)}" for name in pinned}
