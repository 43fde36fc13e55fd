"""The laws of emulated compute and of staleness: what theory says that an experiment should have measured.

Pure. Sources: the gaps between ordered exponential draws are independent with means mean/k (Rényi, On the
theory of order statistics, 1953), so E[K-th of N] = mean·(H_N − H_{N−K}) and Var = mean²·Σ 1/k² over the same k.
A shift only adds to it. N workers that wait for nobody are N renewal processes side by side (Cox, Renewal Theory,
1962): their law of time holds while all of them train, and is measured there. That N workers, each with one
gradient under way, make N − 1 updates between one worker's pull and its push is counting; so is that an update
of K gradients ages N − K others.
"""

from dataclasses import dataclass
from math import sqrt

from contract import aggregation
from contract.aggregation import BARRIER_MODES, Mode
from contract.compute import Compute
from lambdas.publish_report.results import AsyncServerMetrics, ExperimentResult

NORMAL_975 = 1.96

ONE_EACH = frozenset({Mode.ASYNC, Mode.STALENESS_AWARE, Mode.DC_ASGD})
"""Every gradient makes an update, and nobody waits."""


@dataclass(frozen=True)
class Law:
    """One law beside its measurement; `unit` is "s" or "updates"."""

    experiment: str
    statement: str
    unit: str
    predicted: float | None
    """None where theory says nothing that simple: the measurement stands there to be seen."""
    margin: float | None
    """Half width of the range that holds at least 95 % of runs with so many updates; None where not known."""
    measured: float | None


def laws_of(result: ExperimentResult) -> list[Law]:
    """The laws that a completed experiment can be held against; none where workers were lost on the way.

    The laws of time are about computing alone: none speaks of an injected network.
    """
    if not result.completed or result.server_metrics.lost_workers:
        return []
    emulated = result.compute.mode == "emulated" and not result.compute.stragglers
    return [*(_times(result) if emulated and not result.network.injected else []), *_staleness(result)]


def quorum(result: ExperimentResult) -> int:
    """How many gradients make an update while all workers train: K."""
    return aggregation.quorum(result.mode, result.aggregation, result.total_workers)


def draw_of_rank(compute: Compute, workers: int, k: int) -> tuple[float, float] | None:
    """Mean and deviation of the `k`-th shortest of `workers` draws, seconds; None where no formula is short."""
    mean = compute.mean_ms / 1000
    if compute.distribution == "constant":
        return mean, 0.0
    if compute.distribution == "pareto":
        return None
    shift = (compute.shift_ms or 0.0) / 1000
    gaps = range(workers - k + 1, workers + 1)
    scale = mean - shift
    return shift + scale * sum(1 / i for i in gaps), scale * sqrt(sum(1 / i**2 for i in gaps))


def _times(result: ExperimentResult) -> list[Law]:
    """The mean time of an update, in modes and distributions for which it has a formula."""
    compute, workers, k = result.compute, result.total_workers, quorum(result)
    if result.mode in BARRIER_MODES:
        law = draw_of_rank(compute, workers, k)
        return [_step(result, _order_statistic(compute, workers, k, "step"), law)] if law else []
    window = "time between updates while all trained"
    if result.mode in ONE_EACH and compute.deviation_ms is not None:
        law = (compute.mean_ms / 1000 / workers, compute.deviation_ms / 1000 / workers)
        return _while_all_trained(result, f"{window} = mean ÷ N", law)
    if result.mode is Mode.KASYNC and compute.distribution == "exponential":
        law = draw_of_rank(compute, workers, k)
        return _while_all_trained(result, _order_statistic(compute, workers, k, window), law) if law else []
    return []


def _step(result: ExperimentResult, statement: str, law: tuple[float, float]) -> Law:
    """Behind a barrier all begin and end together: the whole run is so many independent steps."""
    predicted, deviation = law
    updates = result.server_metrics.global_steps_completed
    margin = NORMAL_975 * deviation / sqrt(updates) if updates else None
    return Law(
        result.experiment_name, statement, "s", predicted, margin, result.server_metrics.mean_step_seconds
    )


def _while_all_trained(result: ExperimentResult, statement: str, law: tuple[float, float]) -> list[Law]:
    """Without a barrier the slowest worker's sum of draws ends a run, so the whole run obeys no such law."""
    name, metrics = result.experiment_name, result.server_metrics
    predicted, deviation = law
    margin = measured = None
    if isinstance(metrics, AsyncServerMetrics) and metrics.all_training_seconds is not None:
        updates = metrics.updates_all_training
        if updates:
            measured = metrics.all_training_seconds / updates
            margin = NORMAL_975 * deviation / sqrt(updates) + _cut_draws(result, predicted) / updates
    whole_run = "time between updates over the whole run"
    return [
        Law(name, statement, "s", predicted, margin, measured),
        Law(name, whole_run, "s", None, None, metrics.mean_step_seconds),
    ]


def _cut_draws(result: ExperimentResult, predicted: float) -> float:
    """How far the draws that an end of the window cuts can move its sum, seconds.

    Both ends are pushes of one worker, and cut a draw of each of the other N - 1: N·window = the sum of its draws
    ± the parts before the cuts, at most (N - 1)·mean where draws are even. What is left of an exponential draw
    is distributed as a new one: there the cuts do not matter.
    """
    return 0.0 if result.compute.distribution == "exponential" else (result.total_workers - 1) * predicted


def _order_statistic(compute: Compute, workers: int, k: int, subject: str) -> str:
    if compute.distribution == "constant":
        return f"{subject} = mean"
    harmonic = (
        f"H{_subscript(workers)}"
        if k == workers
        else f"(H{_subscript(workers)} − H{_subscript(workers - k)})"
    )
    if compute.distribution == "shifted-exponential":
        return f"{subject} = shift + (mean − shift) × {harmonic}"
    return f"{subject} = mean × {harmonic}"


def _staleness(result: ExperimentResult) -> list[Law]:
    """Nothing of a single worker, which has no one to be stale against."""
    metrics = result.server_metrics
    if not isinstance(metrics, AsyncServerMetrics) or result.total_workers == 1:
        return []
    name, workers, k = result.experiment_name, result.total_workers, quorum(result)
    all_training, whole_run = (
        metrics.average_gradient_staleness_all_training,
        metrics.average_gradient_staleness,
    )
    whole = Law(name, "staleness over the whole run", "updates", None, None, whole_run)
    if result.mode is Mode.SSP:
        # Who waits has no gradient under way: N − 1 is the most that it can be on average.
        return [
            Law(name, "staleness while all trained, at most N − 1", "updates", None, None, all_training),
            whole,
        ]
    statement = "N − 1" if k == 1 else "(N − K) ÷ K"
    predicted = (workers - k) / k
    return [
        Law(name, f"staleness while all trained = {statement}", "updates", predicted, None, all_training),
        whole,
    ]


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
