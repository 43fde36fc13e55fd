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


MODEL_SIZES: Final[Mapping[tuple[ModelName, Images], ModelSize]] = {
    (ModelName.DIGITS_CNN, _TINY): ModelSize(38_282, 5e-05),
    (ModelName.DIGITS_CNN, _GRAY): ModelSize(406_922, 0.0022),
    (ModelName.CIFAR_CNN, _GRAY): ModelSize(390_858, 0.004),
    (ModelName.CIFAR_CNN, _COLOUR): ModelSize(620_810, 0.0025),
    (ModelName.CIFAR_CNN, _COLOUR_100): ModelSize(643_940, 0.0051),
    (ModelName.MLP, _TINY): ModelSize(85_002, 1.2e-05),
    (ModelName.MLP, _GRAY): ModelSize(269_322, 2.2e-05),
    (ModelName.MLP, _COLOUR): ModelSize(855_050, 5.7e-05),
    (ModelName.MLP, _COLOUR_100): ModelSize(878_180, 6.1e-05),
    (ModelName.LOGISTIC_REGRESSION, _TINY): ModelSize(650, 3.2e-06),
    (ModelName.LOGISTIC_REGRESSION, _GRAY): ModelSize(7_850, 4.1e-06),
    (ModelName.LOGISTIC_REGRESSION, _COLOUR): ModelSize(30_730, 7e-06),
    (ModelName.LOGISTIC_REGRESSION, _COLOUR_100): ModelSize(307_300, 2e-05),
    (ModelName.RESNET18, _GRAY): ModelSize(11_172_810, 0.14),
    (ModelName.RESNET18, _COLOUR): ModelSize(11_173_962, 0.14),
    (ModelName.RESNET18, _COLOUR_100): ModelSize(11_220_132, 0.29),
    (ModelName.RESNET34, _GRAY): ModelSize(21_280_970, 0.23),
    (ModelName.RESNET34, _COLOUR): ModelSize(21_282_122, 0.4),
    (ModelName.RESNET34, _COLOUR_100): ModelSize(21_328_292, 0.34),
    (ModelName.MOBILENET_V2, _GRAY): ModelSize(2_236_106, 0.017),
    (ModelName.MOBILENET_V2, _COLOUR): ModelSize(2_236_682, 0.14),
    (ModelName.MOBILENET_V2, _COLOUR_100): ModelSize(2_351_972, 0.14),
}
"""core_seconds: one thread of an x86-64 server, batches of 32, two digits."""


def size_of(dataset: Dataset, model: ModelName) -> ModelSize:
    """Of the model as that data set wants it."""
    return MODEL_SIZES[model, images_of(dataset, model)]
