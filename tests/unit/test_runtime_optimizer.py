"""The server's optimizer against torch's own, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.training import OptimizerName
from runtime.optimizer import optimizer_for, weighted_sum


@pytest.mark.parametrize(
    ("name", "momentum"), [("sgd", 0.0), ("sgd", 0.5), ("sgd", 0.9), ("adam", 0.0)], ids=str
)
@pytest.mark.parametrize("weight_decay", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("learning_rate", [0.03, 1.0])
@pytest.mark.parametrize("scheduled", [False, True])
def test_it_makes_the_updates_of_torch_bit_for_bit(
    name: OptimizerName, momentum: float, weight_decay: float, learning_rate: float, scheduled: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(1000, generator=generator)
    reference = flat.clone().requires_grad_()
    theirs: torch.optim.Optimizer = (
        torch.optim.SGD([reference], lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
        if name == "sgd"
        else torch.optim.Adam([reference], lr=learning_rate, weight_decay=weight_decay)
    )
    ours = optimizer_for(
        name, flat, learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    for step in range(20):
        factor = 1 / (step + 1) if scheduled else 1.0
        theirs.param_groups[0]["lr"] = learning_rate * factor
        gradient = torch.randn(1000, generator=generator)
        before = gradient.clone()
        reference.grad = gradient.clone()
        theirs.step()
        ours.step(gradient, factor)
        assert torch.equal(flat, reference.detach())
        assert torch.equal(gradient, before), "the gradient is the worker's and stays as it was"


@settings(deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 2**31))
def test_a_sum_does_not_depend_on_who_came_first(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = {rank: torch.randn(64, generator=generator) * 10.0**rank for rank in range(4)}
    expected = weighted_sum(gradients, dict.fromkeys(range(4), 0.25), out=torch.empty(64))
    shuffled = weighted_sum(gradients, dict.fromkeys(order, 0.25), out=torch.empty(64))
    assert torch.equal(shuffled, expected)
    mean = torch.stack(list(gradients.values())).double().mean(dim=0)
    assert torch.allclose(expected.double(), mean, rtol=1e-5, atol=1e-4)


def test_one_whole_gradient_is_not_copied() -> None:
    gradients = {2: torch.ones(8)}
    assert weighted_sum(gradients, {2: 1.0}, out=torch.zeros(8)) is gradients[2]
    assert torch.equal(weighted_sum(gradients, {2: 0.5}, out=torch.zeros(8)), torch.full((8,), 0.5))
