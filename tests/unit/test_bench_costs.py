"""Instrumentation, blocks, memory and compression: their arithmetic, and each of them small, but real."""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import blocks, compression, memory, parts
from bench.case import LEARNING_RATE, Case, RoundFailed, Variant
from bench.compression import Outcome, Setting, outcome_of, train_compressed
from bench.costs import SUMS, cost_of_step, measured_costs
from bench.instrumentation import Laps, pairs_of, plan_of, push_pull_laps, row_of, training_row
from bench.memory import Peaks, peaks_of
from bench.processes import Processes, Target
from bench.sections import PARTS
from bench.substitution import (
    ALL_TRAINING,
    CLOCK,
    RECEIVES,
    SENDS,
    Instrumentation,
    Measuring,
    set_block_length,
)
from bench.systems.lockstep import Lockstep
from bench.training import Trained, train
from bench.workload import Workload
from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName
from contract.metrics import WorkerEpoch, WorkerSummary
from runtime.blocks import blocks_of
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.state import ServerState

TIMEOUT_SECONDS = 60.0
ON, OFF, COUNTED = Measuring.ON, Measuring.OFF, Measuring.COUNTED
SMALL = Workload(Dataset.DIGITS, ModelName.LOGISTIC_REGRESSION, batch_size=64, epochs=2, workers=2)


def _epoch(rank: int, *, correct: int, samples: int) -> WorkerEpoch:
    tested = {"test_correct": correct, "test_samples": samples}
    return WorkerEpoch.model_construct(rank=rank, epoch=1, **tested)


def _summary(rank: int, **told: int | None) -> WorkerSummary:
    return WorkerSummary.model_construct(rank=rank, **told)


def in_child(target: Target, folder: Path) -> Any:
    """What `target` sends from a process of its own: what it replaces is gone with it."""
    with Processes(folder, TIMEOUT_SECONDS, tuned=False) as processes:
        return processes.receive(processes.start("child", target))


@pytest.mark.parametrize("pairs", [2, 3, 200])
def test_either_lap_comes_first_as_often(pairs: int) -> None:
    *laps, last = plan_of(pairs)
    firsts = laps[::2]
    assert last is COUNTED
    assert all({one, other} == {ON, OFF} for one, other in zip(firsts, laps[1::2], strict=True))
    assert firsts.count(OFF) == pairs // 2


def test_which_comes_first_is_no_rhythm() -> None:
    firsts = plan_of(200)[:-1:2]
    assert plan_of(200)[:-1:2] == firsts
    for period in range(1, 9):
        again = sum(one is other for one, other in zip(firsts, firsts[period:], strict=False))
        # Of 200 fair coins, half agree: within four standard deviations.
        assert abs(again - (200 - period) / 2) < 4 * 200**0.5 / 2


def test_pairs_have_the_measured_lap_first() -> None:
    plan = [ON, OFF, OFF, ON, COUNTED]
    assert pairs_of(plan, [1.0, 2.0, 3.0, 4.0, 99.0]) == [(1.0, 2.0), (4.0, 3.0)]


def test_a_row_says_what_both_ways_of_asking_found() -> None:
    laps = Laps([(1.1, 1.0), (1.2, 1.0), (1.3, 1.0)], {CLOCK: 2.0, "update": 1.0, "drop": 0.0})
    costs = {CLOCK: 0.003, "update": 0.006, "drop": 1.0}
    row = row_of(laps, costs, workload="w", transport="tcp", parameters=1, workers=1)
    assert (row.off_over_on, row.off_over_on_interval, row.laps) == (1.2, (1.1, 1.3), 3)
    assert (row.step_seconds, row.cost_seconds, row.cost_share) == (1.2, 0.012, 0.01)
    assert row.counts == {CLOCK: 2.0, "update": 1.0}
    assert row.nanoseconds == {CLOCK: 3e6, "update": 6e6}


def test_all_that_is_counted_has_a_cost() -> None:
    costs = measured_costs(workers=2, gradients=2, waited_seconds=0.001)
    assert set(costs) == {CLOCK, "update", "wait", "drop", "repeat", ALL_TRAINING, SENDS, RECEIVES, SUMS}
    assert all(0 <= seconds < 0.001 for seconds in costs.values())
    assert costs["update"] > 0
    assert cost_of_step({"update": 3.0}, costs) == 3 * costs["update"]


def _push_in_turn(pipe: "Connection[Any, Any]") -> None:
    """Push a gradient on, off, counted and on; send what the figures had grown by each time."""
    instrumentation = Instrumentation()
    state = ServerState(
        workers=1,
        parameters=torch.zeros(100_000),
        optimizer=lambda part: MomentumSGD(part, learning_rate=0.1, momentum=0.0),
        policy=policy_for(Mode.ASYNC, 1, Aggregation()),
    )
    state.join(0)
    state.attend(0)
    state.ready(0, 100_000, steps=4)
    found, seconds, updates = [], 0.0, 0
    for step, measuring in enumerate([ON, OFF, COUNTED, ON]):
        instrumentation.turn(measuring)
        state.push(0, step, step, torch.ones(100_000))
        summary = state.summary()
        found.append((summary["apply_seconds"] > seconds, summary["global_steps_completed"] - updates))
        seconds, updates = summary["apply_seconds"], summary["global_steps_completed"]
    pipe.send((found, instrumentation.counts(), float(state.aggregator.parameters[0])))
    pipe.recv()


def test_what_is_turned_off_measures_nothing_and_works_as_before(tmp_path: Path) -> None:
    found, counts, parameter = in_child(_push_in_turn, tmp_path)
    assert found == [(True, 1), (False, 0), (True, 1), (True, 1)]
    assert parameter == pytest.approx(-0.4)
    assert (counts["update"], counts["wait"], counts[ALL_TRAINING], counts["drop"]) == (1, 1, 0, 0)
    # When it came and was let go on; when it began to be applied, and was.
    assert counts[CLOCK] == 3


def test_push_pull_is_measured_with_and_without() -> None:
    laps = push_pull_laps(Lockstep("tcp"), 10_000, 2)
    assert len(laps.pairs) == 2
    assert all(0 < seconds < 1 for pair in laps.pairs for seconds in pair)
    assert (laps.counts["update"], laps.counts["wait"]) == (1, 1)
    # A push with its block, an answer with its; what a process waits for when it is turned is not counted.
    assert laps.counts[SENDS] >= 2
    assert laps.counts[RECEIVES] >= 3


def test_training_is_measured_with_and_without() -> None:
    row = training_row(SMALL, pairs=2)
    assert (row.laps, row.workers, row.parameters) == (2, 2, 650)
    assert (row.counts["update"], row.counts[SUMS]) == (1, 2)
    # Those of a step when the next one begins, and the last ones in the end
    steps = 1437 // 2 // 64
    assert row.counts["wait"] == pytest.approx(2 * (steps + 1) / steps, rel=1e-3)
    assert 0 < row.cost_seconds < row.step_seconds
    assert row.off_over_on > 0


def _cut(pipe: "Connection[Any, Any]") -> None:
    set_block_length(1000)
    pipe.send((blocks_of(2500), blocks_of(900)))
    pipe.recv()


def test_blocks_are_cut_as_long_as_asked(tmp_path: Path) -> None:
    cut, whole = in_child(_cut, tmp_path)
    assert cut == [slice(0, 1000), slice(1000, 2000), slice(2000, 2500)]
    assert whole == [slice(0, 900)]


@pytest.mark.parametrize("transport", ["tcp", "shared-memory"])
@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC])
def test_a_round_with_other_blocks_and_momentum_has_the_right_parameters(
    mode: Mode, transport: Any, tmp_path: Path
) -> None:
    case = Case(50_000, 2, Variant("tuned"), warm_up=1, updates=3, folder=tmp_path)
    Lockstep(transport, mode=mode, momentum=0.75, block_length=1 << 14).run_round(case, TIMEOUT_SECONDS)


@pytest.mark.parametrize(("mode", "updates"), [(Mode.SYNC, 5), (Mode.ASYNC, 15)])
def test_what_is_expected_is_what_the_optimizer_does(mode: Mode, updates: int, tmp_path: Path) -> None:
    parameters = torch.zeros(1)
    optimizer = MomentumSGD(parameters, learning_rate=LEARNING_RATE, momentum=0.75)
    for _ in range(updates):
        optimizer.step(torch.ones(1))
    case = Case(1, 3, Variant(), warm_up=1, updates=4, folder=tmp_path)
    expected = Lockstep("tcp", mode=mode, momentum=0.75).expected_parameter(case)
    assert expected == pytest.approx(float(parameters))
    assert Lockstep("tcp").expected_parameter(case) == case.expected_parameter


def test_lengths_cut_a_model_or_leave_it_whole() -> None:
    assert blocks.lengths_for(62_006) == [1 << 14, 62_006]
    assert blocks.lengths_for(1 << 18) == [1 << 14, 1 << 16, 1 << 17, 1 << 18]


@pytest.mark.parametrize("runtimes", [400, 1000])
def test_lengths_are_set_beside_the_runtimes(runtimes: int) -> None:
    rates = {400: [10.0, 30.0, 20.0], 1000: [40.0, 40.0, 40.0]}
    rows = blocks.rows_of(rates, transport="tcp", parameters=1000, runtimes=runtimes)
    assert [(row.block_length, row.blocks, row.updates_per_second) for row in rows] == [
        (400, 3, 20),
        (1000, 1, 40),
    ]
    assert [row.block_length for row in rows if row.is_runtimes] == [runtimes]
    assert [row.ratio_to_runtimes for row in rows if row.is_runtimes] == [1]


def test_memory_is_told_in_models() -> None:
    row = memory.row_of(
        Peaks(resident=4000, private=1200, proportional=2800),
        Peaks(resident=4400, private=1600, proportional=2800),
        mode=Mode.SYNC,
        transport="tcp",
        compression="none",
        parameters=100,
        workers=4,
        steps=2,
    )
    assert (row.resident, row.private, row.proportional) == (10, 3, 7)
    assert (row.longer_steps, row.longer_resident, row.longer_private) == (6, 11, 4)


def test_shared_pages_are_told_from_the_servers_own() -> None:
    parameters, workers = 5_000_000, 2
    peaks = peaks_of(Lockstep("shared-memory", momentum=0.75), parameters, workers, steps=3)
    model = 4 * parameters
    # Parameters and momentum are its own; each worker has a gradient and parameters.
    assert 2 * model <= peaks.private < 4 * model
    assert peaks.proportional - peaks.private == pytest.approx(workers * model, rel=0.1)
    assert peaks.resident >= 0.95 * (2 + 2 * workers) * model


def test_the_server_keeps_a_copy_a_worker_where_compressed_parameters_differ() -> None:
    parameters, workers = 5_000_000, 3
    kept = {
        mode: peaks_of(Lockstep("tcp", mode=mode, momentum=0.75, compression="fp16"), parameters, workers, 3)
        for mode in (Mode.SYNC, Mode.ASYNC)
    }
    model = 4 * parameters
    # Beside parameters and momentum: one copy in sync mode, in which all workers hold the same.
    assert kept[Mode.SYNC].private >= 3 * model
    assert kept[Mode.ASYNC].private >= (2 + workers) * model


def test_codecs_are_set_beside_none_seed_by_seed() -> None:
    outcomes = {
        "none": [Outcome(4.0, 90.0, 800), Outcome(6.0, 92.0, 800), Outcome(5.0, 97.0, 800)],
        "topk": [Outcome(1.0, 91.0, 10), Outcome(1.0, 91.0, 10), Outcome(1.0, 97.0, 13)],
    }
    plain, topk = compression.rows_of(outcomes, Setting(SMALL, Mode.SYNC), parameters=650)
    assert (plain.times_shorter, plain.accuracy_difference) == (1, 0)
    assert (topk.times_shorter, topk.epoch_seconds, topk.bytes_per_step) == (5, 1, 11)
    assert (topk.accuracy, topk.accuracy_difference, topk.accuracy_differences) == (93, 0, (-1, 1))
    # Student's t with two degrees of freedom, of differences 1, -1 and 0.
    assert topk.accuracy_interval == pytest.approx((-4.303 / 3**0.5, 4.303 / 3**0.5), rel=1e-3)
    assert topk.mode == "sync"


def test_one_seed_gives_no_interval() -> None:
    outcomes = {"none": [Outcome(4.0, 90.0, 800)], "topk": [Outcome(1.0, 91.0, 10)]}
    _, topk = compression.rows_of(outcomes, Setting(SMALL, Mode.SYNC), parameters=650)
    assert (topk.accuracy_difference, topk.accuracy_interval) == (1, None)


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC])
def test_training_over_a_slow_link_takes_as_long_as_its_bytes(mode: Mode) -> None:
    outcome = outcome_of(train_compressed(SMALL, mode, "int8", seed=1))
    # Two ways of 650 bytes and a scale, and frames.
    assert 1300 < outcome.bytes_per_step < 2000
    assert 50 < outcome.accuracy <= 100
    assert outcome.epoch_seconds > 0


def test_accuracy_is_that_of_the_final_parameters() -> None:
    shares = [
        [_epoch(0, correct=9, samples=10), _summary(0)],
        [_epoch(1, correct=6, samples=10), _summary(1, final_test_correct=18, final_test_samples=20)],
    ]
    assert Trained(shares).accuracy == 90
    shares[1][1] = _summary(1)
    assert Trained(shares).accuracy == 75


def test_parts_of_an_update_take_longer_for_more_parameters() -> None:
    small, large = parts.measure(["62k", "11.2M"], Console(quiet=True))["rows"]
    assert (small["parameters"], large["parameters"]) == (62_006, 11_173_962)
    for name in PARTS:
        assert 0 < 10 * small[name] < large[name]


def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    environment = SMALL.environment().model_copy(update={"model": ModelName.CIFAR_CNN})
    with pytest.raises(RoundFailed, match="cifar-cnn"):
        train(environment, tmp_path)
