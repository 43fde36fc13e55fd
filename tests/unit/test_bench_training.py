from pathlib import Path

import pytest

from bench.case import RoundFailed
from bench.epoch import CONTESTANTS, DDP, LOCKSTEP, parameters_of, rows_of, train_as
from bench.workload import WORKLOADS, Epoch, Run, Workload, run_of, same_training
from contract.catalogue import Dataset, ModelName
from runtime.blocks import blocks_of

WORKLOAD = WORKLOADS["digits-cnn"]


def test_an_epoch_takes_as_long_as_its_slowest_rank_and_the_first_is_not_counted() -> None:
    ranks = [
        [Epoch(9.0, 4.0, 5), Epoch(1.0, 2.0, 5), Epoch(3.0, 1.0, 5), Epoch(1.0, 0.0, 5)],
        [Epoch(8.0, 2.0, 5), Epoch(2.0, 1.0, 5), Epoch(1.0, 1.0, 5), Epoch(4.0, 1.0, 5)],
    ]
    assert run_of(ranks) == Run(epoch_seconds=3.0, losses=(3.0, 1.5, 1.0, 0.5), steps=5)


def test_one_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="first meets cold memory"):
        run_of([[Epoch(1.0, 1.0, 5)]])


def test_runs_that_learned_otherwise_are_told_apart() -> None:
    assert same_training(Run(1, (2.0, 1.0), 5), Run(9, (2.001, 0.999), 5))
    assert not same_training(Run(1, (2.0, 1.0), 5), Run(1, (2.0, 1.1), 5))
    assert not same_training(Run(1, (2.0, 1.0), 5), Run(1, (2.0, 1.0), 6))
    assert not same_training(Run(1, (2.0, float("nan")), 5), Run(1, (2.0, float("nan")), 5))


def test_a_system_is_set_beside_ddps_faster_variant() -> None:
    shared, tcp, default, tuned = CONTESTANTS
    losses = (2.0, 1.0)
    runs = {
        shared: [Run(3.0, losses, 5)],
        tcp: [Run(4.5, losses, 5)],
        default: [Run(2.0, losses, 5), Run(4.0, losses, 5)],
        tuned: [Run(1.5, losses, 5)],
    }
    *ours, ddp = rows_of("digits-cnn", WORKLOAD, runs)
    assert [row.system for row in ours] == list(LOCKSTEP)
    assert [(row.epoch_seconds, row.ratio_to_ddp) for row in ours] == [(3.0, 2.0), (4.5, 3.0)]
    assert (ddp.system, ddp.variant, ddp.ratio_to_ddp) == (DDP, "tuned malloc", 1.0)
    assert ddp.parameters == 38_282


def test_times_of_different_trainings_are_not_compared() -> None:
    ours, _, default, _ = CONTESTANTS
    with pytest.raises(RoundFailed, match=r"PyTorch DDP .* did not train as the others"):
        rows_of("digits-cnn", WORKLOAD, {ours: [Run(1, (2.0, 1.0), 5)], default: [Run(1, (2.0, 1.5), 5)]})


def test_lockstep_over_either_transport_and_ddp_train_alike(tmp_path: Path) -> None:
    workload = Workload(
        Dataset.SYNTHETIC, ModelName.LOGISTIC_REGRESSION, batch_size=8, epochs=2, workers=2, samples=64
    )
    runs = []
    for number, contestant in enumerate(CONTESTANTS[:3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        runs.append(train_as(contestant, workload, folder))
    shared, tcp, ddp = runs
    assert {run.steps for run in runs} == {64 // 2 // 8}
    assert shared.losses[1] < shared.losses[0]
    assert same_training(shared, ddp, tolerance=1e-5)
    assert same_training(tcp, ddp, tolerance=1e-5)


def test_a_model_of_several_blocks_is_set_beside_ddp() -> None:
    assert any(len(blocks_of(parameters_of(workload))) > 1 for workload in WORKLOADS.values())
