"""The data sets: what is learned, in memory, split into train and test.

Runs in the worker; knows nothing of training. The split never depends on a study's seed, so that accuracies of
different seeds are about the same test images.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from contract.errors import TrainingFailed
from contract.training import Dataset
from runtime.model import CLASSES, ImageShape

SYNTHETIC_TRAIN, SYNTHETIC_TEST = 2048, 512


@dataclass(frozen=True)
class Split:
    """Images as stored (count × channels × height × width, any number type) and labels (count, int64)."""

    images: Tensor
    labels: Tensor
    mean: float
    std: float

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised fp32 images and labels at `indices`. Converted per batch: bytes take a quarter."""
        return self.images[indices].to(torch.float32).sub_(self.mean).div_(self.std), self.labels[indices]


@dataclass(frozen=True)
class Data:
    """A data set: the part that is learned from and the part that accuracy is measured on."""

    train: Split
    test: Split


def load_dataset(dataset: Dataset, shape: ImageShape, data_directory: str) -> Data:
    """The data set, with images of `shape` where it is made up. Raises TrainingFailed if it is not there."""
    match dataset:
        case Dataset.DIGITS:
            return _digits()
        case Dataset.SYNTHETIC:
            return _synthetic(shape)
        case Dataset.CIFAR10:
            return _cifar10(data_directory)


def _digits() -> Data:
    """UCI handwritten digits, 1,437 to learn from and 360 to test; see data/LICENSE-digits.md.

    Every fifth image of each class is for testing: stratified, and the same everywhere.
    """
    with gzip.open(Path(__file__).with_name("data") / "digits.csv.gz", "rt") as file:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))
    images, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].to(torch.int64)
    by_class = torch.sort(labels, stable=True).indices
    tested = torch.zeros(len(labels), dtype=torch.bool)
    tested[by_class[::5]] = True
    mean, std = 4.9, 6.0
    return Data(
        train=Split(images[~tested], labels[~tested], mean, std),
        test=Split(images[tested], labels[tested], mean, std),
    )


def _synthetic(shape: ImageShape) -> Data:
    """One pattern of 4×4 random fields per class, under noise as strong: a CNN learns them in a few dozen steps."""
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(CLASSES, shape.channels, 4, 4, generator=generator)
    patterns = functional.interpolate(fields, size=(shape.height, shape.width))

    def split(count: int) -> Split:
        labels = torch.arange(count) % CLASSES
        noise = torch.randn(count, *shape, generator=generator)
        return Split(patterns[labels] + noise, labels, mean=0.0, std=2**0.5)

    return Data(train=split(SYNTHETIC_TRAIN), test=split(SYNTHETIC_TEST))


def _cifar10(data_directory: str) -> Data:
    """CIFAR10 as torchvision stores it, from a folder. Nothing is downloaded: tasks have no way out."""
    if not data_directory:
        raise TrainingFailed("cifar10: DATA_DIRECTORY is not set; name the folder with cifar-10-batches-py")
    _define_torchvision_operators()
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - seconds of import that digits do not need

    def split(train: bool) -> Split:
        source = CIFAR10(data_directory, train=train, download=False)
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        return Split(images, torch.tensor(source.targets), mean=120.7, std=64.2)

    try:
        return Data(train=split(train=True), test=split(train=False))
    except (RuntimeError, OSError) as error:
        # torchvision checks every file against its MD5 sum before it reads it.
        raise TrainingFailed(
            f"cifar10: no complete data set in DATA_DIRECTORY {data_directory};"
            " put an undamaged cifar-10-batches-py there (cifar-10-python.tar.gz, unpacked)"
        ) from error


@cache
def _define_torchvision_operators() -> torch.library.Library | None:
    """Let torchvision be imported where its compiled operators do not fit torch's build.

    torchvision from PyPI is built against CUDA's torch; beside a CPU build its library does not load, and
    its import then fails on two operators that data sets never call. Declared, they need not be there.
    """
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # untyped in torch
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)  # type: ignore[no-untyped-call]  # untyped in torch
    return library  # kept by the cache: what was declared is undone when its library is collected
