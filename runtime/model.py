"""The models: small ones for small images, and torchvision's by name, made for 28×28 and 32×32.

Runs on both sides, which must build the same one. None has BatchNorm: its running averages are no parameters,
so they would never be pushed, and every worker would test the global parameters with statistics of its own.
GroupNorm stands in its place, after Hsieh et al., "The Non-IID Data Quagmire" (2020): docs/decisions, 11. None has
dropout either: a model is the same function in training and in testing.
"""

from math import gcd

import torch
from torch import nn

from contract.catalogue import Images, ModelName
from runtime.vision import import_torchvision


def build_model(name: ModelName, images: Images, seed: int) -> nn.Module:
    """The model for such images, with the initial parameters that `seed` says.

    Takes batches (count × channels × height × width, fp32) to logits (count × classes). The process's own random
    state is kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(name, images)


def _build(name: ModelName, images: Images) -> nn.Module:
    match name:
        case ModelName.DIGITS_CNN:
            return _digits_cnn(images)
        case ModelName.CIFAR_CNN:
            return _cifar_cnn(images)
        case ModelName.MLP:
            return _mlp(images)
        case ModelName.LOGISTIC_REGRESSION:
            return nn.Sequential(nn.Flatten(), nn.Linear(_pixels(images), images.classes))
        case ModelName.RESNET18 | ModelName.RESNET34:
            return _resnet(name, images)
        case ModelName.MOBILENET_V2:
            return _mobilenet_v2(images)


def _pixels(images: Images) -> int:
    return images.shape.channels * images.shape.height * images.shape.width


def _mlp(images: Images) -> nn.Module:
    """Two hidden layers; 85,002 parameters for the 8×8 digits."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(_pixels(images), 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, images.classes),
    )


def _digits_cnn(images: Images) -> nn.Module:
    """38,282 parameters for the 8×8 digits: 153 kB, one message; 406,922 for MNIST."""
    shape = images.shape
    return nn.Sequential(
        nn.Conv2d(shape.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (shape.height // 2) * (shape.width // 2), 64),
        nn.ReLU(),
        nn.Linear(64, images.classes),
    )


def _cifar_cnn(images: Images) -> nn.Module:
    """620,810 parameters for CIFAR10: 2.5 MB, one message."""
    shape = images.shape
    return nn.Sequential(
        _block(shape.channels, 32),
        _block(32, 64),
        _block(64, 128),
        nn.Flatten(),
        nn.Linear(128 * (shape.height // 8) * (shape.width // 8), 256),
        nn.ReLU(),
        nn.Linear(256, images.classes),
    )


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(), nn.MaxPool2d(2)
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, as Wu & He, "Group Normalization" (2018); fewer where a group would have but one channel."""
    return nn.GroupNorm(gcd(32, channels // 2), channels)


def _resnet(name: ModelName, images: Images) -> nn.Module:
    """torchvision's, with the stem for small images; resnet18: 11,173,962 parameters for CIFAR10, 44.7 MB.

    The stem is as in He et al., "Deep Residual Learning" (2015), 4.2: a 3×3 convolution of stride 1, no max-pool.
    ImageNet's stem would leave 8×8 of a 32×32 image before the first block.
    """
    model: nn.Module = import_torchvision().models.get_model(
        name, weights=None, num_classes=images.classes, norm_layer=_group_norm
    )
    model.conv1 = _stem(images, 64)
    model.maxpool = nn.Identity()
    return model


def _stem(images: Images, outputs: int) -> nn.Conv2d:
    """A first convolution that keeps the size; drawn as torchvision draws its own."""
    stem = nn.Conv2d(images.shape.channels, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


def _mobilenet_v2(images: Images) -> nn.Module:
    """torchvision's, with strides for small images; 2,236,682 parameters for CIFAR10, 8.9 MB.

    ImageNet's five halvings would leave one pixel: the stem and the first group of blocks that halves keep
    the size.
    """
    settings = [  # expansion, channels, blocks, stride: Sandler et al., "MobileNetV2" (2018), table 2
        [1, 16, 1, 1],
        [6, 24, 2, 1],  # stride 2 there
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model: nn.Module = import_torchvision().models.mobilenet_v2(
        weights=None,
        num_classes=images.classes,
        inverted_residual_setting=settings,
        norm_layer=_group_norm,
        dropout=0.0,
    )
    model.get_submodule("features.0")[0] = _stem(images, 32)  # type: ignore[operator]  # a Sequential
    return model
