"""Data sets and models."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.errors import TrainingFailed
from contract.training import MODELS_FOR, Dataset, ModelName
from runtime.dataset import load_dataset
from runtime.model import INPUT_SHAPES, build_model
from runtime.parameters import FlatModel

DIGITS_SHAPE = INPUT_SHAPES[ModelName.DIGITS_CNN]
CIFAR_SHAPE = INPUT_SHAPES[ModelName.CIFAR_CNN]


def test_digits_are_split_into_1437_and_360_with_every_class_in_proportion() -> None:
    data = load_dataset(Dataset.DIGITS, DIGITS_SHAPE, "")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (1, 8, 8)
    for digit in range(10):
        train, test = (int((split.labels == digit).sum()) for split in (data.train, data.test))
        assert abs(test - (train + test) / 5) < 1


def test_digits_are_standardised() -> None:
    data = load_dataset(Dataset.DIGITS, DIGITS_SHAPE, "")
    images, _ = data.train.batch(torch.arange(len(data.train)))
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.05
    assert abs(float(images.std()) - 1) < 0.05


@pytest.mark.parametrize("model", MODELS_FOR[Dataset.SYNTHETIC])
def test_synthetic_data_take_the_shape_of_the_model_and_are_always_the_same(model: ModelName) -> None:
    data = load_dataset(Dataset.SYNTHETIC, INPUT_SHAPES[model], "")
    again = load_dataset(Dataset.SYNTHETIC, INPUT_SHAPES[model], "")
    assert data.train.images.shape[1:] == INPUT_SHAPES[model]
    assert torch.equal(data.train.images, again.train.images)
    images, labels = data.test.batch(torch.arange(20))
    assert build_model(model, seed=0)(images).shape == (20, 10)
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("content", [None, b"", b"not a pickle"])
def test_a_missing_or_damaged_cifar10_is_one_clear_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        for name in ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
            (folder / name).write_bytes(content)
    with pytest.raises(TrainingFailed) as caught:
        load_dataset(Dataset.CIFAR10, CIFAR_SHAPE, str(tmp_path))
    assert "cifar-10-batches-py" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cifar10_is_read_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given files of CIFAR10's form, with the sums that torchvision expects of them
    with pytest.raises(TrainingFailed):
        load_dataset(Dataset.CIFAR10, CIFAR_SHAPE, str(tmp_path))  # imports torchvision
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - cannot be imported before

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    def batch(value: int) -> dict[str, object]:
        return {"data": np.full((3, 3072), value, dtype=np.uint8), "labels": [value, 0, 1]}

    train = [write("data_batch_1", batch(7)), write("data_batch_2", batch(8))]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(9))])
    name, digest = write("batches.meta", {"label_names": ["plane", "car"]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    # When it is loaded
    data = load_dataset(Dataset.CIFAR10, CIFAR_SHAPE, str(tmp_path))
    # Then images are channels first, beside their labels
    assert data.train.images.shape == (6, *CIFAR_SHAPE)
    assert data.train.labels.tolist() == [7, 0, 1, 8, 0, 1]
    images, labels = data.test.batch(torch.tensor([0]))
    assert images.shape == (1, *CIFAR_SHAPE)
    assert labels.tolist() == [9]


def test_a_model_follows_from_its_seed_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (FlatModel(build_model(ModelName.DIGITS_CNN, seed)) for seed in (1, 1, 2))
    assert torch.equal(first.parameters, again.parameters)
    assert not torch.equal(first.parameters, other.parameters)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "length"), [(ModelName.DIGITS_CNN, 38_282), (ModelName.CIFAR_CNN, 620_810)]
)
def test_models_have_the_size_that_their_docstrings_name(model: ModelName, length: int) -> None:
    assert FlatModel(build_model(model, seed=0)).length == length


def test_parameters_and_gradients_are_views_into_the_flat_buffers() -> None:
    plain, flat = build_model(ModelName.DIGITS_CNN, 0), FlatModel(build_model(ModelName.DIGITS_CNN, 0))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for module in (plain, flat.module):
        module(images).sum().backward()
    gradients = [part.grad.reshape(-1) for part in plain.parameters() if part.grad is not None]
    assert torch.equal(flat.gradient, torch.cat(gradients))
    flat.parameters.zero_()
    assert not flat.module(images).any()


@pytest.mark.parametrize(
    ("module", "reason"),
    [(torch.nn.BatchNorm1d(3), "has buffers"), (torch.nn.Linear(2, 2).double(), "not fp32")],
)
def test_models_that_a_flat_buffer_cannot_carry_are_refused(module: torch.nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FlatModel(module)
