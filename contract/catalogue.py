"""The data sets and models that a study names, and which of them go together.

Read by the study document and, as what to build, by the runtime; knows neither pixels nor layers.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Dataset(StrEnum):
    """What is learned."""

    DIGITS = "digits"
    SYNTHETIC = "synthetic"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    MNIST = "mnist"
    FASHION_MNIST = "fashion-mnist"


class ModelName(StrEnum):
    """What learns it."""

    DIGITS_CNN = "digits-cnn"
    CIFAR_CNN = "cifar-cnn"
    MLP = "mlp"
    LOGISTIC_REGRESSION = "logistic-regression"
    RESNET18 = "resnet18"
    RESNET34 = "resnet34"
    MOBILENET_V2 = "mobilenet_v2"


class ImageShape(NamedTuple):
    """Channels × height × width."""

    channels: int
    height: int
    width: int


class Images(NamedTuple):
    """What a model must take, and how many classes it must tell apart."""

    shape: ImageShape
    classes: int


_TINY, _GRAY, _COLOUR = ImageShape(1, 8, 8), ImageShape(1, 28, 28), ImageShape(3, 32, 32)

_IMAGES: Mapping[Dataset, Images] = {
    Dataset.DIGITS: Images(_TINY, classes=10),
    Dataset.CIFAR10: Images(_COLOUR, classes=10),
    Dataset.CIFAR100: Images(_COLOUR, classes=100),
    Dataset.MNIST: Images(_GRAY, classes=10),
    Dataset.FASHION_MNIST: Images(_GRAY, classes=10),
}

_FLAT = (ModelName.MLP, ModelName.LOGISTIC_REGRESSION)
_DEEP = (ModelName.RESNET18, ModelName.RESNET34, ModelName.MOBILENET_V2)
"""They halve an image three times and still look for patterns in it: 8×8 would be one pixel by then."""

MODELS_FOR: Mapping[Dataset, tuple[ModelName, ...]] = {
    Dataset.DIGITS: (ModelName.DIGITS_CNN, *_FLAT),
    Dataset.SYNTHETIC: (ModelName.DIGITS_CNN, ModelName.CIFAR_CNN, *_FLAT, *_DEEP),
    Dataset.CIFAR10: (ModelName.CIFAR_CNN, *_FLAT, *_DEEP),
    Dataset.CIFAR100: (ModelName.CIFAR_CNN, *_FLAT, *_DEEP),
    Dataset.MNIST: (ModelName.DIGITS_CNN, ModelName.CIFAR_CNN, *_FLAT, *_DEEP),
    Dataset.FASHION_MNIST: (ModelName.DIGITS_CNN, ModelName.CIFAR_CNN, *_FLAT, *_DEEP),
}
"""Models that fit a dataset's images; the first is the default."""

STORED = frozenset({Dataset.CIFAR10, Dataset.CIFAR100, Dataset.MNIST, Dataset.FASHION_MNIST})
"""Data sets that tasks read from S3 or a folder; the others come with the runtime."""

AUGMENTED = frozenset({Dataset.CIFAR10, Dataset.CIFAR100})
"""Data sets whose images may be shifted and mirrored: a mirrored digit is another thing."""


def images_of(dataset: Dataset, model: ModelName) -> Images:
    """The images of a data set; synthetic ones are made as large as their model is meant for."""
    if dataset is Dataset.SYNTHETIC:
        small = model in (ModelName.DIGITS_CNN, *_FLAT)
        return Images(_TINY if small else _COLOUR, classes=10)
    return _IMAGES[dataset]


def catalogue_problems(
    dataset: Dataset, model: ModelName | None, *, data: str | None, augment: bool
) -> dict[str, str]:
    """What does not go together, by the field that should change: `model`, `data`, `augment`."""
    problems = {}
    if model is not None and model not in (fitting := MODELS_FOR[dataset]):
        problems["model"] = f"{model} does not fit {dataset}; choose {', '.join(fitting)}"
    if dataset not in STORED and data:
        problems["data"] = f"{dataset} is built in; leave it out"
    if augment and dataset not in AUGMENTED:
        problems["augment"] = f"does not fit {dataset}; it is for {', '.join(sorted(AUGMENTED))}"
    return problems


class Samples(NamedTuple):
    """How many images there are to learn from, and to test."""

    train: int
    test: int


SAMPLES: Mapping[Dataset, Samples] = {
    Dataset.DIGITS: Samples(1437, 360),
    Dataset.SYNTHETIC: Samples(2048, 512),
    Dataset.CIFAR10: Samples(50_000, 10_000),
    Dataset.CIFAR100: Samples(50_000, 10_000),
    Dataset.MNIST: Samples(60_000, 10_000),
    Dataset.FASHION_MNIST: Samples(60_000, 10_000),
}
"""Of the data sets as they are published; a folder may hold fewer under the same name."""
