"""The data sets: what is learned, in memory, split into train and test.

Runs in the worker; knows nothing of training. The split never depends on a study's seed, so that accuracies of
different seeds are about the same test images.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from contract.catalogue import SAMPLES, Dataset, Images
from runtime.split import Data, Split
from runtime.stored_dataset import load_stored


def load_dataset(dataset: Dataset, images: Images, location: str) -> Data:
    """The data set, with such images; `location`: folder or s3://bucket/prefix of a stored one.

    Raises TrainingFailed if it is not there or is something else.
    """
    match dataset:
        case Dataset.DIGITS:
            return _digits()
        case Dataset.SYNTHETIC:
            return _synthetic(images)
        case _:
            return load_stored(dataset, images, location)


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


def _synthetic(images: Images) -> Data:
    """One pattern of 4×4 random fields per class, under noise as strong: a CNN learns them in a few dozen steps."""
    shape, classes = images
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(classes, shape.channels, 4, 4, generator=generator)
    patterns = functional.interpolate(fields, size=(shape.height, shape.width))

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        noise = torch.randn(count, *shape, generator=generator)
        return Split(patterns[labels] + noise, labels, mean=0.0, std=2**0.5)

    count = SAMPLES[Dataset.SYNTHETIC]
    return Data(train=split(count.train), test=split(count.test))
