"""How long a step's computation lasts when it is emulated.

Pure; runs in the worker. Many workers on few cores cannot show how training scales: with emulated compute the
gradient is real, and the step lasts as long as a seeded draw says.
"""

import math
from typing import Literal

from runtime.seeding import derive_seed

Distribution = Literal["exponential", "constant"]


def draw_seconds(seed: int, rank: int, step: int, distribution: Distribution, mean_ms: float) -> float:
    """Duration of one step's computation, in seconds: the same for the same seed, rank and step.

    Exponential draws come from the inverse of the distribution function: -mean · ln(u), u in (0, 1].
    """
    mean_seconds = mean_ms / 1000
    if distribution == "constant":
        return mean_seconds
    uniform = (derive_seed("compute", seed, rank, step) + 1) / 2**63
    return -mean_seconds * math.log(uniform)
