"""cdk-nag's rules for AWS solutions: nothing found that is not answered with a reason."""

from pathlib import Path

import pytest

from tests.infrastructure.conftest import CHOICES, run_app


@pytest.mark.parametrize("choice", CHOICES)
def test_every_finding_is_answered(choice: str, tmp_path: Path) -> None:
    done = run_app(tmp_path / "out", CHOICES[choice], "tests/infrastructure/nagged.py")
    assert done.returncode == 0, done.stdout + done.stderr
