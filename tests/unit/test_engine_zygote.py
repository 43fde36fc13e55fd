"""The warm parent's two plain parts: loading what is preloaded, and running an entry point to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local.engine.__main__ import kept
from local.engine.zygote import PreloadFailed, call, load


def exits(value: object) -> Callable[[list[str]], int | None]:
    def entry(_argv: list[str]) -> int | None:
        sys.exit(value)  # type: ignore[arg-type]  # the cases go beyond what the type allows

    return entry


def interrupted(_argv: list[str]) -> int | None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("entry", "code", "said"),
    [
        (len, 2, ""),
        (lambda _argv: None, 0, ""),
        (exits(None), 0, ""),
        (exits(5), 5, ""),
        (exits("no data"), 1, "no data\n"),
        (interrupted, 1, "KeyboardInterrupt\n"),
        (lambda _argv: {}["missing"], 1, "KeyError: 'missing'\n"),
    ],
)
def test_exit_codes_are_an_interpreters(
    entry: Callable[[list[str]], int | None], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(entry, ["a", "b"]) == code
    assert capsys.readouterr().err.endswith(said)


def test_every_module_that_cannot_be_forked_from_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("import does_not_exist_anywhere\n")
    (tmp_path / "threaded_module.py").write_text(
        "import threading\nstop = threading.Event()\nthread = threading.Thread(target=stop.wait)\nthread.start()\n"
    )
    (tmp_path / "good_module.py").write_text("def entry(argv): return 0\nnumber = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")

    assert load("good_module:entry", [])([]) == 0
    with pytest.raises(PreloadFailed, match="not a function"):
        load("good_module:number", [])
    with pytest.raises(PreloadFailed) as failure:
        load("good_module:entry", ["broken_module", "threaded_module"])
    sys.modules["threaded_module"].stop.set()
    sys.modules["threaded_module"].thread.join()

    assert "cannot import broken_module" in str(failure.value)
    assert "does_not_exist_anywhere" in str(failure.value)
    assert "importing threaded_module started a thread" in str(failure.value)


def test_no_credential_is_among_what_containers_keep_of_the_callers_environment() -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "x", "AWS_PROFILE": "x", "GITHUB_TOKEN": "x", "DOCKER_HOST": "x"}
    useful = {"PATH": "/bin", "HOME": "/root", "PYTHONPATH": "src", "LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}

    assert kept({**secrets, **useful}) == useful
