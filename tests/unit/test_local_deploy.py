"""What is kept of synthesized stacks."""

import os
from pathlib import Path

from local.deploy import KEPT_ASSEMBLIES, hash_of_sources, prune, synthesize


def test_only_the_assemblies_used_last_are_kept(tmp_path: Path) -> None:
    for age in range(KEPT_ASSEMBLIES + 3):
        folder = tmp_path / f"assembly-{age}"
        folder.mkdir()
        (folder / "manifest.json").touch()
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    prune(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {f"assembly-{n}" for n in range(KEPT_ASSEMBLIES)}


def test_an_assembly_that_is_there_is_used_and_counts_as_used(tmp_path: Path) -> None:
    kept = tmp_path / hash_of_sources()
    kept.mkdir()
    os.utime(kept, (1_000_000, 1_000_000))
    assert synthesize(tmp_path, print) == kept
    assert kept.stat().st_mtime > 1_000_000
