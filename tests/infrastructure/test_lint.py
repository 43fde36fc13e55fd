"""cfn-lint on the template and on the state machine in it; asl-validator on the state machine."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import statemachine
from tests.infrastructure.asl import states
from tests.infrastructure.conftest import REPOSITORY, Assembly


@pytest.fixture(scope="module")
def findings(assembly: Assembly, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What cfn-lint says of the template, of one that it can check in full, and of one that is broken."""
    folder = tmp_path_factory.mktemp("lint")
    templates = {
        "template": assembly.template,
        "checkable": _with_definition(assembly.template, _fixed_numbers),
        "broken": _with_definition(assembly.template, _task_without_resource),
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
    assert resource.pop("Metadata")["cfn-lint"] == {"config": {"ignore_checks": ["E3601", "E1101"]}}
    definition = json.loads(resource["Properties"]["DefinitionString"])
    change(definition)
    resource["Properties"]["DefinitionString"] = json.dumps(definition)
    return changed


def _fixed_numbers(definition: dict[str, Any]) -> None:
    """The linter errs: it takes no JSONata for MaxConcurrency and TimeoutSeconds, as Step Functions does."""
    changed = []
    for name, state in states(definition).items():
        for field in ("MaxConcurrency", "TimeoutSeconds"):
            if str(state.get(field, "")).startswith("{%"):
                state[field] = 2
                changed.append(name)
    assert changed == ["RunExperiments", "RunServer", "AwaitServer", "RunWorker"]


def _task_without_resource(definition: dict[str, Any]) -> None:
    _fixed_numbers(definition)
    del definition["States"]["PublishReport"]["Resource"]


def test_the_template_is_clean(findings: dict[str, list[str]]) -> None:
    assert findings["template"] == []


def test_the_state_machine_is_clean_without_the_exception(findings: dict[str, list[str]]) -> None:
    assert findings["checkable"] == []


def test_the_linter_does_look_into_the_state_machine(findings: dict[str, list[str]]) -> None:
    assert any(finding.startswith("E3601") for finding in findings["broken"])


def asl_validator(definition: Path) -> tuple[int, str]:
    """What asl-validator, which knows the language's schema and JSONata's grammar, says of a definition."""
    program = REPOSITORY / ".tools" / "asl" / "node_modules" / ".bin" / "asl-validator"
    if not program.exists():
        pytest.fail("asl-validator is missing; `make test` installs it")
    done = subprocess.run(
        [str(program), "--json-path", str(definition)],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_another_validator_has_nothing_against_the_state_machine() -> None:
    code, said = asl_validator(REPOSITORY / "statemachine" / "experiments.asl.json")
    assert (code, "is valid" in said) == (0, True), said


@pytest.mark.parametrize(
    ("right", "wrong"),
    [('"Next": "DecideEnd"', '"Next": "Nowhere"'), ("$exists(", "$exists((")],
    ids=["no such state", "no JSONata"],
)
def test_it_would_have(tmp_path: Path, right: str, wrong: str) -> None:
    text = statemachine.definition()
    assert right in text
    broken = tmp_path / "broken.json"
    broken.write_text(text.replace(right, wrong))
    assert asl_validator(broken)[0] != 0
