"""Make a data set ready before any worker starts: `python -m runtime prepare`.

Runs as a task of its own, once for each study that reads its data from S3. In the deployment's own place it fetches
what is not there, once for all studies; a place that a study names is looked at only. Two that run at once do no
harm: they write the same bytes, and the manifest last.
"""

import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract import table as keys
from contract.catalogue import MODELS_FOR, Dataset, images_of
from contract.errors import LockstepError, TrainingFailed
from contract.preparation import Preparation
from runtime import process
from runtime.download import NotDownloaded, download
from runtime.last_words import reason_of
from runtime.manifest import MANIFEST, Manifest
from runtime.s3_folder import S3Folder
from runtime.stored_dataset import fetch, files_of, read, torchvision_class
from runtime.temporary import temporary_folder

ROLE = "prepare"
"""The image's command, and the name of the container."""

ROW_SECONDS = 2 * 86_400
"""How long the row stays that the state machine reads at once."""


class DatasetNotReady(LockstepError):
    """No worker can have the data set; the message says why, and what to do about it."""


def run(environ: Mapping[str, str]) -> int:
    """Prepare what the environment names, and write the row that says how it went. Returns the exit code."""
    wanted: Preparation | None = None
    try:
        process.set_up()
        wanted = Preparation.from_environ(environ)
        _say(wanted.study_id, prepare(wanted))
        _tell(wanted)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it must be told
        if not isinstance(error, LockstepError):
            traceback.print_exc()
        _say(wanted.study_id if wanted else "", reason_of(error))
        if wanted is not None:
            _tell(wanted, reason_of(error))
        return 1
    return 0


def stopped(stop: process.Stop) -> int:
    """Say that this task was told to stop; the state machine learns of it from its exit. Returns the exit code."""
    _say(os.environ.get("STUDY_ID", ""), stop.reason)
    return stop.exit_code


def prepare(wanted: Preparation) -> str:
    """See to it that a data set is where workers will read it, and whole; what was done, in a sentence.

    Raises DatasetNotReady.
    """
    place = S3Folder(wanted.data_directory)
    try:
        sizes = place.sizes()
        if MANIFEST in sizes:
            _compare(wanted.dataset, place, sizes)
            return f"{wanted.dataset} is in {place.location} as it was prepared"
        missing = [name for name in files_of(wanted.dataset) if name not in sizes]
        with temporary_folder("dataset-") as folder:
            if not missing:
                return _adopt(wanted, place, folder)
            if not wanted.dataset_download:
                raise DatasetNotReady(
                    f"{wanted.dataset}: {len(missing)} of {len(files_of(wanted.dataset))} files are not in"
                    f" {place.location}: {', '.join(missing)}; {_by_hand(wanted)}"
                )
            return _download(wanted, place, folder)
    except TrainingFailed as error:
        raise DatasetNotReady(f"{wanted.dataset} is not ready: {error}") from error


def _compare(dataset: Dataset, place: S3Folder, sizes: Mapping[str, int]) -> None:
    """Look whether what was prepared is still what it was. S3 keeps sizes and digests: nothing is read."""
    path = place.path(MANIFEST)
    manifest = Manifest.parse(place.read(MANIFEST) or b"", dataset, path)
    wrong = [f"{name} is not in {path}" for name in files_of(dataset) if name not in manifest.files]
    if wrong := wrong + manifest.differences(sizes, place.sha256):
        raise DatasetNotReady(
            f"{dataset} in {place.location} is damaged: {'; '.join(wrong)}; remove it, and the next study that leaves"
            f" training.data out fetches it anew: aws s3 rm --recursive {place.path('')}"
        )


def _adopt(wanted: Preparation, place: S3Folder, folder: Path) -> str:
    """Files that somebody put there: look whether they are the data set."""
    fetch(wanted.dataset, place, folder)
    try:
        _check(wanted, folder)
    except TrainingFailed as error:
        raise DatasetNotReady(f"{error}; {_by_hand(wanted)}") from error
    if wanted.dataset_download:
        _publish(wanted.dataset, place, folder)
    return f"{wanted.dataset} was put into {place.location} by hand, and is whole"


def _download(wanted: Preparation, place: S3Folder, folder: Path) -> str:
    try:
        download(wanted.dataset, folder, wanted.dataset_mirror)
    except NotDownloaded as error:
        raise DatasetNotReady(
            f"{error}; where tasks reach no internet, deploy with -c dataset_mirror=URL, or {_by_hand(wanted)}"
        ) from error
    _check(wanted, folder)
    _publish(wanted.dataset, place, folder)
    return f"{wanted.dataset} was downloaded into {place.location}"


def _check(wanted: Preparation, folder: Path) -> None:
    """Read it as workers will: what they could not read, no worker is started for."""
    dataset = wanted.dataset
    read(dataset, images_of(dataset, MODELS_FOR[dataset][0]), folder, wanted.data_directory)


def _publish(dataset: Dataset, place: S3Folder, folder: Path) -> None:
    manifest = Manifest.of(dataset, folder, files_of(dataset))
    for name in manifest.files:
        place.store(name, folder / name)
    place.store(MANIFEST, manifest.content())


def _by_hand(wanted: Preparation) -> str:
    """How somebody puts the files there, from a machine with torchvision, a way out and the AWS CLI."""
    name, target = torchvision_class(wanted.dataset).__name__, wanted.data_directory.rstrip("/")
    return (
        "put the files there from a machine that can:"
        f" python -c \"from torchvision.datasets import {name}; {name}('data', download=True)\""
        f" && aws s3 cp --recursive --exclude '*.gz' data {target}/"
    )


def _tell(wanted: Preparation, cause: str = "") -> None:
    """Write the row that the state machine reads: READY, or FAILED with the cause. Raises ClientError."""
    if not wanted.table_name:
        return
    import boto3  # noqa: PLC0415 - costs half a second, which a task that is refused need not spend

    row: dict[str, Any] = {
        keys.PARTITION_KEY: {"S": keys.dataset_partition(wanted.study_id)},
        keys.SORT_KEY: {"S": keys.DATASET_SORT},
        keys.DATASET_STATUS: {"S": "FAILED" if cause else keys.DATASET_READY},
        keys.EXPIRY: {"N": str(int(time.time()) + ROW_SECONDS)},
    }
    if cause:
        row[keys.DATASET_CAUSE] = {"S": cause}
    boto3.client("dynamodb").put_item(TableName=wanted.table_name, Item=row)


def _say(study_id: str, text: str) -> None:
    print(f"lockstep-{ROLE}: {study_id}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for people and logs
