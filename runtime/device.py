"""The device that gradients are computed on: a GPU where torch sees one, else the CPU.

Runs in the worker; the server's parameters always stay in host memory, where the wire reads and writes them.
"""

import os
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

CPU = torch.device("cpu")


def choose_device() -> torch.device:
    """The first GPU, set to give the same bits every time as far as torch can, or the CPU."""
    if not torch.cuda.is_available():
        return CPU
    # cuBLAS reads it when it is first used.
    # Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda", 0)


def describe(device: torch.device) -> str:
    """`cpu`, or `cuda` and the GPU's name."""
    return device.type if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"


@dataclass(frozen=True)
class Mirror:
    """A vector on a device, and its like in host memory; on the CPU they are one and nothing is copied."""

    on_device: Tensor
    on_host: Tensor

    @classmethod
    def of(cls, vector: Tensor) -> Self:
        """The mirror of a vector; a GPU's is pinned, so that it is copied in one transfer."""
        if vector.device.type == "cpu":
            return cls(vector, vector)
        return cls(vector, torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True))

    def to_host(self) -> Tensor:
        """Bring the device's values to host memory, in one piece; returns them there."""
        if self.on_host is not self.on_device:
            self.on_host.copy_(self.on_device)
        return self.on_host

    def to_device(self) -> None:
        """Bring what was written to host memory to the device, in one piece."""
        if self.on_host is not self.on_device:
            self.on_device.copy_(self.on_host)
