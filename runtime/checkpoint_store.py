"""Where the checkpoints of one experiment are kept: numbered files in a folder or under an S3 prefix.

Runs in the server; knows nothing of what a checkpoint holds. A checkpoint appears whole or not at all, under the
number after the highest there, and the two newest stay: one that turns out damaged leaves the one before it. Numbers
of a later server are above all of those before it: one that is taken for dead and still writes is not gone on from.
"""

import io
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from contract.checkpoint import checkpoint_folder
from contract.document import S3_SCHEME
from contract.errors import TrainingFailed
from runtime.checkpoint import Checkpoint, CheckpointDamaged, Owner, dump, load

KEPT: Final = 2

MOST_OF_A_SERVER: Final = 10**8
"""Checkpoints of one server of an experiment: numbers of the next one begin there."""

_NAME = re.compile(r"(\d{8,})\.safetensors")
_UNFINISHED: Final = ".unfinished"


class CheckpointFailed(TrainingFailed):
    """A checkpoint could not be written, read or listed; the message names where and why."""


class Place(Protocol):
    """Files with names, in one place. Every method raises CheckpointFailed that names what it was about."""

    def names(self) -> list[str]:
        """Of all files that are there; none where the place itself is not there yet."""

    def read(self, name: str) -> memoryview:
        """A file's bytes, writable."""

    def write(self, name: str, pieces: Sequence[memoryview]) -> None:
        """A file from `pieces`, whole or not at all: it stays if the machine loses power after this returns."""

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def path(self, name: str) -> str:
        """What the user calls a file."""


def store_for(location: str, study: str, experiment: str, warn: Callable[[str], None]) -> "CheckpointStore":
    """The checkpoints of one experiment under `location`, a folder or s3://bucket/prefix.

    Each experiment has a folder of its own there. `warn`: told what was skipped or left behind, and why. Raises
    CheckpointFailed where there is no client for S3.
    """
    folder = checkpoint_folder(study, experiment)
    place: Place
    if location.startswith(S3_SCHEME):
        bucket, _, prefix = location.removeprefix(S3_SCHEME).partition("/")
        place = S3Prefix(bucket, f"{prefix.strip('/')}/{folder}".lstrip("/"))
    else:
        place = Folder(Path(location) / folder)
    return CheckpointStore(place, Owner(study, experiment), warn)


class CheckpointStore:
    """The checkpoints of one experiment, which one server at a time writes."""

    def __init__(self, place: Place, owner: Owner, warn: Callable[[str], None]) -> None:
        self._place = place
        self._owner = owner
        self._warn = warn
        self._damaged: set[int] = set()
        self.attempt = 0
        """How many servers of the experiment there were before the one that writes here."""

    def save(self, checkpoint: Checkpoint) -> int:
        """Write a checkpoint, then delete those that are no longer needed. Returns its number.

        Raises CheckpointFailed; those written before are then as they were.
        """
        numbers = self._numbers()
        below = self.attempt * MOST_OF_A_SERVER
        number = max([below, *(number for number in numbers if number < below + MOST_OF_A_SERVER)]) + 1
        self._place.write(_name(number), dump(checkpoint, self._owner))
        self._damaged.discard(number)
        self._prune(sorted({*numbers, number}))
        return number

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none. Warns of each damaged one that is skipped.

        Raises CheckpointFailed where one cannot be read: to go on from an older one would be to lose its work.
        """
        for number in reversed(self._numbers()):
            try:
                return load(self._place.read(_name(number)), self._owner)
            except CheckpointDamaged as damage:
                self._damaged.add(number)
                self._warn(f"checkpoint {self._place.path(_name(number))} is skipped: {damage}")
        return None

    def _numbers(self) -> list[int]:
        return sorted(int(match[1]) for name in self._place.names() if (match := _NAME.fullmatch(name)))

    def _prune(self, numbers: Sequence[int]) -> None:
        """Delete what is older than the newest KEPT that are whole as far as is known."""
        oldest_kept = [number for number in numbers if number not in self._damaged][-KEPT:][0]
        for number in (number for number in numbers if number < oldest_kept):
            try:
                self._place.delete(_name(number))
            except CheckpointFailed as error:
                # It takes room, but training can go on.
                self._warn(str(error))


def _name(number: int) -> str:
    return f"{number:08d}.safetensors"


class Folder:
    """A Place on a file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """See Place."""
        with _naming(f"checkpoints in {self._folder} cannot be listed"):
            try:
                return [path.name for path in self._folder.iterdir()]
            except FileNotFoundError:
                return []

    def read(self, name: str) -> memoryview:
        """See Place."""
        path = self._folder / name
        with _naming(f"checkpoint {path} cannot be read"), path.open("rb") as file:
            data = np.empty(os.fstat(file.fileno()).st_size, np.uint8).data
            # A file that became shorter meanwhile leaves bytes unread: its checksum is then wrong.
            file.readinto(data)
            return data

    def write(self, name: str, pieces: Sequence[memoryview]) -> None:
        """See Place."""
        path = self._folder / name
        temporary = self._folder / f"{name}.{uuid.uuid4().hex}{_UNFINISHED}"
        with _naming(f"checkpoint {path} cannot be written"):
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(f"*{_UNFINISHED}"):
                left.unlink(missing_ok=True)  # by a writer that was killed
            try:
                with temporary.open("xb") as file:
                    file.writelines(pieces)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            # The file's entry in its folder, and those of the study and the experiment, which may be new.
            for folder in (self._folder, *self._folder.parents[:2]):
                _sync(folder)

    def delete(self, name: str) -> None:
        """See Place."""
        path = self._folder / name
        with _naming(f"checkpoint {path} cannot be deleted"):
            path.unlink(missing_ok=True)

    def path(self, name: str) -> str:
        """See Place."""
        return str(self._folder / name)


@contextmanager
def _naming(failure: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointFailed(
            f"{failure}: {error.strerror or error}; expected a folder with room that the server may write"
        ) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Prefix:
    """A Place in S3, where PutObject is atomic."""

    def __init__(self, bucket: str, prefix: str) -> None:
        # Here, not on top: few servers write to S3, and it costs each half a second.
        import boto3  # noqa: PLC0415
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        self._errors = (BotoCoreError, Boto3Error, ClientError)
        self._bucket = bucket
        self._prefix = prefix
        self._download = TransferConfig(max_concurrency=4)
        # S3 that does not answer must not hold a server that ends for minutes.
        config = Config(
            connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4}
        )
        with self._naming(f"no client for {self.path('')}"):
            self._client: Any = boto3.client("s3", config=config)

    def names(self) -> list[str]:
        """See Place."""
        prefix = self._key("")
        with self._naming(f"checkpoints in {self.path('')} cannot be listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [each["Key"].removeprefix(prefix) for page in pages for each in page.get("Contents", ())]

    def read(self, name: str) -> memoryview:
        """See Place."""
        data = io.BytesIO()
        with self._naming(f"checkpoint {self.path(name)} cannot be read"):
            # Not get_object: this one goes on where a connection broke.
            self._client.download_fileobj(self._bucket, self._key(name), data, Config=self._download)
        return data.getbuffer()

    def write(self, name: str, pieces: Sequence[memoryview]) -> None:
        """See Place."""
        with self._naming(f"checkpoint {self.path(name)} cannot be written"):
            # Not upload_fileobj: the parts of an upload whose writer is killed would stay, unseen and paid for.
            # One PutObject takes 5 GB.
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=PiecesReader(pieces))

    def delete(self, name: str) -> None:
        """See Place."""
        with self._naming(f"checkpoint {self.path(name)} cannot be deleted"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def path(self, name: str) -> str:
        """See Place."""
        return f"{S3_SCHEME}{self._bucket}/{self._key(name)}"

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    @contextmanager
    def _naming(self, failure: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise CheckpointFailed(
                f"{failure}: {' '.join(str(error).split())}; expected a bucket where the server's task role allows"
                " s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
            ) from error


class PiecesReader(io.RawIOBase):
    """Pieces of memory as one file to read: an upload then takes no copy of them all."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = pieces
        self._size = sum(map(len, pieces))
        self._position = 0

    def readable(self) -> bool:
        """See io.IOBase."""
        return True

    def seekable(self) -> bool:
        """See io.IOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        return self._position

    def tell(self) -> int:
        """See io.IOBase."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is left of the piece at the position."""
        start = self._position
        for piece in self._pieces:
            if start < len(piece):
                count = min(len(buffer), len(piece) - start)
                buffer[:count] = piece[start : start + count]
                self._position += count
                return count
            start -= len(piece)
        return 0
