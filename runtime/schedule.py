"""Learning-rate schedules: what the learning rate is multiplied by, as training goes on.

Pure; runs in the parameter server. Time is counted in epochs of gradients that came, applied or not: in every
mode, with every number of workers, the same share of the data has the same learning rate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.training import ScheduleName

DECAY_FACTOR = 0.1
"""Of a step schedule that names none; as torch's StepLR."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up, times decay. `epochs`: the whole training."""

    epochs: float
    name: ScheduleName = "constant"
    decay_epochs: float | None = None
    decay_factor: float | None = None
    warmup_epochs: float = 0.0

    def factor(self, begins: float, ends: float) -> float:
        """For the update that takes training from epoch `begins` to epoch `ends` (fractions count).

        warm-up:   min(1, ends/warmup_epochs), which is above zero for the first update too
        constant:  1
        step:      decay_factor to the power of ⌊begins/decay_epochs⌋
        cosine:    (1 + cos(π·begins/epochs))/2
        Sources: Goyal et al. 2017 (arXiv:1706.02677) for warm-up, Loshchilov & Hutter 2017 (arXiv:1608.03983).
        """
        warmup = min(1.0, ends / self.warmup_epochs) if self.warmup_epochs else 1.0
        return warmup * self._decay(begins)

    def _decay(self, epoch: float) -> float:
        match self.name:
            case "constant":
                return 1.0
            case "step":
                if self.decay_epochs is None:
                    raise ValueError("a step schedule says after how many epochs it falls")
                # Epochs are quotients of counts: the last bit must not put a boundary one update late.
                falls = math.floor(epoch / self.decay_epochs + 1e-9)
                return float((self.decay_factor or DECAY_FACTOR) ** falls)
            case "cosine":
                return (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0))) / 2


class Progress:
    """How far training has come, in epochs, by the gradients that came.

    A straight line up to the last gradient that is to come. Who is lost, is back or skips steps makes that another one:
    the line then goes on from where it is, steeper or flatter, never goes back, and still ends at the last epoch. Where
    nobody is lost, it is gradients · (epochs / all gradients).
    """

    def __init__(self, epochs: float) -> None:
        """`epochs`: the whole training."""
        self.gradients = 0
        """That came, applied or dropped."""
        self._epochs = epochs
        self._bend, self._bend_epoch = 0, 0.0
        """Where the line begins: after how many gradients, and at which epoch."""
        self._last = 0
        """How many gradients there are in the end."""

    def expect(self, to_come: int) -> None:
        """So many gradients are still to come."""
        last = self.gradients + to_come
        # A server that goes on for another one expects the same again: the line must be the same, to the last bit.
        if last != self._last:
            self._bend, self._bend_epoch, self._last = self.gradients, self.epoch(), last

    def epoch(self, more: int = 0) -> float:
        """The epoch (fractions count) once `more` gradients have come."""
        if self._last == self._bend:
            return self._bend_epoch
        per_gradient = max(self._epochs - self._bend_epoch, 0.0) / (self._last - self._bend)
        return self._bend_epoch + (self.gradients + more - self._bend) * per_gradient

    def facts(self) -> dict[str, Any]:
        """All of it as JSON values, for a server that takes this one's place."""
        return {
            "gradients": self.gradients,
            "bend": self._bend,
            "bend_epoch": self._bend_epoch,
            "last": self._last,
        }

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.gradients, self._last = facts["gradients"], facts["last"]
        self._bend, self._bend_epoch = facts["bend"], facts["bend_epoch"]
