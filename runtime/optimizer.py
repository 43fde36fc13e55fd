"""Optimizers on flat fp32 buffers, in place: SGD with momentum, Adam.

Runs in the parameter server; knows nothing of who sent a gradient or why it is applied.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from contract.training import OptimizerName

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as in the paper and in torch."""


class Optimizer(Protocol):
    """Changes the parameters that it was made with."""

    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        """One update by a gradient of the parameters' length, with `factor` times the learning rate."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of what it remembers beside the parameters, by name; empty before the first step."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what `state` said."""
        ...


class MomentumSGD:
    """The update of torch.optim.SGD, bit for bit: buf = momentum·buf + gradient; parameters -= lr·buf.

    As there, weight_decay·parameters is added to the gradient first, and the first step takes that for buf.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    def __init__(
        self, parameters: Tensor, *, learning_rate: float, momentum: float, weight_decay: float = 0.0
    ) -> None:
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._buffer: Tensor | None = None

    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        """Change the parameters (flat, fp32) by one gradient of the same length."""
        rate = self._learning_rate * factor
        if self._weight_decay:
            gradient = gradient.add(self._parameters, alpha=self._weight_decay)
        if self._momentum == 0:
            self._parameters.add_(gradient, alpha=-rate)
            return
        if self._buffer is None:
            self._buffer = gradient.clone()
        else:
            self._buffer.mul_(self._momentum).add_(gradient)
        self._parameters.add_(self._buffer, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """The momentum buffer."""
        return {} if self._buffer is None else {"momentum": self._buffer.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a momentum buffer."""
        self._buffer = state["momentum"].clone() if "momentum" in state else None


class Adam:
    """The update of torch.optim.Adam, bit for bit: parameters -= lr·m̂ / (√v̂ + ε), in the t-th step.

    m = β₁·m + (1-β₁)·gradient, v = β₂·v + (1-β₂)·gradient², m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ); weight_decay·parameters
    is added to the gradient first.
    Sources: Kingma & Ba 2015 (arXiv:1412.6980); https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html
    """

    def __init__(self, parameters: Tensor, *, learning_rate: float, weight_decay: float = 0.0) -> None:
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._mean = torch.zeros_like(parameters)
        self._square = torch.zeros_like(parameters)
        self._steps = 0

    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        """Change the parameters (flat, fp32) by one gradient of the same length."""
        self._steps += 1
        if self._weight_decay:
            gradient = gradient.add(self._parameters, alpha=self._weight_decay)
        self._mean.lerp_(gradient, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = self._learning_rate * factor / (1 - BETA1**self._steps)
        scale = (self._square.sqrt() / (1 - BETA2**self._steps) ** 0.5).add_(EPSILON)
        self._parameters.addcdiv_(self._mean, scale, value=-rate)

    def state(self) -> dict[str, Tensor]:
        """Both moments, and the number of steps."""
        steps = torch.tensor([self._steps])
        return {"mean": self._mean.clone(), "square": self._square.clone(), "steps": steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over both moments and the number of steps."""
        if state:
            self._mean.copy_(state["mean"])
            self._square.copy_(state["square"])
            self._steps = int(state["steps"])


def optimizer_for(
    name: OptimizerName, parameters: Tensor, *, learning_rate: float, momentum: float, weight_decay: float
) -> Optimizer:
    """The optimizer of that name for `parameters` (flat, fp32), which it will change in place."""
    match name:
        case "sgd":
            return MomentumSGD(
                parameters, learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay
            )
        case "adam":
            return Adam(parameters, learning_rate=learning_rate, weight_decay=weight_decay)
