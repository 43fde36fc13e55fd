"""The models: small CNNs for 8×8 and 32×32 images.

Runs on both sides, which must build the same one. No BatchNorm: its running averages are no parameters, so
they would never be pushed, and every worker would test the global parameters with statistics of its own.
"""

from typing import NamedTuple

import torch
from torch import nn

from contract.training import ModelName

CLASSES = 10


class ImageShape(NamedTuple):
    """Channels × height × width."""

    channels: int
    height: int
    width: int


INPUT_SHAPES = {
    ModelName.DIGITS_CNN: ImageShape(1, 8, 8),
    ModelName.CIFAR_CNN: ImageShape(3, 32, 32),
}


def build_model(name: ModelName, seed: int) -> nn.Module:
    """The model with the initial parameters that `seed` says; the process's own random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match name:
            case ModelName.DIGITS_CNN:
                return _digits_cnn()
            case ModelName.CIFAR_CNN:
                return _cifar_cnn()


def _digits_cnn() -> nn.Module:
    """38,282 parameters: 153 kB, one message."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def _cifar_cnn() -> nn.Module:
    """620,810 parameters: 2.5 MB, in chunks. GroupNorm keeps no running averages."""
    return nn.Sequential(
        _block(3, 32),
        _block(32, 64),
        _block(64, 128),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 256),
        nn.ReLU(),
        nn.Linear(256, CLASSES),
    )


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(), nn.MaxPool2d(2)
    )
