"""Learning-rate schedules: what the learning rate is multiplied by, as training goes on.

Pure; runs in the parameter server. Time is counted in epochs of gradients that came, applied or not: in every
mode, with every number of workers, the same share of the data has the same learning rate.
"""

import math
from dataclasses import dataclass

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
