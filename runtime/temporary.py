"""Temporary folders that go with the process: a task that is told to stop is in the middle of a `with`.

Runs in all tasks.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_folders: set[str] = set()


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is removed when it is left, or by `remove_all`."""
    with TemporaryDirectory(prefix=prefix) as name:
        _folders.add(name)
        try:
            yield Path(name)
        finally:
            _folders.discard(name)


def remove_all() -> None:
    """Remove those that are there: nobody will leave them."""
    for name in list(_folders):
        shutil.rmtree(name, ignore_errors=True)
