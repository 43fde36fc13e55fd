"""Data sets from S3: prepared before any worker starts, once for all studies, or one clear cause."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local.cloud import Cloud
from tests.e2e.machine import cause_of, client, logged, running_tasks, starts_of, study_of, until
from tests.unit.torchvision_files import write_idx

TRAINING = {"dataset": "mnist", "model": "mlp", "epochs": 1}
STUDY = {"matrix": {"workers": [1]}, "training": TRAINING}
LABELS = "datasets/mnist/MNIST/raw/train-labels-idx1-ubyte"


@pytest.fixture
def mnist(cloud: Cloud, tmp_path: Path) -> str:
    """A few images in MNIST's format, put where the deployment keeps data sets; the bucket."""
    write_idx(tmp_path / "MNIST" / "raw", train=[0, 1] * 16)
    s3, bucket = client(cloud, "s3"), cloud.outputs["BucketName"]
    for file in sorted((tmp_path / "MNIST" / "raw").iterdir()):
        s3.upload_file(str(file), bucket, f"datasets/mnist/MNIST/raw/{file.name}")
    return bucket


def test_a_data_set_is_prepared_once_for_all_studies_and_damage_is_told_before_any_worker_starts(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]], mnist: str
) -> None:
    s3, manifest = client(cloud, "s3"), {"Bucket": mnist, "Key": "datasets/mnist/manifest.json"}

    # When two studies that leave training.data out are run
    first, second = described = [ended(start(STUDY, suffix)) for suffix in ("-first", "-second")]

    # Then the first has written a manifest, which the second has found
    assert [each["status"] for each in described] == ["SUCCEEDED", "SUCCEEDED"], described[0].get("cause")
    assert len(json.loads(s3.get_object(**manifest)["Body"].read())["files"]) == 4
    until(lambda: "was put into" in prepared(cloud, first), "what the first one's preparation said")
    until(lambda: "is in s3://" in prepared(cloud, second), "what the second one's preparation said")

    # When one of its files is damaged
    whole = s3.get_object(Bucket=mnist, Key=LABELS)["Body"].read()
    s3.put_object(Bucket=mnist, Key=LABELS, Body=whole[:-1] + b"\5")
    before = starts_of(cloud)
    arn = start(STUDY, "-third")
    failed = ended(arn)

    # Then the study has failed before any experiment began, with one cause that says what to do
    assert (failed["status"], failed["error"]) == ("FAILED", "StudyFailed")
    cause = cause_of(failed)
    assert cause.startswith("2 of 2 experiments failed. sync_1worker, async_1worker: ")
    assert cause.endswith(
        "no task of it was started: DatasetNotReady: mnist in"
        f" s3://{mnist}/datasets/mnist is damaged: MNIST/raw/train-labels-idx1-ubyte has other contents; remove it, and"
        " the next study that leaves training.data out fetches it anew: aws s3 rm --recursive"
        f" s3://{mnist}/datasets/mnist/"
    )
    assert starts_of(cloud) == [*before, "prepare"]
    assert running_tasks(cloud, arn) == []
    report = s3.get_object(Bucket=mnist, Key=f"studies/{arn.rsplit(':', 1)[1]}/report.html")["Body"].read()
    assert b"train-labels-idx1-ubyte has other contents" in report


def test_data_that_are_not_where_a_study_says_are_one_clear_cause_before_any_worker_starts(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    before = starts_of(cloud)
    place = f"s3://{cloud.outputs['BucketName']}/datasets/nothing"
    failed = ended(start({**STUDY, "training": {**TRAINING, "data": place}}))
    assert failed["status"] == "FAILED"
    cause = cause_of(failed)
    assert f"DatasetNotReady: mnist: 4 of 4 files are not in {place}: MNIST/raw/train-images" in cause
    assert f"aws s3 cp --recursive --exclude '*.gz' data {place}/" in cause
    assert starts_of(cloud) == [*before, "prepare"]


def prepared(cloud: Cloud, described: dict[str, Any]) -> str:
    """What the task that prepared a study's data set has said."""
    whose = f"lockstep-prepare: {study_of(described['executionArn'])}: "
    return "".join(line for line in logged(cloud, "lockstep-prepare") if line.startswith(whose))
