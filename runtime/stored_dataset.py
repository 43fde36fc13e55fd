"""torchvision's data sets, from a folder or an S3 prefix that holds what their archives hold, unpacked.

Runs in the worker. Nothing is downloaded from the internet: tasks need no way out.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contract.catalogue import Dataset, Images
from contract.errors import TrainingFailed
from runtime.s3_prefix import S3_SCHEME, download
from runtime.split import Data, Split
from runtime.vision import import_torchvision


@dataclass(frozen=True)
class _Stored:
    """How torchvision stores a data set: its class there, how to find and read it, brightness (0 to 255)."""

    class_name: str
    files: Callable[[Any], list[str]]
    """torchvision's class → the files that it reads, relative to the folder it is given."""
    images: Callable[[Any], Tensor]
    """An instance of that class → count × channels × height × width, bytes."""
    mean: float
    std: float


def _cifar_files(source: Any) -> list[str]:
    names = [name for name, _ in (*source.train_list, *source.test_list)]
    return [f"{source.base_folder}/{name}" for name in (*names, source.meta["filename"])]


def _cifar_images(source: Any) -> Tensor:
    return torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()


def _mnist_files(source: Any) -> list[str]:
    return [f"{source.__name__}/raw/{name.removesuffix('.gz')}" for name, _ in source.resources]


def _mnist_images(source: Any) -> Tensor:
    images: Tensor = source.data
    return images.unsqueeze(1)


# Mean and standard deviation are those of all pixels of the training images.
_STORED: Mapping[Dataset, _Stored] = {
    Dataset.CIFAR10: _Stored("CIFAR10", _cifar_files, _cifar_images, 120.7, 64.2),
    Dataset.CIFAR100: _Stored("CIFAR100", _cifar_files, _cifar_images, 121.9, 68.4),
    Dataset.MNIST: _Stored("MNIST", _mnist_files, _mnist_images, 33.3, 78.6),
    Dataset.FASHION_MNIST: _Stored("FashionMNIST", _mnist_files, _mnist_images, 72.9, 90.0),
}

_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, AssertionError, LookupError)
"""What torchvision raises where files are missing (it says so), fail their MD5 sum or cannot be parsed."""


def load_stored(dataset: Dataset, images: Images, location: str) -> Data:
    """The data set from `location`, a folder or s3://bucket/prefix. Raises TrainingFailed with what was expected."""
    stored = _STORED[dataset]
    source = getattr(import_torchvision().datasets, stored.class_name)
    if not location.startswith(S3_SCHEME):
        return _read(dataset, images, source, Path(location), location)
    with tempfile.TemporaryDirectory(prefix="dataset-") as folder:
        download(location, stored.files(source), Path(folder))
        return _read(dataset, images, source, Path(folder), location)


def _read(dataset: Dataset, images: Images, source: Any, folder: Path, location: str) -> Data:
    """Both splits from a folder; `location` is what the user calls it."""
    stored = _STORED[dataset]
    files = stored.files(source)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise TrainingFailed(
            f"{dataset}: {len(missing)} of {len(files)} files are not in DATA_DIRECTORY {location}:"
            f" {', '.join(missing)}; put the data set's unpacked archives there"
        )

    def split(train: bool) -> Split:
        instance = source(folder, train=train, download=False)
        pixels, labels = stored.images(instance), torch.as_tensor(instance.targets, dtype=torch.int64)
        _check(pixels, labels, images)
        return Split(pixels, labels, stored.mean, stored.std)

    try:
        return Data(train=split(train=True), test=split(train=False))
    except _DAMAGE as error:
        raise TrainingFailed(
            f"{dataset}: the files in DATA_DIRECTORY {location} are damaged or of another data set"
            f" ({type(error).__name__}: {' '.join(str(error).split())}); expected {', '.join(files)}"
        ) from error


def _check(pixels: Tensor, labels: Tensor, images: Images) -> None:
    """Refuse what only looks like the data set. Raises ValueError."""
    if pixels.shape != (len(labels), *images.shape) or not len(labels):
        raise ValueError(f"images {tuple(pixels.shape)} and {len(labels)} labels; expected {images.shape}")
    if int(labels.min()) < 0 or int(labels.max()) >= images.classes:
        raise ValueError(f"a label is {int(labels.max())}; expected less than {images.classes}")
