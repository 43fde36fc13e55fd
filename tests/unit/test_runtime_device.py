"""Where gradients are computed, and how vectors get there."""

import torch

from runtime.device import CPU, Mirror, choose_device, describe


def test_a_gpu_is_taken_where_torch_sees_one() -> None:
    device = choose_device()
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert describe(device).startswith(device.type)
    assert describe(CPU) == "cpu"


def test_on_the_cpu_nothing_is_copied() -> None:
    vector = torch.arange(3.0)
    mirror = Mirror.of(vector)
    assert mirror.to_host() is vector
    mirror.on_host[0] = 7
    mirror.to_device()
    assert vector.tolist() == [7, 1, 2]


def test_elsewhere_each_side_gets_the_values_of_the_other() -> None:
    # Given two memories, as a GPU and its host have them
    mirror = Mirror(on_device=torch.tensor([1.0, 2.0]), on_host=torch.zeros(2))
    assert mirror.to_host().tolist() == [1, 2]
    mirror.on_host.mul_(3)
    assert mirror.on_device.tolist() == [1, 2]
    mirror.to_device()
    assert mirror.on_device.tolist() == [3, 6]
