"""cfn-lint on the template, and on the state machine in it."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.conftest import CHOICES, REPOSITORY, Assembly


@pytest.fixture(scope="module")
def findings(
    synthesized: Callable[[str], Assembly], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """What cfn-lint says of every choice's template, of one that it can check in full, and of one that is broken."""
    default = synthesized("default").template
    folder = tmp_path_factory.mktemp("lint")
    templates = {
        **{choice: synthesized(choice).template for choice in CHOICES},
        "checkable": _with_definition(default, _fixed_concurrency),
        "broken": _with_definition(default, _task_without_resource),
    }
    for name, template in templates.items():
        (folder / f"{name}.json").write_text(json.dumps(template))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("cfn-lint")),
            *("--format", "json"),
            *(str(folder / f"{name}.json") for name in templates),
        ],
        cwd=REPOSITORY,  # where .cfnlintrc is
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.stderr
    matches = json.loads(done.stdout)
    return {
        name: [
            f"{match['Rule']['Id']} {match['Message']}"
            for match in matches
            if Path(match["Filename"]).stem == name
        ]
        for name in templates
    }


def _with_definition(template: dict[str, Any], change: Any) -> dict[str, Any]:
    """A copy whose state machine is changed and is checked without any rule left out."""
    changed = copy.deepcopy(template)
    (resource,) = (
        r for r in changed["Resources"].values() if r["Type"] == "AWS::StepFunctions::StateMachine"
    )
    assert resource.pop("Metadata")["cfn-lint"] == {"config": {"ignore_checks": ["E3601"]}}
    definition = json.loads(resource["Properties"]["DefinitionString"])
    change(definition)
    resource["Properties"]["DefinitionString"] = json.dumps(definition)
    return changed


def _fixed_concurrency(definition: dict[str, Any]) -> None:
    """The linter errs: it takes no JSONata for MaxConcurrency, as Step Functions does."""
    assert definition["States"]["RunExperiments"]["MaxConcurrency"].startswith("{%")
    definition["States"]["RunExperiments"]["MaxConcurrency"] = 2


def _task_without_resource(definition: dict[str, Any]) -> None:
    _fixed_concurrency(definition)
    del definition["States"]["PublishReport"]["Resource"]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_template_is_clean(findings: dict[str, list[str]], choice: str) -> None:
    assert findings[choice] == []


def test_the_state_machine_is_clean_without_the_exception(findings: dict[str, list[str]]) -> None:
    assert findings["checkable"] == []


def test_the_linter_does_look_into_the_state_machine(findings: dict[str, list[str]]) -> None:
    assert any(finding.startswith("E3601") for finding in findings["broken"])
