"""The server's optimizer against torch's own, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.training import OptimizerName
from runtime.optimizer import optimizer_for


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


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)], ids=str)
@settings(deadline=None, max_examples=20)
@given(before=st.integers(0, 5), after=st.integers(1, 5))
def test_one_that_takes_over_its_state_goes_on_with_the_same_bits(
    name: OptimizerName, momentum: float, before: int, after: int
) -> None:
    generator = torch.Generator().manual_seed(before)
    gradients = torch.randn(before + after, 50, generator=generator)
    flat, stopped = torch.ones(50), torch.ones(50)
    told = {"learning_rate": 0.1, "momentum": momentum, "weight_decay": 1e-3}
    whole, first = optimizer_for(name, flat, **told), optimizer_for(name, stopped, **told)
    for gradient in gradients[:before]:
        whole.step(gradient)
        first.step(gradient)
    state = first.state()
    resumed = stopped.clone()
    second = optimizer_for(name, resumed, **told)
    second.restore(state)
    # What was remembered is a copy: neither later steps nor their memory change it
    first.step(gradients[-1])
    for gradient in gradients[before:]:
        whole.step(gradient)
        second.step(gradient)
    assert torch.equal(resumed, flat)
    assert all(tensor.dim() == 1 for tensor in state.values()), "a checkpoint holds flat tensors"


def test_sgd_without_momentum_remembers_nothing() -> None:
    optimizer = optimizer_for("sgd", torch.ones(3), learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    optimizer.step(torch.ones(3))
    assert optimizer.state() == {}
