"""Preparing a data set: fetched once, taken over, looked at, or refused with one clear cause."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from contract.catalogue import STORED, Dataset, ModelName, images_of
from contract.errors import TrainingFailed
from contract.preparation import Preparation
from contract.table import dataset_partition
from lambdas.table import ExperimentTable
from runtime import prepare
from runtime.dataset import load_dataset
from runtime.manifest import MANIFEST, Manifest, sha256_of
from runtime.prepare import DatasetNotReady
from runtime.stored_dataset import files_of
from tests.unit import torchvision_files
from tests.unit.conftest import TABLE
from tests.unit.http_mirror import Mirror

BUCKET = "data"
PREFIX = "datasets/mnist"
PLACE = f"s3://{BUCKET}/{PREFIX}"


@pytest.fixture
def s3(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An account with an empty bucket; between attempts nobody waits."""
    monkeypatch.setattr("runtime.download.PAUSES_SECONDS", (0.0, 0.0))
    client = aws.client("s3")
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    (tmp_path / "mirror").mkdir()
    with Mirror(tmp_path / "mirror") as serving:
        yield serving


def wanted(dataset: Dataset = Dataset.MNIST, **settings: Any) -> Preparation:
    """What a study asks for that leaves training.data out."""
    given = {"data_directory": f"s3://{BUCKET}/datasets/{dataset}", "dataset_download": True, **settings}
    return Preparation(study_id="study-1", dataset=dataset, **given)


def publish(mirror: Mirror, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the archives of a small data set on the mirror; their names."""
    folder = mirror.folder / dataset
    folder.mkdir()
    return torchvision_files.write_archives(dataset, folder, monkeypatch)


def put_mnist(s3: Any, folder: Path, prefix: str = PREFIX) -> None:
    """Upload a small MNIST by hand, as `aws s3 cp` does."""
    torchvision_files.write_idx(folder / "MNIST" / "raw")
    for path in (folder / "MNIST" / "raw").iterdir():
        s3.upload_file(str(path), BUCKET, f"{prefix}/MNIST/raw/{path.name}")


def objects(s3: Any, prefix: str = PREFIX) -> dict[str, Any]:
    """Names below the prefix, and when each was written."""
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
    return {each["Key"].removeprefix(f"{prefix}/"): each["LastModified"] for each in listed}


def refused(preparation: Preparation) -> str:
    with pytest.raises(DatasetNotReady) as caught:
        prepare.prepare(preparation)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000, "the state machine hands on no more"
    assert preparation.dataset in message
    return message


@pytest.mark.parametrize("dataset", sorted(STORED))
def test_a_data_set_is_downloaded_once_and_workers_can_read_it(
    dataset: Dataset, s3: Any, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a mirror with a data set, and nothing in S3
    archives = publish(mirror, dataset, monkeypatch)

    # When it is prepared for one study, then for another
    first = prepare.prepare(wanted(dataset, dataset_mirror=mirror.url))
    there, asked = objects(s3, f"datasets/{dataset}"), list(mirror.asked)
    second = prepare.prepare(wanted(dataset, dataset_mirror=mirror.url))

    # Then it was downloaded once, nothing was written again, and workers read it
    assert "was downloaded" in first
    assert "as it was prepared" in second
    assert set(asked) == {f"/{dataset}/{name}" for name in archives}
    assert mirror.asked == asked
    assert there.keys() == {MANIFEST, *files_of(dataset)}
    assert objects(s3, f"datasets/{dataset}") == there
    data = load_dataset(dataset, images_of(dataset, ModelName.MLP), f"s3://{BUCKET}/datasets/{dataset}")
    assert data.train.labels.tolist() == torchvision_files.TRAIN


def test_a_download_is_tried_again(s3: Any, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(mirror, Dataset.CIFAR10, monkeypatch)
    mirror.failures = 2
    assert "was downloaded" in prepare.prepare(wanted(Dataset.CIFAR10, dataset_mirror=mirror.url))
    assert len(mirror.asked) == 4, "twice in vain, then for redirections and for the archive"
    assert MANIFEST in objects(s3, "datasets/cifar10")


@pytest.mark.parametrize("dataset", [Dataset.CIFAR10, Dataset.MNIST])
def test_no_way_out_is_one_clear_cause_with_both_ways_round_it(dataset: Dataset, s3: Any) -> None:
    message = refused(wanted(dataset, dataset_mirror="http://127.0.0.1:9"))
    assert f"{dataset} could not be downloaded from http://127.0.0.1:9/{dataset}/" in message
    assert "Connection refused" in message
    assert "-c dataset_mirror=URL" in message
    name = torchvision_files.CLASSES[dataset]
    assert f"from torchvision.datasets import {name}; {name}('data', download=True)" in message
    assert f"aws s3 cp --recursive --exclude '*.gz' data s3://{BUCKET}/datasets/{dataset}/" in message
    assert objects(s3, f"datasets/{dataset}") == {}


@pytest.mark.parametrize("dataset", [Dataset.CIFAR10, Dataset.FASHION_MNIST])
def test_archives_with_another_checksum_are_refused_and_nothing_is_stored(
    dataset: Dataset, s3: Any, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in publish(mirror, dataset, monkeypatch):
        archive = mirror.folder / dataset / name
        archive.write_bytes(archive.read_bytes() + b"\0")
    message = refused(wanted(dataset, dataset_mirror=mirror.url))
    assert "File not found or corrupted" in message
    assert objects(s3, f"datasets/{dataset}") == {}


def test_files_that_were_put_there_by_hand_are_taken_over(s3: Any, mirror: Mirror, tmp_path: Path) -> None:
    # Given files as the message says how to upload them
    put_mnist(s3, tmp_path)
    # When it is prepared, then nothing is downloaded, and the manifest says what the files are
    assert "by hand" in prepare.prepare(wanted(dataset_mirror=mirror.url))
    assert mirror.asked == []
    manifest = json.loads(s3.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{MANIFEST}")["Body"].read())
    assert (manifest["schema_version"], manifest["dataset"]) == (1, "mnist")
    assert manifest["files"] == {
        name: {"size_bytes": (tmp_path / name).stat().st_size, "sha256": sha256_of(tmp_path / name)}
        for name in sorted(files_of(Dataset.MNIST))
    }
    assert "as it was prepared" in prepare.prepare(wanted())


def test_two_preparations_write_the_same_bytes(s3: Any, tmp_path: Path) -> None:
    """So that two studies may begin at once: whichever is last has written what the other had."""
    put_mnist(s3, tmp_path)
    written = []
    for _ in range(2):
        prepare.prepare(wanted())
        written.append(s3.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{MANIFEST}")["Body"].read())
        s3.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{MANIFEST}")
    assert written[0] == written[1]


def test_a_preparation_that_was_cut_off_is_done_again(
    s3: Any, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest comes last: without it, some files are not the data set."""
    publish(mirror, Dataset.MNIST, monkeypatch)
    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}/MNIST/raw/train-images-idx3-ubyte", Body=b"begun")
    assert "was downloaded" in prepare.prepare(wanted(dataset_mirror=mirror.url))
    assert "as it was prepared" in prepare.prepare(wanted())


LABELS = "MNIST/raw/t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, f"{LABELS} is missing"),
        (b"short", f"{LABELS} has 5 bytes instead of 9"),
        (b"\0\0\x08\x01\0\0\0\1\3", f"{LABELS} has other contents"),
    ],
)
def test_a_prepared_data_set_that_was_damaged_is_one_clear_cause(
    content: bytes | None, reason: str, s3: Any, tmp_path: Path
) -> None:
    put_mnist(s3, tmp_path)
    prepare.prepare(wanted())
    # When one of its files is removed, or replaced by somebody who leaves no SHA-256
    key = f"{PREFIX}/{LABELS}"
    s3.delete_object(Bucket=BUCKET, Key=key)
    if content is not None:
        s3.put_object(Bucket=BUCKET, Key=key, Body=content)
    # Then it is not fetched anew behind the user's back
    message = refused(wanted())
    assert message == (
        f"mnist in {PLACE} is damaged: {reason}; remove it, and the next study that leaves training.data out fetches"
        f" it anew: aws s3 rm --recursive {PLACE}/"
    )
    # And a worker that reads it all the same says so too
    with pytest.raises(TrainingFailed, match="cannot be read" if content is None else reason):
        load_dataset(Dataset.MNIST, images_of(Dataset.MNIST, ModelName.MLP), PLACE)


def test_a_replaced_file_with_a_checksum_of_its_own_is_noticed(s3: Any, tmp_path: Path) -> None:
    put_mnist(s3, tmp_path)
    prepare.prepare(wanted())
    other = b"\0\0\x08\x01\0\0\0\1\3"
    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{LABELS}", Body=other, ChecksumAlgorithm="SHA256")
    assert f"{LABELS} has other contents" in refused(wanted())


def test_whether_it_is_whole_is_told_without_reading_it(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_mnist(s3, tmp_path)
    prepare.prepare(wanted())

    def never(*_: object) -> None:
        pytest.fail("a file was read")

    monkeypatch.setattr("runtime.s3_folder.S3Folder.fetch", never)
    assert "as it was prepared" in prepare.prepare(wanted())


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("{}", f"{PLACE}/manifest.json is no manifest: dataset: missing; files: missing"),
        ("not JSON", f"{PLACE}/manifest.json is no manifest: "),
        (
            '{"dataset": "cifar10", "files": {}}',
            f"{PLACE}/manifest.json is the manifest of cifar10, not of mnist",
        ),
        (
            '{"dataset": "mnist", "files": {}}',
            f"MNIST/raw/train-images-idx3-ubyte is not in {PLACE}/manifest.json",
        ),
    ],
)
def test_what_is_no_manifest_of_it_is_one_clear_cause(manifest: str, reason: str, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{MANIFEST}", Body=manifest.encode())
    assert reason in refused(wanted())


def given(location: str) -> Preparation:
    """What a study asks for that says where its data lie."""
    return wanted(data_directory=location, dataset_download=False)


def test_a_place_that_a_study_names_is_looked_at_and_nothing_is_written_there(
    s3: Any, tmp_path: Path
) -> None:
    put_mnist(s3, tmp_path, "my/own")
    before = objects(s3, "my/own")
    assert "is whole" in prepare.prepare(given(f"s3://{BUCKET}/my/own/"))
    assert objects(s3, "my/own") == before


def test_missing_files_in_a_place_that_a_study_names_are_named(s3: Any, tmp_path: Path) -> None:
    put_mnist(s3, tmp_path, "my/own")
    s3.delete_object(Bucket=BUCKET, Key=f"my/own/{LABELS}")
    message = refused(given(f"s3://{BUCKET}/my/own"))
    assert f"mnist: 1 of 4 files are not in s3://{BUCKET}/my/own: {LABELS}; put the files there" in message


def test_damaged_files_in_a_place_that_a_study_names_are_one_clear_cause(s3: Any, tmp_path: Path) -> None:
    put_mnist(s3, tmp_path, "my/own")
    s3.put_object(Bucket=BUCKET, Key=f"my/own/{LABELS}", Body=b"not labels")
    message = refused(given(f"s3://{BUCKET}/my/own"))
    assert f"the files in DATA_DIRECTORY s3://{BUCKET}/my/own are damaged or of another data set" in message
    assert "aws s3 cp" in message


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_one_clear_cause() -> None:
    message = refused(given("s3://elsewhere/x"))
    assert message.startswith("mnist is not ready: s3://elsewhere/x cannot be listed: ")
    assert "s3:ListBucket" in message


def row(aws: boto3.Session) -> dict[str, Any]:
    found = (
        aws.resource("dynamodb")
        .Table(TABLE)
        .get_item(Key={"pk": dataset_partition("study-1"), "sk": "DATASET"})
    )
    item: dict[str, Any] = found["Item"]
    assert item.pop("expires_at") > 1_700_000_000
    return item


@pytest.mark.usefixtures("table")
def test_the_row_says_that_it_is_ready(
    s3: Any, aws: boto3.Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_mnist(s3, tmp_path)
    assert prepare.run(environ(wanted())) == 0
    assert row(aws) == {"pk": "DATASET#study-1", "sk": "DATASET", "status": "READY"}
    assert capsys.readouterr().err.startswith("lockstep-prepare: study-1: mnist was put into s3://data/")


@pytest.mark.usefixtures("s3", "table")
def test_the_row_says_why_it_is_not(aws: boto3.Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.run(environ(given(PLACE))) == 1
    written = row(aws)
    assert written.pop("cause").startswith("mnist: 4 of 4 files are not in s3://data/datasets/mnist: ")
    assert written == {"pk": "DATASET#study-1", "sk": "DATASET", "status": "FAILED"}
    said = capsys.readouterr().err
    assert said.startswith("lockstep-prepare: study-1: mnist: 4 of 4 files")
    assert "Traceback" not in said


@pytest.mark.usefixtures("s3")
def test_a_table_that_is_not_there_is_no_success(
    table: ExperimentTable, aws: boto3.Session, tmp_path: Path
) -> None:
    assert table
    put_mnist(aws.client("s3"), tmp_path)
    aws.client("dynamodb").delete_table(TableName=TABLE)
    with pytest.raises(Exception, match="ResourceNotFound"):
        prepare.run(environ(wanted()))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"DATASET": "digits"}, "DATASET: digits is built in: there is nothing to prepare"),
        ({"DATASET": "imagenet"}, "DATASET: "),
        ({"DATA_DIRECTORY": "/data"}, "DATA_DIRECTORY: must match "),
        ({"DATASET_MIRROR": "ftp://mirror"}, "DATASET_MIRROR: must match "),
        ({"DATASET_MIRROR": "https://mirror/"}, "DATASET_MIRROR: must match "),
        ({"DATASET_DOWNLOAD": "perhaps"}, "DATASET_DOWNLOAD: must be a valid boolean"),
    ],
)
def test_what_it_is_told_wrong_is_refused_by_name(
    settings: dict[str, str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"DATASET": "mnist", "DATA_DIRECTORY": PLACE, "PATH": "/bin", **settings}
    assert prepare.run(told) == 1
    assert f"task environment refused: 1 problem; {problem}" in capsys.readouterr().err


def environ(preparation: Preparation) -> dict[str, str]:
    """The environment of a task that is told this."""
    told = preparation.model_copy(update={"table_name": TABLE}).model_dump(mode="json", by_alias=True)
    return {name: str(value) for name, value in told.items()}


def test_a_manifest_is_the_same_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    one, other = (Manifest.of(Dataset.MNIST, tmp_path, names) for names in (["a", "b"], ["b", "a"]))
    assert one.content() == other.content()
    assert Manifest.parse(one.content(), Dataset.MNIST, "here") == one
