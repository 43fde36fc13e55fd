"""SGD with momentum on flat fp32 buffers, in place.

Runs in the parameter server; knows nothing of who sent a gradient or why it is applied.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class MomentumSGD:
    """The update of torch.optim.SGD, bit for bit: buf = momentum·buf + gradient; parameters -= lr·buf.

    As there, the first step takes the gradient itself as buf.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    def __init__(self, parameters: Tensor, *, learning_rate: float, momentum: float) -> None:
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._buffer: Tensor | None = None

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Change the parameters (flat, fp32) by one gradient of the same length."""
        if self._momentum == 0:
            self._parameters.add_(gradient, alpha=-self._learning_rate)
            return
        if self._buffer is None:
            self._buffer = gradient.clone()
        else:
            self._buffer.mul_(self._momentum).add_(gradient)
        self._parameters.add_(self._buffer, alpha=-self._learning_rate)


@torch.no_grad()
def weighted_sum(gradients: Mapping[int, Tensor], weights: Mapping[int, float], out: Tensor) -> Tensor:
    """Σ weight·gradient over the ranks of `weights`, written to `out` unless one gradient is the sum.

    Always in rank order: floating-point sums depend on it, and the same seed must give the same bits
    whichever worker came first.
    """
    ranks = sorted(weights)
    if len(ranks) == 1 and weights[ranks[0]] == 1:
        return gradients[ranks[0]]
    torch.mul(gradients[ranks[0]], weights[ranks[0]], out=out)
    for rank in ranks[1:]:
        out.add_(gradients[rank], alpha=weights[rank])
    return out
