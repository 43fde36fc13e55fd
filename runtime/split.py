"""A data set in memory: what is learned from and what accuracy is measured on.

Runs in the worker; knows nothing of where the images came from or of training.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from runtime.augmentation import shift_and_mirror


@dataclass(frozen=True)
class Split:
    """Images as stored (count × channels × height × width, any number type) and labels (count, int64)."""

    images: Tensor
    labels: Tensor
    mean: float
    std: float

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, augment: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Standardised fp32 images and labels at `indices`; augmented where a source of randomness is given.

        Converted per batch: bytes take a quarter.
        """
        images = self.images[indices]
        if augment is not None:
            images = shift_and_mirror(images, augment)
        return images.to(torch.float32).sub_(self.mean).div_(self.std), self.labels[indices]


@dataclass(frozen=True)
class Data:
    """A data set: the part that is learned from and the part that accuracy is measured on."""

    train: Split
    test: Split
