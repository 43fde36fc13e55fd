"""Who owns an embedded cloud's folder, what becomes of folders that nobody owns, and which cloud will do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local.cloud import Cloud, CloudAlreadyUp, OtherCloudUp, owned, prune_runs, remove_files, start_cloud


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_cloud_that_is_starting_keeps_its_files(tmp_path: Path) -> None:
    # Given a cloud whose folder is there, but that is not announced yet
    state = tmp_path / "up"
    state.mkdir()
    (state / "supervisor.log").write_text("==> starting\n")
    # When a second one is to start there
    with owned(state), pytest.raises(CloudAlreadyUp, match="starting"):
        start_cloud(state, tied=True, progress=print)

    # Then the first has lost nothing
    assert (state / "supervisor.log").read_text() == "==> starting\n"


def test_the_owner_is_whoever_has_inherited_the_lock(tmp_path: Path) -> None:
    state = tmp_path / "up"
    program = "import sys; sys.stdin.read()"
    with owned(state) as lock:
        heir = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, pass_fds=[lock])
    with heir:
        with pytest.raises(CloudAlreadyUp), owned(state):
            pass
        heir.kill()
    with owned(state):
        pass


def test_a_folder_can_be_owned_again_after_its_files_were_removed(tmp_path: Path) -> None:
    state = tmp_path / "up"
    with owned(state):
        state.mkdir()
        remove_files(state)
        assert list(tmp_path.iterdir()) == []
        # Its owner is about to end: the next one's lock is another file, and excludes others again
        with owned(state), pytest.raises(CloudAlreadyUp), owned(state):
            pass


def test_what_dead_runs_have_left_is_pruned_and_nothing_else(tmp_path: Path) -> None:
    # Given what a dead run left, one whose cloud is still ending, one that lives, and other files
    pids = [dead_pid() for _ in range(2)]
    left, ending, living = (tmp_path / f"run-{pid}" for pid in (*pids, os.getpid()))
    for folder in (left, ending, living, tmp_path / "up", tmp_path / "synth"):
        folder.mkdir()
        (folder / "supervisor.log").touch()
    with owned(left):
        pass  # its lock stays where it was killed
    with owned(ending):
        prune_runs(tmp_path)

    # Then only the first is gone, with its lock
    assert {entry.name for entry in tmp_path.iterdir()} == {
        ending.name,
        f"{ending.name}.lock",
        living.name,
        "up",
        "synth",
    }


@pytest.mark.parametrize(
    ("engine", "sources", "difference"),
    [
        ("process", "new", "tasks with --engine docker, not process"),
        (None, "old", "other code than this checkout has now"),
        ("process", "old", "tasks with --engine docker, not process and other code"),
    ],
)
def test_a_cloud_that_is_not_what_is_asked_for_is_refused(
    engine: str | None, sources: str, difference: str
) -> None:
    cloud = Cloud(pid=1, endpoint="", outputs={}, state="", engine="docker", sources="new")
    with pytest.raises(OtherCloudUp, match=rf"runs {difference}.*; run ./lockstep down first"):
        cloud.require(engine, sources)  # type: ignore[arg-type] # a parameter of a test is no Literal


def test_a_cloud_that_is_what_is_asked_for_will_do() -> None:
    cloud = Cloud(pid=1, endpoint="", outputs={}, state="", engine="docker", sources="new")
    cloud.require("docker", "new")
    cloud.require(None, "new")
