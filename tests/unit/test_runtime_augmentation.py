"""Augmented images: shifted and mirrored, each its own way, the same every time."""

import pytest
import torch

from runtime.augmentation import PADDING, randomness, shift_and_mirror
from runtime.split import Split


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, 8, 10), generator=generator(1)).to(dtype)


def variants(image: torch.Tensor) -> list[torch.Tensor]:
    """All that a picture may become, by the definition."""
    _, height, width = image.shape
    padded = torch.nn.functional.pad(image, (PADDING,) * 4)
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * PADDING + 1)
        for left in range(2 * PADDING + 1)
    ]
    return [*crops, *(crop.flip(2) for crop in crops)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_image_is_a_crop_of_itself_padded_or_the_mirror_of_one(dtype: torch.dtype) -> None:
    images = pictures(40, dtype)
    augmented = shift_and_mirror(images, generator(0))
    assert augmented.dtype == dtype
    assert augmented.shape == images.shape
    for image, result in zip(images, augmented, strict=True):
        assert sum(torch.equal(result, variant) for variant in variants(image)) == 1


def test_every_shift_and_both_sides_come_up() -> None:
    image = pictures(1)
    augmented = shift_and_mirror(image.expand(4000, -1, -1, -1), generator(0))
    assert len({result.numpy().tobytes() for result in augmented}) == len(variants(image[0])) == 162


def test_the_same_seed_gives_the_same_images() -> None:
    images = pictures(8)
    first, again, other = (shift_and_mirror(images, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_seed_rank_and_epoch_draws_its_own() -> None:
    def draw(seed: int, rank: int, epoch: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=randomness(seed, rank, epoch)).tolist())

    cases = [(seed, rank, epoch) for seed in (0, 1) for rank in (0, 1) for epoch in (1, 2)]
    assert len({draw(*case) for case in cases}) == len(cases)
    assert draw(1, 0, 2) == draw(1, 0, 2)


def test_a_batch_is_augmented_only_where_it_is_asked_for() -> None:
    split = Split(pictures(8), torch.arange(8), mean=100.0, std=50.0)
    indices = torch.tensor([5, 2])
    plain, labels = split.batch(indices)
    augmented, same = split.batch(indices, augment=generator(0))
    assert torch.equal(plain, (split.images[indices].float() - 100) / 50)
    assert torch.equal(augmented, (shift_and_mirror(split.images[indices], generator(0)).float() - 100) / 50)
    assert labels.tolist() == same.tolist() == [5, 2]
    assert torch.equal(split.images, pictures(8)), "what is stored stays as it is"
