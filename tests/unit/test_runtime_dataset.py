"""Data sets: built in, from a folder and from S3."""

from pathlib import Path

import boto3
import pytest
import torch

from contract.catalogue import MODELS_FOR, STORED, Dataset, ModelName, images_of
from contract.errors import TrainingFailed
from runtime.dataset import load_dataset
from tests.unit import torchvision_files

DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)
IDX = sorted({Dataset.MNIST, Dataset.FASHION_MNIST})


def test_digits_are_split_into_1437_and_360_with_every_class_in_proportion() -> None:
    data = load_dataset(Dataset.DIGITS, DIGITS, "")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == DIGITS.shape
    for digit in range(10):
        train, test = (int((split.labels == digit).sum()) for split in (data.train, data.test))
        assert abs(test - (train + test) / 5) < 1


def test_digits_are_standardised() -> None:
    data = load_dataset(Dataset.DIGITS, DIGITS, "")
    images, _ = data.train.batch(torch.arange(len(data.train)))
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.05
    assert abs(float(images.std()) - 1) < 0.05


@pytest.mark.parametrize("model", MODELS_FOR[Dataset.SYNTHETIC])
def test_synthetic_data_take_the_shape_of_the_model_and_are_always_the_same(model: ModelName) -> None:
    images = images_of(Dataset.SYNTHETIC, model)
    data, again = (load_dataset(Dataset.SYNTHETIC, images, "") for _ in range(2))
    assert data.train.images.shape[1:] == images.shape
    assert torch.equal(data.train.images, again.train.images)
    _, labels = data.test.batch(torch.arange(20))
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("dataset", sorted(STORED))
def test_a_stored_dataset_is_read_from_its_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_files.write(dataset, tmp_path, monkeypatch)
    images = images_of(dataset, ModelName.MLP)
    data = load_dataset(dataset, images, str(tmp_path))
    # Then images are channels first, as bytes, beside their labels
    assert data.train.images.shape == (3, *images.shape)
    assert data.test.images.shape == (1, *images.shape)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.tolist() == torchvision_files.TRAIN
    assert data.test.labels.tolist() == torchvision_files.TEST
    corners = data.train.images[:, :, 0, 0].tolist()
    assert corners == ([[7, 17, 27], [0] * 3, [1] * 3] if images.shape.channels == 3 else [[7], [0], [1]])
    batch, _ = data.test.batch(torch.tensor([0]))
    assert torch.allclose(batch, torch.tensor((9 - data.test.mean) / data.test.std))


@pytest.mark.parametrize("dataset", sorted(STORED))
def test_missing_data_are_one_clear_error(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed) as caught:
        load_dataset(dataset, images_of(dataset, ModelName.MLP), str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{dataset}: ")
    assert f"files are not in DATA_DIRECTORY {tmp_path}: " in message
    assert {
        Dataset.CIFAR10: "cifar-10-batches-py/data_batch_5",
        Dataset.CIFAR100: "cifar-100-python/train",
        Dataset.MNIST: "MNIST/raw/train-images-idx3-ubyte",
        Dataset.FASHION_MNIST: "FashionMNIST/raw/t10k-labels-idx1-ubyte",
    }[dataset] in message
    assert "\n" not in message


def damaged(dataset: Dataset, folder: Path) -> str:
    with pytest.raises(TrainingFailed) as caught:
        load_dataset(dataset, images_of(dataset, ModelName.MLP), str(folder))
    message = str(caught.value)
    assert message.startswith(
        f"{dataset}: the files in DATA_DIRECTORY {folder} are damaged or of another data set ("
    )
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dataset", sorted(STORED))
@pytest.mark.parametrize("content", [b"", b"not a data set", bytes(16), b"\0\0\x08\x03" + b"\xff" * 12])
def test_damaged_data_are_one_clear_error(
    content: bytes, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_files.write(dataset, tmp_path, monkeypatch)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files[-1].write_bytes(content)
    assert str(files[-1].relative_to(tmp_path)) in damaged(dataset, tmp_path)


@pytest.mark.parametrize("dataset", IDX)
def test_a_file_that_was_cut_off_is_damaged(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_files.write(dataset, tmp_path, monkeypatch)
    for path in tmp_path.rglob("train-images-*"):
        path.write_bytes(path.read_bytes()[:-1])
    damaged(dataset, tmp_path)


def test_another_dataset_of_the_same_form_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    torchvision_files.write_idx(folder, train=[3, 25])
    assert "a label is 25; expected less than 10" in damaged(Dataset.MNIST, tmp_path)
    torchvision_files.write_idx(folder, size=14)
    assert "images (3, 1, 14, 14) and 3 labels; expected" in damaged(Dataset.MNIST, tmp_path)
    torchvision_files.write_idx(folder, train=[])
    damaged(Dataset.MNIST, tmp_path)


@pytest.fixture
def bucket(aws: boto3.Session) -> boto3.Session:
    """An account with an empty bucket, `data`."""
    aws.client("s3").create_bucket(Bucket="data")
    return aws


@pytest.mark.parametrize("dataset", [Dataset.CIFAR10, Dataset.MNIST])
@pytest.mark.parametrize("prefix", ["", "sets/of images/"])
def test_a_stored_dataset_is_read_from_s3(
    dataset: Dataset,
    prefix: str,
    bucket: boto3.Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a data set's files under a prefix, and nothing else on this machine
    torchvision_files.write(dataset, tmp_path / "files", monkeypatch)
    for path in (path for path in (tmp_path / "files").rglob("*") if path.is_file()):
        bucket.client("s3").upload_file(str(path), "data", f"{prefix}{path.relative_to(tmp_path / 'files')}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    # When it is loaded
    data = load_dataset(dataset, images_of(dataset, ModelName.MLP), f"s3://data/{prefix}")
    # Then it is the same, and nothing stays on the disk
    assert data.train.labels.tolist() == torchvision_files.TRAIN
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("s3://data/sets", "s3://data/sets/MNIST/raw/train-images-idx3-ubyte cannot be read: "),
        ("s3://elsewhere", "s3://elsewhere/MNIST/raw/train-images-idx3-ubyte cannot be read: "),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_what_is_not_in_s3_is_one_clear_error(location: str, reason: str) -> None:
    with pytest.raises(TrainingFailed) as caught:
        load_dataset(Dataset.MNIST, images_of(Dataset.MNIST, ModelName.MLP), location)
    message = str(caught.value)
    assert message.startswith(reason)
    assert f"MNIST/raw/t10k-labels-idx1-ubyte under {location}" in message
    assert "\n" not in message
