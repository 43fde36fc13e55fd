"""checkov on the template: nothing found that .checkov.yaml does not answer with a reason."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.conftest import CHOICES, REPOSITORY, Assembly

CHECKOV = REPOSITORY / ".tools" / "checkov" / "bin" / "checkov"
CONFIG = REPOSITORY / ".checkov.yaml"


def checked(templates: Path, *arguments: str) -> dict[str, Any]:
    """Checkov's report, made without asking anybody."""
    if not CHECKOV.exists():
        pytest.fail("checkov is missing; `make test` installs it")
    done = subprocess.run(
        [
            *(str(CHECKOV), "--directory", str(templates), "--framework", "cloudformation"),
            *("--output", "json", "--skip-download", "--soft-fail", *arguments),
        ],
        cwd=templates,  # from where it is called it would take a configuration unasked
        env={"PATH": str(CHECKOV.parent), "HOME": "/nonexistent", "LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def findings(report: dict[str, Any]) -> set[str]:
    """Which checks failed, and where."""
    return {f"{found['check_id']} {found['resource']}" for found in report["results"]["failed_checks"]}


@pytest.fixture(scope="module")
def templates(synthesized: Callable[[str], Assembly], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every choice's template, and nothing else."""
    folder = tmp_path_factory.mktemp("templates")
    for choice in CHOICES:
        (folder / f"{choice}.json").write_text(json.dumps(synthesized(choice).template))
    return folder


def test_every_finding_is_answered(templates: Path) -> None:
    report = checked(templates, "--config-file", str(CONFIG))
    assert findings(report) == set()
    assert report["summary"]["passed"] > 100


def test_every_answer_is_to_something_found(templates: Path) -> None:
    """A check that finds nothing any more needs no exception."""
    found = {finding.split()[0] for finding in findings(checked(templates))}
    assert found == set(re.findall(r"^  - (CKV\w+)", CONFIG.read_text(), flags=re.MULTILINE))
