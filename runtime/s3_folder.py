"""A prefix of S3 as a folder of files: list, fetch, store, and tell their contents apart.

Runs in workers and in the task that prepares data sets, on AWS and on the embedded cloud; knows nothing of what the
files hold.
"""

import base64
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from contract.document import S3_SCHEME
from contract.errors import TrainingFailed
from runtime.manifest import sha256_of
from runtime.temporary import temporary_folder

UNREADABLE: Final = frozenset({"NoSuchKey", "NoSuchBucket", "AccessDenied", "404", "403"})
"""Codes of S3 for what is not there: to who may not list a bucket, a missing object looks like a forbidden one.

Source: Amazon S3 API Reference, GetObject, Permissions.
"""


class S3Folder:
    """Objects below one prefix, named relative to it. Methods raise TrainingFailed that names the object."""

    def __init__(self, location: str) -> None:
        # Here, not on top: few tasks read from S3, and it costs each half a second.
        import boto3  # noqa: PLC0415
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        self.location = location
        self._errors = (BotoCoreError, Boto3Error, ClientError)
        self._answered = ClientError
        self._bucket, _, prefix = location.removeprefix(S3_SCHEME).partition("/")
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        with self._naming(f"no client for {location}"):
            self._client: Any = boto3.client("s3")

    def sizes(self) -> dict[str, int]:
        """Names and bytes of all objects that are there."""
        with self._naming(f"{self.location} cannot be listed", "s3:ListBucket"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            return {
                each["Key"].removeprefix(self._prefix): each["Size"]
                for page in pages
                for each in page.get("Contents", ())
            }

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """Copy objects into a local folder, under the same names."""
        expected = f"expected {', '.join(names)} under {self.location}, and "
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._naming(f"{self.path(name)} cannot be read", "s3:GetObject", expected):
                self._client.download_file(self._bucket, self._prefix + name, str(target))

    def read(self, name: str) -> bytes | None:
        """A small object's bytes; None where there is none that this task may read."""
        with self._naming(f"{self.path(name)} cannot be read", "s3:GetObject"):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except self._answered as error:
                if error.response["Error"]["Code"] in UNREADABLE:
                    return None
                raise
            content: bytes = answer["Body"].read()
            return content

    def sha256(self, name: str) -> str:
        """SHA-256 of an object in hexadecimal digits: as S3 keeps it; where it keeps none, all of it is read."""
        with self._naming(f"{self.path(name)} cannot be read", "s3:GetObject"):
            head = self._client.head_object(
                Bucket=self._bucket, Key=self._prefix + name, ChecksumMode="ENABLED"
            )
        kept = head.get("ChecksumSHA256", "")
        if kept and "-" not in kept:  # with a dash it is one of the parts' checksums
            return base64.b64decode(kept).hex()
        with temporary_folder("checksum-") as folder:
            self.fetch([name], folder)
            return sha256_of(folder / name)

    def store(self, name: str, content: Path | bytes) -> None:
        """Write an object of at most 5 GB, whole or not at all; S3 compares its SHA-256, and keeps it."""
        with ExitStack() as opened, self._naming(f"{self.path(name)} cannot be written", "s3:PutObject"):
            body = content if isinstance(content, bytes) else opened.enter_context(content.open("rb"))
            self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + name, Body=body, ChecksumAlgorithm="SHA256"
            )

    def path(self, name: str) -> str:
        """What the user calls an object."""
        return f"{S3_SCHEME}{self._bucket}/{self._prefix}{name}"

    @contextmanager
    def _naming(self, failure: str, action: str = "", expected: str = "expected ") -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            says = f"{failure}: {' '.join(str(error).split())}"
            raise TrainingFailed(
                f"{says}; {expected}the task's role to allow {action}" if action else says
            ) from error
