"""The laws of aggregation, in virtual time: what theory says is what the server measures.

Draws are seeded, so that nothing here flickers; tolerances are four standard errors of the sample or more.
"""

from typing import Any

import pytest

from contract.aggregation import Mode
from contract.compute import Compute, Straggler
from tests.unit.virtual_time import Simulation

MEAN = 0.05
EXPONENTIAL = Compute(mode="emulated", distribution="exponential", mean_ms=50)
CONSTANT = Compute(mode="emulated", distribution="constant", mean_ms=50)
SHIFTED = Compute(mode="emulated", distribution="shifted-exponential", mean_ms=50, shift_ms=30)
PARETO = Compute(mode="emulated", distribution="pareto", mean_ms=50, tail_index=2.5)


def harmonic(n: int) -> float:
    return sum(1 / k for k in range(1, n + 1))


def simulated(
    mode: Mode, workers: int, steps: int, compute: Compute = EXPONENTIAL, **told: Any
) -> dict[str, Any]:
    return Simulation(mode, workers, steps, compute, **told).run()


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_a_sync_step_is_the_longest_of_n_draws(workers: int) -> None:
    summary = simulated(Mode.SYNC, workers, 2000)
    assert summary["mean_step_seconds"] == pytest.approx(MEAN * harmonic(workers), rel=0.05)
    assert summary["staleness_histogram"] == {0: 2000 * workers}
    assert summary["dropped_gradients"] == 0


@pytest.mark.parametrize(("workers", "k"), [(4, 1), (4, 2), (4, 4), (8, 6)])
def test_a_ksync_step_is_the_kth_of_n_draws(workers: int, k: int) -> None:
    summary = simulated(Mode.KSYNC, workers, 3000, k=k)
    law = MEAN * (harmonic(workers) - harmonic(workers - k))
    assert summary["mean_step_seconds"] == pytest.approx(law, rel=0.08)
    # Everybody starts every step: the rest of its gradients is dropped
    assert summary["global_steps_completed"] == 3000
    assert summary["gradients_processed"] == 3000 * k
    assert summary["dropped_gradients"] == 3000 * (workers - k)
    assert summary["staleness_histogram"] == {0: 3000 * k}


@pytest.mark.parametrize(("workers", "backups"), [(5, 1), (9, 1), (10, 2)])
def test_backup_workers_cut_the_tail(workers: int, backups: int) -> None:
    summary = simulated(Mode.BACKUP, workers, 2000, backup_workers=backups)
    law = MEAN * (harmonic(workers) - harmonic(backups))
    assert summary["mean_step_seconds"] == pytest.approx(law, rel=0.05)
    assert summary["dropped_gradients"] == 2000 * backups


@pytest.mark.parametrize("mode", [Mode.KSYNC, Mode.BACKUP])
def test_the_shift_of_a_draw_is_in_every_step(mode: Mode) -> None:
    told = {"k": 3} if mode is Mode.KSYNC else {"backup_workers": 1}
    summary = simulated(mode, 4, 3000, SHIFTED, **told)
    law = 0.03 + 0.02 * (harmonic(4) - harmonic(1))
    assert summary["mean_step_seconds"] == pytest.approx(law, rel=0.03)


@pytest.mark.parametrize(("workers", "k"), [(4, 1), (4, 2), (8, 3), (8, 8)])
def test_a_kasync_update_is_the_kth_of_n_draws_and_ages_the_others(workers: int, k: int) -> None:
    # Up to a time when all workers are still training
    simulation = Simulation(Mode.KASYNC, workers, 10_000, EXPONENTIAL, k=k)
    summary = simulation.run(until=60.0)
    law = MEAN * (harmonic(workers) - harmonic(workers - k))
    assert summary["mean_step_seconds"] == pytest.approx(law, rel=0.08)
    updates, gradients = summary["global_steps_completed"], summary["gradients_processed"]
    assert gradients == updates * k
    # Each update ages the N - K gradients by one that are not part of it, some of which are still under way
    total = summary["average_gradient_staleness"] * gradients
    under_way = sum(simulation.state.version - worker.version for worker in simulation.workers)
    assert round(total) + under_way == (workers - k) * updates


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.STALENESS_AWARE, Mode.DC_ASGD])
@pytest.mark.parametrize("compute", [CONSTANT, EXPONENTIAL, SHIFTED, PARETO], ids=lambda c: c.distribution)
def test_async_workers_update_n_times_as_often_as_one(mode: Mode, compute: Compute) -> None:
    workers, told = 8, {"dc_lambda": 0.04} if mode is Mode.DC_ASGD else {}
    simulation = Simulation(mode, workers, 10_000, compute, **told)
    summary = simulation.run(until=30.0)
    assert summary["updates_per_second"] == pytest.approx(workers / MEAN, rel=0.05)
    # Total staleness is (N - 1) per update, but for the gradients still under way
    total = summary["average_gradient_staleness"] * summary["gradients_processed"]
    under_way = sum(simulation.state.version - worker.version for worker in simulation.workers)
    assert round(total) + under_way == (workers - 1) * summary["global_steps_completed"]


def test_staleness_is_exactly_n_minus_1_in_the_middle_of_a_run_whatever_the_speeds() -> None:
    slow = EXPONENTIAL.model_copy(update={"stragglers": [Straggler(rank=0, slowdown=4)]})
    for compute in (CONSTANT, EXPONENTIAL, slow):
        summary = simulated(Mode.ASYNC, 8, 1000, compute)
        assert summary["average_gradient_staleness_all_training"] == pytest.approx(7, rel=0.02)


@pytest.mark.parametrize("bound", [0, 1, 3, 8])
@pytest.mark.parametrize("slowdown", [1, 5])
def test_ssp_keeps_clocks_within_its_bound_and_uses_it(bound: int, slowdown: int) -> None:
    workers = 6
    compute = EXPONENTIAL.model_copy(update={"stragglers": [Straggler(rank=2, slowdown=slowdown)]})
    simulation = Simulation(Mode.SSP, workers, 250, compute, staleness_bound=bound)
    summary = simulation.run()
    assert simulation.largest_gap == bound + 1
    assert summary["gradients_processed"] == summary["global_steps_completed"] == 250 * workers
    assert max(summary["staleness_histogram"]) <= (workers - 1) * (2 * bound + 1)


def test_ssp_goes_from_sync_to_async_as_its_bound_grows() -> None:
    def seconds(mode: Mode, **told: int) -> float:
        simulation = Simulation(mode, 4, 1000, EXPONENTIAL, **told)
        simulation.run()
        return simulation.now

    bounded = [seconds(Mode.SSP, staleness_bound=bound) for bound in (0, 2, 8, 1000)]
    assert bounded == sorted(bounded, reverse=True)
    assert bounded[0] == pytest.approx(seconds(Mode.SYNC))
    assert bounded[-1] == seconds(Mode.ASYNC)


def test_a_straggler_slows_sync_by_its_factor_and_async_by_its_share() -> None:
    workers, factor = 8, 10
    slow = CONSTANT.model_copy(update={"stragglers": [Straggler(rank=3, slowdown=factor)]})
    rates = {}
    for mode in (Mode.SYNC, Mode.ASYNC):
        for name, compute in (("even", CONSTANT), ("slow", slow)):
            simulation = Simulation(mode, workers, 10_000, compute)
            summary = simulation.run(until=30.0)
            rates[mode, name] = summary["gradients_processed"] / simulation.now
    assert rates[Mode.SYNC, "even"] / rates[Mode.SYNC, "slow"] == pytest.approx(factor, rel=0.1)
    share = rates[Mode.ASYNC, "slow"] / rates[Mode.ASYNC, "even"]
    assert share == pytest.approx((workers - 1 + 1 / factor) / workers, rel=0.1)


def test_a_backup_worker_takes_a_straggler_out_of_every_step() -> None:
    slow = CONSTANT.model_copy(update={"stragglers": [Straggler(rank=3, slowdown=10)]})
    assert simulated(Mode.SYNC, 5, 100, slow)["mean_step_seconds"] == pytest.approx(10 * MEAN)
    assert simulated(Mode.BACKUP, 5, 100, slow, backup_workers=1)["mean_step_seconds"] == pytest.approx(MEAN)
