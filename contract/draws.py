"""How long a step's computation lasts when it is emulated.

Pure; the worker sleeps for them, and whoever plans an experiment knows them before. Many workers on few cores cannot
show how training scales: with emulated compute the gradient is real, and the step lasts as long as a seeded draw says.
"""

import math

from contract.compute import Compute
from contract.seeding import derive_seed


def draw_seconds(seed: int, rank: int, step: int, compute: Compute) -> float:
    """Duration of one step's computation, in seconds: the same for the same seed, rank and step.

    From the inverse of the distribution function at a uniform u in (0, 1], times the rank's slowdown;
    with mean m, shift c and tail index a: m, -m·ln u, c - (m-c)·ln u, or m·(a-1)/a·u^(-1/a) (Pareto).
    """
    mean, shift, tail = compute.mean_ms / 1000, (compute.shift_ms or 0.0) / 1000, compute.tail_index or 0.0
    uniform = (derive_seed("compute", seed, rank, step) + 1) / 2**63
    match compute.distribution:
        case "constant":
            seconds = mean
        case "exponential":
            seconds = -mean * math.log(uniform)
        case "shifted-exponential":
            seconds = shift - (mean - shift) * math.log(uniform)
        case "pareto":
            seconds = mean * (tail - 1) / tail * uniform ** (-1 / tail)
    return seconds * compute.slowdown(rank)
