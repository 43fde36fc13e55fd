"""The manifest of a prepared data set: what each of its files is. Written last, so that where it is, all of them are.

Runs in workers and in the task that prepares data sets; knows neither S3 nor what the files hold.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.catalogue import Dataset
from contract.errors import TrainingFailed
from contract.problems import problems_of

MANIFEST: Final = "manifest.json"
"""Its name, beside the files."""


class FileFacts(BaseModel):
    """What a file is, without its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """All files of a data set. The same files give the same manifest, byte for byte: two tasks may write it at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    dataset: Dataset
    files: dict[str, FileFacts]
    """By name, relative to the manifest."""

    @classmethod
    def of(cls, dataset: Dataset, folder: Path, names: Iterable[str]) -> Self:
        """The manifest of files in a local folder."""
        return cls(dataset=dataset, files={name: _facts(folder / name) for name in sorted(names)})

    @classmethod
    def parse(cls, content: bytes, dataset: Dataset, path: str) -> Self:
        """What lies at `path`. Raises TrainingFailed where it is no manifest of that data set."""
        try:
            manifest = cls.model_validate_json(content)
        except ValidationError as error:
            raise TrainingFailed(f"{path} is no manifest: {'; '.join(problems_of(error, cls))}") from error
        if manifest.dataset is not dataset:
            raise TrainingFailed(f"{path} is the manifest of {manifest.dataset}, not of {dataset}")
        return manifest

    def content(self) -> bytes:
        """What is written."""
        return f"{self.model_dump_json(indent=2)}\n".encode()

    def differences(self, sizes: Mapping[str, int], sha256: Callable[[str], str]) -> list[str]:
        """How files differ from what they must be, one line each.

        `sizes`: bytes of those that are there; `sha256`: asked for the digest of one whose size is right.
        """
        differences = (
            _difference(name, facts, sizes.get(name), sha256) for name, facts in self.files.items()
        )
        return [each for each in differences if each]


def _difference(name: str, expected: FileFacts, found: int | None, sha256: Callable[[str], str]) -> str:
    if found is None:
        return f"{name} is missing"
    if found != expected.size_bytes:
        return f"{name} has {found:,} bytes instead of {expected.size_bytes:,}"
    return "" if sha256(name) == expected.sha256 else f"{name} has other contents"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(path: Path) -> FileFacts:
    return FileFacts(size_bytes=path.stat().st_size, sha256=sha256_of(path))
