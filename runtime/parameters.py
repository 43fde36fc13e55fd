"""One flat fp32 buffer under a model's parameters, and one under its gradients, on the model's device.

Runs on both sides. A push is then one contiguous piece of memory: nothing is gathered or scattered.
"""

import math

import torch
from torch import Tensor, nn


class FlatModel:
    """A model whose parameters and gradients are views into `parameters` and `gradient`.

    Both are contiguous, one-dimensional and fp32, in the order of `module.parameters()`.
    """

    def __init__(self, module: nn.Module) -> None:
        """Move the module's parameters into flat buffers. Raises ValueError for what they cannot carry."""
        if any(True for _ in module.buffers()):
            # BatchNorm's running averages would stay behind on each worker: docs/decisions, 11.
            raise ValueError(f"{type(module).__name__} has buffers beside its parameters: not supported")
        parts = list(module.parameters())
        if any(part.dtype != torch.float32 for part in parts):
            raise ValueError(f"{type(module).__name__} has parameters that are not fp32: not supported")
        self.module = module
        self.parameters = torch.cat([part.detach().reshape(-1) for part in parts])
        self.gradient = torch.zeros_like(self.parameters)
        self._point_at_buffers()

    def move_to(self, parameters: Tensor, gradient: Tensor) -> None:
        """Live in these buffers from now on (flat, fp32, of the model's length and device)."""
        parameters.copy_(self.parameters)
        gradient.copy_(self.gradient)
        self.parameters, self.gradient = parameters, gradient
        self._point_at_buffers()

    def _point_at_buffers(self) -> None:
        start = 0
        for part in self.module.parameters():
            end = start + part.numel()
            part.data = self.parameters[start:end].view_as(part)
            part.grad = self.gradient[start:end].view_as(part)
            start = end

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.parameters.device

    @property
    def length(self) -> int:
        """Number of parameters."""
        return self.parameters.numel()


def count_non_finite(values: Tensor) -> int:
    """How many of the values (flat, fp32) are NaN or infinite: one would spoil the parameters for all."""
    # Exact: no addition makes a NaN or an infinity finite again, so a finite sum has finite terms. One that is not may
    # also have overflowed, and is looked at closely. It costs no temporary, and as long as memory takes to be read.
    if math.isfinite(values.sum().item()):
        return 0
    return values.numel() - int(torch.isfinite(values).sum())


def memory_of(flat: Tensor) -> memoryview:
    """The bytes of a flat fp32 tensor, writable, without a copy."""
    return flat.numpy().data.cast("B")
