"""How long tasks will run: from draws, from history, or a guess; and what the network and the server add."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.aggregation import Mode
from contract.catalogue import MODELS_FOR, SAMPLES, Dataset, images_of
from contract.compute import Compute
from contract.duration import EMBEDDED, FARGATE, Basis, Overheads, duration_of, training_seconds
from contract.history import Measured
from contract.plan import Experiment, plan
from contract.study import parse_study
from runtime.dataset import load_dataset
from tests.unit.virtual_time import Simulation

NONE = Overheads(provisioning=0, pull=0, start=0, rendezvous=0, step=0, peer=0, end=0)
EMULATED = {"mode": "emulated", "distribution": "exponential", "mean_ms": 50}
MEASURED = Measured(
    study_id="earlier",
    experiment="sync_4workers",
    ended_at="2026-03-01T12:00:00+00:00",
    training_seconds=40.0,
    server_seconds=90.0,
    worker_seconds=70.0,
)


def experiment(mode: str = "sync", workers: int = 4, **document: Any) -> Experiment:
    given = {"experiments": [{"mode": mode, "workers": workers, "seed": 0}], "compute": EMULATED, **document}
    return plan(parse_study(given), "study-1")[0]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_emulated_training_lasts_as_long_as_its_draws(mode: str, workers: int) -> None:
    """And a little longer: the gradient itself takes longer than the shortest draws, and travels."""
    one = experiment(mode, workers)
    steps = 5 * (1437 // workers // 16)
    simulation = Simulation(Mode(mode), workers, steps, Compute(**EMULATED))
    simulation.run()
    assert simulation.now < training_seconds(one, NONE) < 1.03 * simulation.now


def test_of_a_long_training_the_beginning_is_drawn() -> None:
    one = experiment("sync", 8, training={"epochs": 200})
    few, all_of_it = training_seconds(one, NONE, draws=4000), training_seconds(one, NONE, draws=10**9)
    assert few == pytest.approx(all_of_it, rel=0.05)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["sync", "async"]), st.integers(1, 16), st.integers(1, 4))
def test_more_epochs_and_overheads_never_make_it_shorter(mode: str, workers: int, epochs: int) -> None:
    one, more = (experiment(mode, workers, training={"epochs": e}) for e in (epochs, epochs + 1))
    assert training_seconds(one, NONE) < training_seconds(more, NONE)
    assert training_seconds(one, NONE) < training_seconds(one, EMBEDDED) < duration_of(one, EMBEDDED).worker
    assert duration_of(one, EMBEDDED).worker < duration_of(one, EMBEDDED).server
    assert duration_of(one, EMBEDDED).server < duration_of(one, FARGATE).server


def test_a_straggler_is_waited_for_in_sync_mode() -> None:
    slow = {**EMULATED, "stragglers": [{"rank": 0, "slowdown": 10}]}
    assert training_seconds(experiment(compute=slow), NONE) > 4 * training_seconds(experiment(), NONE)


def test_an_injected_network_adds_its_bandwidth_and_latency_both_ways_to_each_step() -> None:
    network = {"bandwidth_mbit_per_second": 100, "latency_ms": 5}
    steps = 5 * (1437 // 4 // 16)
    added = training_seconds(experiment(network=network), NONE) - training_seconds(experiment(), NONE)
    passing = 38_282 * 4 * 8 / 100e6
    assert added == pytest.approx(steps * 2 * (passing + 0.005), rel=0.01)


def test_what_is_compressed_passes_sooner() -> None:
    network = {"bandwidth_mbit_per_second": 10}
    times = [
        training_seconds(experiment(network=network, exchange={"compression": compression}), NONE)
        for compression in ("none", "fp16", "int8", "topk")
    ]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 4


def test_one_server_is_what_many_workers_with_a_large_model_wait_for() -> None:
    """44.7 MB each way, 32 times over: the draws are a small part of it."""
    training = {"dataset": "synthetic", "model": "resnet18", "batch_size": 1, "epochs": 1}
    short = {"mode": "emulated", "distribution": "constant", "mean_ms": 1}
    worker = {"cpu": 16384, "memory": 32768}
    one, eight = (
        training_seconds(
            experiment("async", 32, training=training, compute=short, worker=worker, shards=shards), NONE
        )
        for shards in (1, 8)
    )
    assert one > 64 * 32 * 2 * 44.7e6 / 600e6 * 0.99
    assert eight < one


def test_real_compute_is_told_from_the_last_experiment_like_it() -> None:
    told = duration_of(experiment(compute={}), FARGATE, measured=MEASURED)
    assert (told.basis, told.training, told.server, told.worker) == (Basis.HISTORY, 40.0, 90.0, 70.0)


def test_real_compute_without_history_is_a_guess_that_grows_with_the_model_and_shrinks_with_cores() -> None:
    def guess(model: str, cpu: int = 1024) -> float:
        training = {"dataset": "synthetic", "model": model}
        told = duration_of(
            experiment(compute={}, training=training, worker={"cpu": cpu, "memory": 8192}), FARGATE
        )
        assert told.basis is Basis.GUESS
        return told.training

    assert guess("digits-cnn") < guess("cifar-cnn") < guess("resnet18") < guess("resnet34")
    assert guess("resnet18", 4096) < guess("resnet18", 2048)


def test_emulated_compute_needs_no_history() -> None:
    assert duration_of(experiment(), FARGATE, measured=MEASURED).basis is Basis.DRAWS


@pytest.mark.parametrize("dataset", [Dataset.DIGITS, Dataset.SYNTHETIC])
def test_the_built_in_data_sets_have_as_many_samples_as_planned(dataset: Dataset) -> None:
    data = load_dataset(dataset, images_of(dataset, MODELS_FOR[dataset][0]), "")
    assert (len(data.train), len(data.test)) == SAMPLES[dataset]
