"""Delay compensation: a stale gradient, corrected for what has become of the parameters since.

Runs in the parameter server, under the lock of its state. Knows nothing of connections or policies.
"""

from typing import Final

import torch
from torch import Tensor

from runtime.exchange import Snapshot

GIVEN_KEPT: Final = 4
"""Versions kept for each worker: one it computes on, and those of answers that may have been lost."""


class Backups:
    """The parameters that each worker was given, by version: what its next gradient was computed on."""

    def __init__(self) -> None:
        self._given: dict[int, dict[int, bytes]] = {}

    def give(self, rank: int, snapshot: Snapshot) -> None:
        """A worker gets these parameters. Bytes are shared with the snapshot, not copied."""
        given = self._given.setdefault(rank, {})
        given.pop(snapshot.version, None)
        given[snapshot.version] = snapshot.data
        if len(given) > GIVEN_KEPT:
            del given[next(iter(given))]

    def versions(self, rank: int) -> list[int]:
        """Versions that a gradient of this worker may have been computed on."""
        return list(self._given.get(rank, {}))

    def take(self, rank: int, version: int) -> Tensor:
        """The parameters (flat, fp32) of a version that the worker was given; it pushed, so they are forgotten."""
        data = self._given.pop(rank)[version]
        return torch.frombuffer(bytearray(data), dtype=torch.float32)


@torch.no_grad()
def compensate(gradient: Tensor, parameters: Tensor, backup: Tensor, dc_lambda: float) -> None:
    """Gradient += λ·gradient⊙gradient⊙(parameters - backup), in place; all flat, fp32, of one length.

    Source: Zheng et al. 2017 (arXiv:1609.08326).
    """
    gradient.add_(gradient.square().mul_(parameters - backup), alpha=dc_lambda)
