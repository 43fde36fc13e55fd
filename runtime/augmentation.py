"""Augmentation of training images: shifted by up to four pixels and mirrored, at random.

Pure; runs in the worker. The usual one for CIFAR (He et al., "Deep Residual Learning", 2015, 4.2: pad by 4, crop
at random, flip horizontally), on whole batches at once.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional

from contract.seeding import derive_seed

PADDING = 4


def randomness(seed: int, rank: int, epoch: int) -> Generator:
    """What a rank draws from in an epoch: the same every time, and no other rank's or epoch's."""
    return Generator().manual_seed(derive_seed("augment", seed, rank, epoch))


def shift_and_mirror(images: Tensor, generator: Generator) -> Tensor:
    """A batch of the same shape (count × channels × height × width) and type, black where it was shifted in.

    Every image has a shift and a side of its own, drawn from `generator`.
    """
    count, channels, height, width = images.shape
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (PADDING,) * 4)
    return padded[
        torch.arange(count).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(count, 1, height, 1),
        columns.view(count, 1, 1, width),
    ]
