"""torchvision's data sets, from a folder or an S3 prefix that holds what their archives hold, unpacked.

Runs in workers, and in the task that prepares a data set. Nothing is downloaded from the internet here: workers need no
way out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contract.catalogue import Dataset, Images
from contract.document import S3_SCHEME
from contract.errors import TrainingFailed
from runtime.manifest import MANIFEST, Manifest, sha256_of
from runtime.s3_folder import S3Folder
from runtime.split import Data, Split
from runtime.temporary import temporary_folder
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
    if not location:
        raise TrainingFailed(
            f"DATA_DIRECTORY: {dataset} is not built in; name its folder (/…) or s3://bucket/prefix"
        )
    if not location.startswith(S3_SCHEME):
        return read(dataset, images, Path(location), location)
    with temporary_folder("dataset-") as folder:
        fetch(dataset, S3Folder(location), folder)
        return read(dataset, images, folder, location)


def torchvision_class(dataset: Dataset) -> Any:
    """The class of torchvision that reads it."""
    return getattr(import_torchvision().datasets, _STORED[dataset].class_name)


def files_of(dataset: Dataset) -> list[str]:
    """The files that torchvision reads, relative to the folder that it is given."""
    return _STORED[dataset].files(torchvision_class(dataset))


def fetch(dataset: Dataset, place: S3Folder, folder: Path) -> None:
    """Copy the files of a data set from S3, and compare them with their manifest where there is one.

    Raises TrainingFailed that names what is missing or different.
    """
    path = place.path(MANIFEST)
    content = place.read(MANIFEST)
    files = files_of(dataset)
    place.fetch(files, folder)
    if content is None:
        return
    sizes = {name: (folder / name).stat().st_size for name in files}
    wrong = Manifest.parse(content, dataset, path).differences(sizes, lambda name: sha256_of(folder / name))
    if wrong:
        raise TrainingFailed(f"{dataset} in {place.location} is not what {path} says: {'; '.join(wrong)}")


def read(dataset: Dataset, images: Images, folder: Path, location: str) -> Data:
    """Both splits from a local folder; `location` is what the user calls it. Raises TrainingFailed."""
    stored, source, files = _STORED[dataset], torchvision_class(dataset), files_of(dataset)
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
