"""What each paper's study came to: experiments → figures with intervals, as JSON.

Pure; every seed of every condition counts, and one that is missing is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from bench.science.experiment import Experiment, Unusable
from bench.science.statistics import (
    Curve,
    crossing,
    difference,
    drawn_seconds,
    kth_draw_seconds,
    on_grid,
    over_seeds,
    ratio,
    slope,
)
from contract.aggregation import Mode

Runs = Mapping[int, Experiment]
"""Seed → the experiment of one condition."""

FALLEN_LOSS = 0.5
"""Dutta: a loss that both modes reach soon; async's floor lies below it."""

FLOOR_SHARE = 0.5
"""Dutta: the last part of a run's epochs, over which a floor is averaged: single epochs of async are noisy."""

TARGET_ERROR_PERCENT = 10.0
"""Chen: the test error whose time is taken."""


def dutta(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Loss over time of sync and async: who falls faster, who ends lower, and where the curves cross."""
    runs = _all_completed(_by_mode(experiments, Mode.SYNC, Mode.ASYNC))
    seeds = list(runs["sync"])
    fallen = {mode: [run.loss_curve.first(FALLEN_LOSS) for run in of.values()] for mode, of in runs.items()}
    floors = {mode: [fmean(_floor(run.losses)) for run in of.values()] for mode, of in runs.items()}
    errors = {mode: [fmean(_floor(run.errors)) for run in of.values()] for mode, of in runs.items()}
    drifts = {mode: [_drift(run) for run in of.values()] for mode, of in runs.items()}
    pairs = [(runs["sync"][seed], runs["async"][seed]) for seed in seeds]
    passed = [_passed(sync, other) for sync, other in pairs]
    last = [crossing(sync.loss_curve, other.loss_curve) for sync, other in pairs]
    return {
        "seeds": seeds,
        "fallen_loss": FALLEN_LOSS,
        "floor_epochs": {mode: len(_floor(of[seeds[0]].losses)) for mode, of in runs.items()},
        "seconds_to_fallen_loss": {mode: over_seeds(values) for mode, values in fallen.items()},
        "fallen_sync_over_async": ratio(zip(fallen["sync"], fallen["async"], strict=True)),
        "crossing_seconds": over_seeds(passed),
        "crossing_seconds_by_seed": passed,
        "last_crossing_seconds": over_seeds(last),
        "floor_loss": {mode: over_seeds(values) for mode, values in floors.items()},
        "floor_drift": {mode: over_seeds(values) for mode, values in drifts.items()},
        "floor_loss_async_minus_sync": difference(zip(floors["async"], floors["sync"], strict=True)),
        "floor_error_percent": {mode: over_seeds(values) for mode, values in errors.items()},
        "floor_error_async_minus_sync": difference(zip(errors["async"], errors["sync"], strict=True)),
        "training_seconds": {
            mode: over_seeds(run.training_seconds for run in of.values()) for mode, of in runs.items()
        },
        "loss_over_time": {
            mode: on_grid([run.loss_curve for run in of.values()]) for mode, of in runs.items()
        },
        "error_over_time": {
            mode: on_grid([run.error_curve for run in of.values()]) for mode, of in runs.items()
        },
    }


def _floor(values: Sequence[float]) -> Sequence[float]:
    """Those of the last epochs."""
    return values[-max(round(FLOOR_SHARE * len(values)), 1) :]


def _drift(run: Experiment) -> float:
    """By how much the loss changes along its floor, as on a straight line: of a floor that is flat, zero."""
    curve = Curve(_floor(run.loss_curve.seconds), _floor(run.losses))
    return slope(curve) * (curve.seconds[-1] - curve.seconds[0])


def _passed(sync: Experiment, other: Experiment) -> float | None:
    """When sync comes down to async's floor; None if async's run was over by then: nothing is known of it there."""
    second = sync.loss_curve.first(fmean(_floor(other.losses)))
    return second if second is not None and second <= other.epoch_ends[-1] else None


def zhang(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Final test error of sync, async and staleness-aware async, and how stale gradients were."""
    runs = _by_mode(experiments, Mode.SYNC, Mode.ASYNC, Mode.STALENESS_AWARE)
    workers = experiments[0].workers
    errors = {mode: [run.final_error for run in of.values()] for mode, of in runs.items()}
    finished = {mode: [run for run in of.values() if run.completed] for mode, of in runs.items()}
    histograms = {mode: _pooled(of) for mode, of in finished.items() if mode != Mode.SYNC}
    return {
        "seeds": list(runs["sync"]),
        "workers": workers,
        "final_error_percent": {mode: over_seeds(of) for mode, of in errors.items()},
        "final_error_percent_by_seed": errors,
        "diverged": {mode: [run.has_diverged for run in of.values()] for mode, of in runs.items()},
        "async_minus_aware_percent": difference(zip(errors["async"], errors["staleness-aware"], strict=True)),
        "aware_minus_sync_percent": difference(zip(errors["staleness-aware"], errors["sync"], strict=True)),
        "training_seconds": {
            mode: over_seeds(run.training_seconds for run in of) for mode, of in finished.items()
        },
        "mean_staleness": {
            mode: over_seeds(run.mean_staleness for run in finished[mode]) for mode in histograms
        },
        "staleness_histogram": {
            mode: {str(staleness): count for staleness, count in of.items()}
            for mode, of in histograms.items()
        },
        "share_beyond_twice_workers": {
            mode: _share_beyond(of, 2 * workers) for mode, of in histograms.items()
        },
        "error_over_epochs": {mode: _over_epochs(of) for mode, of in finished.items()},
    }


def chen(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Time per update and time to an accuracy, by number of backup workers, against the law."""
    by_backup: dict[str, dict[int, Experiment]] = {}
    for run in sorted(experiments, key=lambda run: (run.backup_workers, run.seed)):
        by_backup.setdefault(str(run.backup_workers), {})[run.seed] = run
    _all_completed(_same_seeds(by_backup))
    none = by_backup["0"]
    return {
        "seeds": list(none),
        "target_error_percent": TARGET_ERROR_PERCENT,
        "by_backup_workers": {backup: _with_backups(of, none) for backup, of in by_backup.items()},
    }


def _with_backups(runs: Runs, none: Runs) -> dict[str, Any]:
    """Figures of one number of backup workers; `none`: the experiments without any."""
    some = next(iter(runs.values()))
    measured = [run.known(run.update_seconds) for run in runs.values()]
    drawn = [_as_drawn(run) for run in runs.values()]
    reached = [run.seconds_to_error(TARGET_ERROR_PERCENT) for run in runs.values()]
    without = [run.known(run.update_seconds) for run in none.values()]
    reached_without = [run.seconds_to_error(TARGET_ERROR_PERCENT) for run in none.values()]
    return {
        "workers": some.workers,
        "update_seconds": over_seeds(measured),
        "update_seconds_by_seed": measured,
        "update_seconds_by_law": kth_draw_seconds(some.compute, some.workers, some.quorum),
        "update_seconds_as_drawn": over_seeds(drawn),
        "overhead_seconds": difference(zip(measured, drawn, strict=True)),
        "speed_up_of_updates": ratio(zip(without, measured, strict=True)),
        "seconds_to_target": over_seeds(reached),
        "speed_up_to_target": ratio(zip(reached_without, reached, strict=True)),
        "updates_to_target": over_seeds(run.updates_to_error(TARGET_ERROR_PERCENT) for run in runs.values()),
        "final_error_percent": over_seeds(run.final_error for run in runs.values()),
        "dropped_share": over_seeds(_dropped_share(run) for run in runs.values()),
        "error_over_time": on_grid([run.error_curve for run in runs.values()]),
    }


def _by_mode(experiments: Iterable[Experiment], *modes: Mode) -> dict[str, dict[int, Experiment]]:
    """Mode → seed → experiment, in these orders. Raises Unusable where a mode has other seeds than the others."""
    found: dict[str, dict[int, Experiment]] = {mode.value: {} for mode in modes}
    for run in sorted(experiments, key=lambda run: run.seed):
        found[run.mode.value][run.seed] = run
    _same_seeds(found)
    return found


def _same_seeds(found: Mapping[str, dict[int, Experiment]]) -> Mapping[str, dict[int, Experiment]]:
    seeds = {condition: tuple(runs) for condition, runs in found.items()}
    if len(set(seeds.values())) > 1:
        raise Unusable(f"conditions differ in their seeds: {seeds}")
    return found


def _all_completed(found: Mapping[str, dict[int, Experiment]]) -> Mapping[str, dict[int, Experiment]]:
    failed = [run for of in found.values() for run in of.values() if not run.completed]
    if failed:
        raise Unusable("; ".join(f"{run.name} did not complete: {run.cause}" for run in failed))
    return found


def _over_epochs(runs: Sequence[Experiment]) -> list[tuple[float, float, float, float]]:
    """(epoch, mean, least, greatest) of the test errors."""
    return [
        (epoch, fmean(errors), min(errors), max(errors))
        for epoch, errors in enumerate(zip(*(run.errors for run in runs), strict=True), start=1)
    ]


def _pooled(runs: Iterable[Experiment]) -> dict[int, int]:
    """The histogram of all experiments together."""
    pooled: dict[int, int] = {}
    for run in runs:
        for staleness, count in (run.stalenesses or {}).items():
            pooled[staleness] = pooled.get(staleness, 0) + count
    return dict(sorted(pooled.items()))


def _share_beyond(histogram: Mapping[int, int], bound: int) -> float | None:
    total = sum(histogram.values())
    return (
        sum(count for staleness, count in histogram.items() if staleness > bound) / total if total else None
    )


def _as_drawn(run: Experiment) -> float:
    steps = int(run.known(run.updates))
    return drawn_seconds(run.compute, run.workers, run.quorum, steps=steps, seed=run.seed)


def _dropped_share(run: Experiment) -> float:
    dropped = run.known(run.dropped)
    return dropped / (dropped + run.known(run.gradients))
