"""Models, and the flat buffers under them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from contract.catalogue import MODELS_FOR, Dataset, Images, ImageShape, ModelName, images_of
from runtime.model import build_model
from runtime.parameters import FlatModel, count_non_finite
from runtime.vision import import_torchvision

PAIRS = sorted(
    {(model, images_of(dataset, model)) for dataset in MODELS_FOR for model in MODELS_FOR[dataset]}
)
CIFAR10 = images_of(Dataset.CIFAR10, ModelName.RESNET18)
DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As tasks have it; the tests share the cores too."""
    torch.set_num_threads(1)


def noise(images: Images, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *images.shape, generator=torch.Generator().manual_seed(0))


def test_every_dataset_has_models_and_every_model_a_dataset() -> None:
    assert MODELS_FOR.keys() == set(Dataset)
    assert {model for models in MODELS_FOR.values() for model in models} == set(ModelName)


@pytest.mark.parametrize(("name", "images"), PAIRS)
def test_a_model_takes_the_images_of_its_data_and_has_a_gradient_everywhere(
    name: ModelName, images: Images
) -> None:
    model = FlatModel(build_model(name, images, seed=0))
    logits = model.module(noise(images))
    assert logits.shape == (2, images.classes)
    functional.cross_entropy(logits, torch.tensor([0, images.classes - 1])).backward()
    assert model.gradient.isfinite().all()
    for part, gradient in model.module.named_parameters():
        assert gradient.grad is not None, part
        assert gradient.grad.any(), part


@pytest.mark.parametrize("name", ModelName)
def test_a_model_follows_from_its_seed_and_leaves_the_random_state_alone(name: ModelName) -> None:
    images = images_of(Dataset.SYNTHETIC, name)
    state = torch.random.get_rng_state()
    first, again, other = (FlatModel(build_model(name, images, seed)).parameters for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "dataset", "length"),
    [
        (ModelName.DIGITS_CNN, Dataset.DIGITS, 38_282),
        (ModelName.DIGITS_CNN, Dataset.MNIST, 406_922),
        (ModelName.MLP, Dataset.DIGITS, 85_002),
        (ModelName.LOGISTIC_REGRESSION, Dataset.MNIST, 28 * 28 * 10 + 10),
        (ModelName.CIFAR_CNN, Dataset.CIFAR10, 620_810),
        (ModelName.RESNET18, Dataset.CIFAR10, 11_173_962),
        (ModelName.RESNET18, Dataset.CIFAR100, 11_173_962 + 90 * 513),
        (ModelName.RESNET34, Dataset.CIFAR10, 21_282_122),
        (ModelName.MOBILENET_V2, Dataset.CIFAR10, 2_236_682),
    ],
)
def test_models_have_the_size_that_their_docstrings_name(
    name: ModelName, dataset: Dataset, length: int
) -> None:
    assert FlatModel(build_model(name, images_of(dataset, name), seed=0)).length == length


def test_resnet18_is_torchvisions_but_for_the_stem_and_the_normalisation() -> None:
    ours = build_model(ModelName.RESNET18, CIFAR10, seed=0)
    theirs = import_torchvision().models.resnet18(num_classes=10)
    assert {name: part.shape for name, part in ours.named_parameters() if name != "conv1.weight"} == {
        name: part.shape for name, part in theirs.named_parameters() if name != "conv1.weight"
    }
    stem = ours.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((3, 3), (1, 1), 64)
    assert stem(noise(CIFAR10)).shape[2:] == (32, 32)
    assert not isinstance(ours.get_submodule("maxpool"), nn.MaxPool2d)


@pytest.mark.parametrize("name", [ModelName.RESNET18, ModelName.MOBILENET_V2])
def test_deep_models_still_see_four_by_four_places_at_the_end(name: ModelName) -> None:
    sizes: list[torch.Size] = []
    model = build_model(name, CIFAR10, seed=0)
    last = model.get_submodule("layer4" if name is ModelName.RESNET18 else "features")
    last.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    model(noise(CIFAR10))
    assert sizes == [(4, 4)]


@pytest.mark.parametrize("name", ModelName)
def test_a_model_is_the_same_function_in_training_and_testing_image_by_image(name: ModelName) -> None:
    """No running averages and no dropout; nor does an image's answer depend on what else is in its batch."""
    images = images_of(Dataset.SYNTHETIC, name)
    model = build_model(name, images, seed=0)
    batch = noise(images, count=3)
    with torch.no_grad():
        training, testing = model.train()(batch), model.eval()(batch)
        alone = model(batch[:1])
    assert torch.equal(training, testing)
    assert torch.allclose(alone, training[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        (ModelName.DIGITS_CNN, DIGITS),
        (ModelName.RESNET18, Images(ImageShape(1, 28, 28), 10)),
    ],
)
def test_parameters_and_gradients_are_views_into_the_flat_buffers(name: ModelName, images: Images) -> None:
    plain, flat = build_model(name, images, 0), FlatModel(build_model(name, images, 0))
    for module in (plain, flat.module):
        module(noise(images)).sum().backward()
    gradients = [part.grad.reshape(-1) for part in plain.parameters() if part.grad is not None]
    assert torch.equal(flat.gradient, torch.cat(gradients))
    flat.parameters.zero_()
    assert not flat.module(noise(images)).any()


def test_a_flat_model_leaves_nothing_behind() -> None:
    """What is pushed is all that resnet18 has: it keeps no buffers, as torchvision's own would."""
    theirs = import_torchvision().models.resnet18(num_classes=10)
    with pytest.raises(ValueError, match="ResNet has buffers"):
        FlatModel(theirs)
    ours = FlatModel(build_model(ModelName.RESNET18, CIFAR10, seed=0))
    assert sum(value.numel() for value in ours.module.state_dict().values()) == ours.length


@pytest.mark.parametrize(
    ("module", "reason"),
    [(torch.nn.BatchNorm1d(3), "has buffers"), (torch.nn.Linear(2, 2).double(), "not fp32")],
)
def test_models_that_a_flat_buffer_cannot_carry_are_refused(module: torch.nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FlatModel(module)


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ([1.0, -1.0, 0.0], 0),
        ([3e38, 3e38, 1.0], 0),  # the sum overflows, no value has
        ([float("inf"), float("-inf"), 1.0], 2),
        ([3e38, 3e38, float("nan")], 1),
    ],
)
def test_values_that_are_not_finite_are_counted_and_large_ones_are_not(values: list[float], bad: int) -> None:
    assert count_non_finite(torch.tensor(values)) == bad
