"""How long a training lasts, from how long each of its steps does: each mode's rule of who waits for whom.

Pure. Plays what the parameter server's policies decide (runtime/policy.py), without gradients: a test holds both to the
same end. A step here is everything between a worker's release and its next push's arrival, in seconds.
"""

import heapq
from collections.abc import Callable
from math import inf

from contract.aggregation import BARRIER_MODES, Aggregation, Mode, quorum

StepSeconds = Callable[[int, int], float]
"""(rank, step) → seconds; ranks and steps count from 0."""


def last_finish(
    mode: Mode, aggregation: Aggregation, workers: int, steps: int, seconds: StepSeconds
) -> float:
    """When the last of the workers has its last step answered, each having made so many steps, seconds."""
    needed = quorum(mode, aggregation, workers)
    if mode in BARRIER_MODES:
        return _behind_barrier(workers, steps, seconds, needed)
    if mode is Mode.KASYNC:
        return _behind_quorum(workers, steps, seconds, needed)
    bound = aggregation.staleness_bound if mode is Mode.SSP else None
    return _within_bound(workers, steps, seconds, inf if bound is None else bound)


def _behind_barrier(workers: int, steps: int, seconds: StepSeconds, needed: int) -> float:
    """All begin each step together: it lasts as long as its K-th shortest, and who is later is cancelled."""
    return sum(sorted(seconds(rank, step) for rank in range(workers))[needed - 1] for step in range(steps))


def _within_bound(workers: int, steps: int, seconds: StepSeconds, bound: float) -> float:
    """Nobody waits, but who is more than `bound` steps ahead of the slowest."""
    released = [0.0] * workers
    all_have_done: list[float] = []
    for step in range(steps):
        done = [released[rank] + seconds(rank, step) for rank in range(workers)]
        all_have_done.append(max(done))
        gate = all_have_done[int(step - bound)] if step >= bound else 0.0
        released = [max(moment, gate) for moment in done]
    return max(released)


def _behind_quorum(workers: int, steps: int, seconds: StepSeconds, needed: int) -> float:
    """K of those that have pushed go on together; the others keep computing."""
    arrivals = [(seconds(rank, 0), rank, 0) for rank in range(workers)]
    heapq.heapify(arrivals)
    held: list[tuple[int, int]] = []
    training, now = workers, 0.0
    while arrivals:
        now, rank, step = heapq.heappop(arrivals)
        held.append((rank, step))
        if len(held) < min(needed, training):
            continue
        for released, done in held:
            if done + 1 == steps:
                training -= 1
            else:
                heapq.heappush(arrivals, (now + seconds(released, done + 1), released, done + 1))
        held = []
    return now
