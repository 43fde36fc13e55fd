"""The laws of emulated compute and of staleness: what theory says that an experiment should have measured.

Pure. Sources: the gaps between ordered exponential draws are independent with means mean/k (Rényi, On the
theory of order statistics, 1953), so E[max of N] = mean·H_N and Var[max of N] = mean²·Σ 1/k². That N workers,
each with one gradient under way, make N − 1 updates between one worker's pull and its push is counting.
"""

from dataclasses import dataclass
from math import sqrt

from contract.study import Compute, Mode
from lambdas.publish_report.results import AsyncServerMetrics, ExperimentResult

NORMAL_975 = 1.96


@dataclass(frozen=True)
class Law:
    """One law beside its measurement; `unit` is "s" or "updates"."""

    experiment: str
    statement: str
    unit: str
    predicted: float | None
    """None where theory says nothing that simple: the measurement stands there to be seen."""
    margin: float | None
    """Half width of the 95 % range that the draws of this many steps leave; None where it is not known."""
    measured: float | None


def laws_of(result: ExperimentResult) -> list[Law]:
    """The laws that a completed experiment can be held against; none where it did not complete."""
    if not result.completed:
        return []
    if result.mode is Mode.SYNC:
        return [_sync_step(result)] if result.compute.mode == "emulated" else []
    return [*([_async_step(result)] if result.compute.mode == "emulated" else []), *_staleness(result)]


def longest_draw(compute: Compute, workers: int) -> tuple[float, float]:
    """Mean and standard deviation of the longest of `workers` draws, seconds."""
    mean = compute.mean_ms / 1000
    if compute.distribution == "constant":
        return mean, 0.0
    ranks = range(1, workers + 1)
    return mean * sum(1 / k for k in ranks), mean * sqrt(sum(1 / k**2 for k in ranks))


def _sync_step(result: ExperimentResult) -> Law:
    predicted, deviation = longest_draw(result.compute, result.total_workers)
    steps = result.server_metrics.global_steps_completed
    exponential = result.compute.distribution == "exponential"
    return Law(
        experiment=result.experiment_name,
        statement=f"step = mean × H{_subscript(result.total_workers)}" if exponential else "step = mean",
        unit="s",
        predicted=predicted,
        margin=NORMAL_975 * deviation / sqrt(steps) if steps else None,
        measured=result.server_metrics.mean_step_seconds,
    )


def _async_step(result: ExperimentResult) -> Law:
    workers, mean = result.total_workers, result.compute.mean_ms / 1000
    updates = result.server_metrics.global_steps_completed
    deviation = mean if result.compute.distribution == "exponential" else 0.0
    return Law(
        experiment=result.experiment_name,
        statement="time between updates = mean ÷ N",
        unit="s",
        predicted=mean / workers,
        margin=NORMAL_975 * deviation / workers / sqrt(updates) if updates else None,
        measured=result.server_metrics.mean_step_seconds,
    )


def _staleness(result: ExperimentResult) -> list[Law]:
    """Nothing of a single worker, which has no one to be stale against."""
    metrics = result.server_metrics
    if not isinstance(metrics, AsyncServerMetrics) or result.total_workers == 1:
        return []
    name, others = result.experiment_name, float(result.total_workers - 1)
    all_training, whole_run = (
        metrics.average_gradient_staleness_all_training,
        metrics.average_gradient_staleness,
    )
    return [
        Law(name, "staleness while all trained = N − 1", "updates", others, None, all_training),
        Law(name, "staleness over the whole run", "updates", None, None, whole_run),
    ]


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
