"""How often the laws of time hold in runs that obey them: as often as their ± says, whatever ends a run.

Seeded renewal processes through the server's accounting and the whole way to a law; no server, no sleeping.
"""

import heapq
from collections.abc import Iterator
from itertools import count
from math import sqrt
from random import Random
from typing import Any

import pytest

from contract.metrics import ServerSummary
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.publish_report import sections
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.laws import Law, laws_of
from lambdas.publish_report.results import ExperimentOutcome, ExperimentResult
from runtime.accounting import Accounting
from tests.unit.report_fixtures import study_outcome, whose

RUNS = 300
MEAN = 0.05
EXPONENTIAL = {"distribution": "exponential"}
NEARLY_EVEN = {"distribution": "shifted-exponential", "shift_ms": 45}
CONSTANT = {"distribution": "constant"}


def experiment(mode: str, workers: int, compute: dict[str, Any], **told: int) -> Experiment:
    document = {
        "matrix": {"mode": [mode], "workers": [workers]},
        "compute": {"mode": "emulated", "mean_ms": 1000 * MEAN, **compute},
        **({"aggregation": told} if told else {}),
    }
    return plan(parse_study(document), "study-1")[0]


def draws(of: Experiment, seed: int) -> Iterator[float]:
    random, compute = Random(seed), of.compute
    if compute.distribution == "constant":
        return (MEAN for _ in count())
    shift = (compute.shift_ms or 0) / 1000
    return (shift + random.expovariate(1 / (MEAN - shift)) for _ in count())


def asynchronous(of: Experiment, steps: int, draw: Iterator[float], quorum: int = 1) -> Accounting:
    """Every worker computes for as long as its draw says; `quorum` gradients make an update, at once."""
    accounting, done = Accounting(), [0] * of.workers
    accounting.start(0.0)
    arrivals = [(next(draw), rank) for rank in range(of.workers)]
    heapq.heapify(arrivals)
    held: list[int] = []
    while arrivals:
        now, rank = heapq.heappop(arrivals)
        done[rank] += 1
        held.append(rank)
        if len(held) >= min(quorum, len(arrivals) + len(held)):
            accounting.update(now, [0] * len(held))
            accounting.all_training = all(0 < steps_done < steps for steps_done in done)
            for released in held:
                if done[released] < steps:
                    heapq.heappush(arrivals, (now + next(draw), released))
            held = []
    return accounting


def barrier(of: Experiment, steps: int, draw: Iterator[float], quorum: int) -> Accounting:
    """All workers begin every step together; its `quorum`-th draw ends it."""
    accounting, now = Accounting(), 0.0
    accounting.start(now)
    for _ in range(steps):
        now += sorted(next(draw) for _ in range(of.workers))[quorum - 1]
        accounting.update(now, [0] * quorum)
    return accounting


def result_of(of: Experiment, accounting: Accounting) -> ExperimentResult:
    summary = ServerSummary.model_validate(
        whose(of, "server", 0, 0, 1)
        | {"mode": of.mode, "total_workers": of.workers, "apply_seconds": 0.0}
        | accounting.summary()
    )
    return experiment_result(ExperimentOutcome(experiment=of, status=Status.COMPLETED, records=[summary]))


def held_against(result: ExperimentResult) -> Law:
    """The one law of time that predicts something."""
    [law] = [law for law in laws_of(result) if law.unit == "s" and law.predicted is not None]
    return law


def inside(law: Law) -> bool:
    assert law.measured is not None
    assert law.predicted is not None
    assert law.margin is not None
    return abs(law.measured - law.predicted) <= law.margin * (1 + 1e-9) + 1e-12


def share_inside(laws: list[Law]) -> float:
    assert len(laws) == RUNS
    return sum(map(inside, laws)) / RUNS


@pytest.mark.parametrize(("workers", "steps"), [(2, 100), (4, 50), (8, 25)])
def test_the_async_law_holds_as_often_as_its_margin_says(workers: int, steps: int) -> None:
    of = experiment("async", workers, EXPONENTIAL)
    laws = [held_against(result_of(of, asynchronous(of, steps, draws(of, seed)))) for seed in range(RUNS)]
    assert 0.9 <= share_inside(laws) <= 0.99
    # Neither late nor early on the whole: as near as the mean of so many runs can be
    bias = sum((law.measured or 0) - (law.predicted or 0) for law in laws) / RUNS
    assert abs(bias) < 4 * (laws[0].margin or 0) / 1.96 / sqrt(RUNS)


def test_the_kasync_law_holds_as_often_as_its_margin_says() -> None:
    of = experiment("kasync", 4, EXPONENTIAL, k=2)
    laws = [held_against(result_of(of, asynchronous(of, 50, draws(of, seed), 2))) for seed in range(RUNS)]
    assert 0.9 <= share_inside(laws) <= 0.99


@pytest.mark.parametrize(
    ("mode", "told", "quorum"),
    [("sync", {}, 4), ("ksync", {"k": 2}, 2), ("backup", {"backup_workers": 1}, 3)],
)
def test_the_laws_of_steps_hold_as_often_as_their_margin_says(
    mode: str, told: dict[str, int], quorum: int
) -> None:
    of = experiment(mode, 4, EXPONENTIAL, **told)
    laws = [held_against(result_of(of, barrier(of, 20, draws(of, seed), quorum))) for seed in range(RUNS)]
    assert 0.9 <= share_inside(laws) <= 0.99


@pytest.mark.parametrize("compute", [NEARLY_EVEN, CONSTANT], ids=["shifted", "constant"])
def test_draws_that_keep_workers_in_step_do_not_break_the_async_law(compute: dict[str, Any]) -> None:
    # Given all workers push nearly at once, so that the window's ends cut draws that are nearly whole
    of = experiment("async", 8, compute)
    laws = [held_against(result_of(of, asynchronous(of, 10, draws(of, seed)))) for seed in range(RUNS)]
    assert share_inside(laws) >= 0.9
    assert all(law.margin is not None and law.margin < 0.25 * MEAN / 8 for law in laws)


def test_the_whole_run_stands_beside_the_law_and_is_held_against_nothing() -> None:
    of = experiment("async", 8, EXPONENTIAL)
    result = result_of(of, asynchronous(of, 10, draws(of, 0)))
    [whole] = [law for law in laws_of(result) if law.statement == "time between updates over the whole run"]
    assert whole.measured == result.server_metrics.mean_step_seconds
    assert (whole.predicted, whole.margin) == (None, None)


def test_a_run_too_short_for_the_window_or_too_old_to_have_measured_it_claims_nothing() -> None:
    of = experiment("async", 2, EXPONENTIAL)
    accounting = asynchronous(of, 1, draws(of, 0))
    too_short = result_of(of, accounting)
    fields = accounting.summary()
    del fields["all_training_seconds"], fields["updates_all_training"]
    record = (
        whose(of, "server", 0, 0, 1) | {"mode": of.mode, "total_workers": 2, "apply_seconds": 0.0} | fields
    )
    old = ExperimentOutcome(
        experiment=of, status=Status.COMPLETED, records=[ServerSummary.model_validate(record)]
    )
    for result in (too_short, experiment_result(old)):
        law = held_against(result)
        assert (law.measured, law.margin) == (None, None)
        [row] = [row for row in sections.laws([result]).rows if row[1] == law.statement]
        assert row[2:] == ["25.0 ms", "–", "–"]


def test_the_margin_is_told_with_its_law() -> None:
    results = [experiment_result(outcome) for outcome in study_outcome(workers=(4,)).experiments]
    table = sections.laws(results)
    assert "before any overhead" in table.caption
    assert "overhead plus the luck of the draws" in table.caption
    assert [row[1] for row in table.rows if "±" in row[2]] == [
        "step = mean × H₄",
        "time between updates while all trained = mean ÷ N",
    ]
