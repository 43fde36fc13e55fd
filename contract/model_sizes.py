"""What a model costs to train: its parameters, which travel, and its gradient, which is computed.

Pure; for plans. The parameters are those of `runtime.model`, and a test holds them to it; seconds are what one core
took, and only ever a guess for another.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from contract.catalogue import Dataset, Images, ImageShape, ModelName, images_of

_TINY, _GRAY = Images(ImageShape(1, 8, 8), 10), Images(ImageShape(1, 28, 28), 10)
_COLOUR, _COLOUR_100 = Images(ImageShape(3, 32, 32), 10), Images(ImageShape(3, 32, 32), 100)


class ModelSize(NamedTuple):
    """Of a model made for certain images."""

    parameters: int
    core_seconds: float
    """A gradient, for each sample of a batch, on one core."""


MODEL_SIZES: Final[Mapping[tuple[ModelName, Images], ModelSize]] = {}
"""core_seconds: one thread of an x86-64 server, batches of 32, two digits."""


def size_of(dataset: Dataset, model: ModelName) -> ModelSize:
    """Of the model as that data set wants it."""
    return MODEL_SIZES[model, images_of(dataset, model)]
