"""Fetch a study's results tree from the bucket to a folder.

Used by the verbs `run` and `demo`.
"""

import tempfile
from pathlib import Path

from cli.deployment import Deployment
from contract.errors import LockstepError
from contract.results import study_prefix

LATEST = "latest"


class NotWritable(LockstepError):
    """The folder for results is none that this user can write to."""


class NotFetched(LockstepError):
    """The study has ended; its results are where they were."""


def prepare(output: Path) -> None:
    """Make the folder that results will be fetched to. Raises NotWritable."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise NotWritable(
            f"results cannot be written to {output}: {error.strerror}; name another folder with --output"
        ) from error


def fetch(deployment: Deployment, study_id: str, output: Path) -> Path | None:
    """Copy the study's files to `output`/<study id> and point `output`/latest there.

    Returns the folder, or None where the bucket holds nothing of the study.
    """
    s3 = deployment.session.client("s3")
    prefix = study_prefix(study_id)
    folder = output / study_id
    found = False
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=deployment.bucket_name, Prefix=prefix):
        for item in page.get("Contents", []):
            target = folder / item["Key"].removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(deployment.bucket_name, item["Key"], str(target))
            found = True
    if not found:
        return None
    _point_latest(output, study_id)
    return folder


def _point_latest(output: Path, study_id: str) -> None:
    """Replace the link in one step: somebody else may be reading it, or doing the same."""
    draft = output / f".{LATEST}-{study_id}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(study_id)
    draft.replace(output / LATEST)
