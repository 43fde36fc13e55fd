"""The sentences, the intervals and the laws behind them."""

from collections.abc import Sequence
from itertools import permutations
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.aggregation import Mode
from contract.compute import Compute
from contract.table import Status
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.conditions import compared, pairs
from lambdas.publish_report.estimates import T_975, Spread, paired_difference, paired_ratio, spread
from lambdas.publish_report.findings import findings
from lambdas.publish_report.laws import draw_of_rank, laws_of
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.sections import scaling_figures, summary
from tests.unit.report_fixtures import EMULATED, measured, study_outcome

NEAR = 1e-9


def test_one_seed_tells_the_figures_and_warns_that_there_is_no_interval() -> None:
    found = findings([measured("sync", 4, 11.9, correct=346), measured("async", 4, 5.8, correct=342)])
    assert found.headline == (
        "Async with 4 workers finished 2.1× sooner than sync (5.8 s against 11.9 s) and ended at 95.0 %"
        " against 96.1 % accuracy (4 of 360 test samples apart)."
    )
    assert "no interval" in found.notes[0]


def test_the_slower_mode_is_never_called_faster() -> None:
    found = findings([measured("sync", 4, 5.0), measured("async", 4, 10.0)])
    assert found.headline.startswith(
        "Sync with 4 workers finished 2.0× sooner than async (5.0 s against 10.0 s)"
    )


def test_single_runs_that_differ_little_are_not_told_apart() -> None:
    found = findings([measured("sync", 4, 10.0), measured("async", 4, 9.7)])
    assert found.headline.startswith("Async and sync with 4 workers took the same time to within 5 %")
    assert "sooner" not in found.headline


def runs(of_sync: Sequence[float], of_async: Sequence[float]) -> list[ExperimentResult]:
    return [
        measured(mode, 4, seconds, seed=seed)
        for mode, times in (("sync", of_sync), ("async", of_async))
        for seed, seconds in enumerate(times)
    ]


def test_several_seeds_give_an_interval() -> None:
    found = findings(runs([10.0, 10.2, 9.8], [5.0, 5.1, 4.9]))
    assert "finished 2.0× sooner" in found.headline
    assert "95 % interval 2.0× to 2.0×, 3 seeds" in found.headline
    assert "no interval" not in " ".join(found.notes)


def test_where_the_interval_holds_no_difference_none_is_claimed() -> None:
    found = findings(runs([10.0, 12.0, 8.0], [9.0, 13.0, 8.5]))
    assert found.headline.startswith("No difference in training time detected between async and sync")
    assert "sooner" not in found.headline


def test_experiments_without_a_common_seed_are_not_compared() -> None:
    found = findings([measured("sync", 4, 10, seed=1), measured("async", 4, 5, seed=2)])
    assert "not compared" in found.headline


def test_a_failed_experiment_is_never_compared() -> None:
    found = findings([measured("sync", 4, 10), measured("async", 4, 5, status=Status.FAILED)])
    assert "no async experiment with as many workers completed" in found.headline
    assert findings([]).headline == "No experiment completed: there is nothing to compare."


def test_one_worker_is_no_race() -> None:
    assert (
        "differ by chance, not by mode"
        in findings([measured("sync", 1, 10), measured("async", 1, 5)]).headline
    )


def test_with_one_worker_equal_figures_do_not_differ() -> None:
    prefix = "With 1 worker sync and async do the same work: "
    alike = findings([measured("sync", 1, 10.0), measured("async", 1, 5.0)])
    assert alike.headline == (
        prefix + "10.0 s against 5.0 s differ by chance, not by mode; 95.0 % accuracy in both."
    )
    same = findings([measured("sync", 1, 10.0), measured("async", 1, 10.0)])
    assert same.headline == prefix + "10.0 s and 95.0 % accuracy in both."
    apart = findings([measured("sync", 1, None), measured("async", 1, 10.0, correct=346)])
    assert apart.headline == prefix + "95.0 % against 96.1 % accuracy differ by chance, not by mode."
    equal = findings([measured("sync", 4, 10.0), measured("async", 4, 5.0)])
    assert equal.headline.endswith("and both ended at 95.0 % accuracy (0 of 360 test samples apart).")


def test_without_a_barrier_the_same_seed_gives_different_runs_too() -> None:
    [about_async] = findings([measured("sync", 4, 10.0), measured("async", 4, 5.0)]).notes
    assert "In async even the same seed gives different runs" in about_async
    for results in ([measured("sync", 4, 10.0)], [measured("async", 1, 10.0)]):
        assert "same seed" not in findings(results).notes[0]


def test_different_seeds_in_different_conditions_are_not_several_seeds() -> None:
    results = [measured("sync", workers, 10.0, seed=workers) for workers in (1, 2, 4)]
    [note] = findings(results).notes
    assert note.startswith("One seed for each condition (of seeds 1, 2 and 4) gives no interval")
    assert "Student" not in note
    uneven = [*results, measured("sync", 4, 11.0, seed=9)]
    assert findings(uneven).notes[0].startswith("1 to 2 seeds for each condition.")


def test_a_seed_that_failed_is_named_where_only_one_is_left() -> None:
    found = findings([measured("sync", 4, 10.0, seed=7), measured("sync", 4, 9.0, status=Status.FAILED)])
    assert found.notes[0].startswith("One seed (7, of seeds 0 and 7 the only one that completed) gives no")


def test_sentence_and_table_give_the_same_speed_up() -> None:
    # Arithmetic mean 1.87, geometric mean 1.84
    results = [
        measured("sync", workers, seconds, seed=seed, name=f"sync{workers}seed{seed}")
        for seed, ratio in enumerate((1.6, 1.7, 2.3))
        for workers, seconds in ((1, 10.0 * ratio), (2, 10.0))
    ]
    table, found = scaling_figures(results), findings(results)
    assert found.sentences[-1] == "Going from 1 to 2 workers, sync got 1.8× faster (ideal: 2× faster)."
    assert table.rows[1][-1] == "1.8× (1.6× to 2.3×)"
    assert "geometric mean" in table.caption
    assert "ratios are geometric means" in found.notes[0]


def test_speed_up_names_its_baseline_where_that_is_not_one_worker() -> None:
    results = [measured(mode, n, 24 / n) for mode, n in [("sync", 2), ("sync", 4), ("async", 4)]]
    headings = [column.label for column in scaling_figures(results).columns]
    assert "sync: speed-up against 2 workers" in headings
    assert "async: speed-up against 4 workers" in headings
    alone = scaling_figures([measured("sync", 1, 10.0)]).columns
    assert alone[-1].label == "sync: speed-up"


@pytest.mark.parametrize(
    ("compute", "host", "warnings"),
    [
        (
            {"mode": "real"},
            "laptop",
            [
                "Up to 5 processes shared 2 cores: times are not those of 5 machines;"
                " use emulated compute, or AWS."
            ],
        ),
        ({"mode": "real"}, "", []),
        (EMULATED, "laptop", []),
    ],
)
def test_more_tasks_than_cores_are_warned_of_once(
    compute: dict[str, object], host: str, warnings: list[str]
) -> None:
    outcome = study_outcome(workers=(1, 2, 4), compute=compute, host=host, epochs=1)
    assert (
        findings([experiment_result(experiment) for experiment in outcome.experiments]).warnings == warnings
    )


SLOW_LINK = {"workers": [{"rank": 0, "bandwidth_mbit_per_second": 10}]}


@pytest.mark.parametrize(
    ("mode", "told", "parameters", "network", "warned"),
    [
        ("backup", {"backup_workers": 1}, 1_048_577, SLOW_LINK, True),
        ("ksync", {"k": 2}, 11_173_962, SLOW_LINK, True),
        ("kasync", {"k": 1}, 11_173_962, SLOW_LINK, True),
        # Nobody is left out, or it is who is whole last, or all links are alike
        ("ksync", {"k": 3}, 11_173_962, SLOW_LINK, False),
        ("sync", {}, 11_173_962, SLOW_LINK, False),
        ("async", {}, 11_173_962, SLOW_LINK, False),
        ("backup", {"backup_workers": 1}, 1_048_576, SLOW_LINK, False),
        ("backup", {"backup_workers": 1}, 11_173_962, {"bandwidth_mbit_per_second": 10}, False),
        (
            "backup",
            {"backup_workers": 1},
            11_173_962,
            {"latency_ms": 5, "workers": [{"rank": 0, "latency_ms": 5}]},
            False,
        ),
    ],
)
def test_where_a_choice_among_workers_does_not_cut_slow_links_a_warning_says_so(
    mode: str, told: dict[str, object], parameters: int, network: dict[str, object], warned: bool
) -> None:
    [whole] = study_outcome(modes=[mode], workers=[3], aggregation=told or None, network=network).experiments
    result = experiment_result(whole)
    tasks = [task.model_copy(update={"parameters": parameters}) for task in result.provenance]
    found = findings([result.model_copy(update={"provenance": tasks})]).warnings
    warning = (
        f"In {mode} a worker is chosen when the first block of its gradient comes, and the rest of it is waited for:"
        " with models of more than 1,048,576 parameters slow computing is passed over, and slow links, which differ"
        " here, are not."
    )
    assert found == ([warning] if warned else [])


def test_an_accuracy_on_a_part_of_the_test_set_is_warned_of() -> None:
    def tested(source: str, name: str) -> ExperimentResult:
        result = measured("async", 2, 10.0, name=name)
        partly = {"final_test_source": source, "final_test_epoch": 5, "final_test_samples": 180}
        partly_tested = result.worker_metrics_aggregated.model_copy(update=partly)
        return result.model_copy(update={"worker_metrics_aggregated": partly_tested})

    assert findings([tested("shares of an epoch", "whole")]).warnings == []
    assert findings(
        [tested("shares of an epoch", "whole"), tested("shares of finished workers", "cut")]
    ).warnings == [
        "cut: accuracy is that of epoch 5 on 180 test samples, the shares of the workers that finished: the others"
        " were lost, and nobody tested the final parameters."
    ]


def test_the_table_says_why_the_last_epoch_can_differ_from_the_final_accuracy() -> None:
    def caption(mode: str, workers: int) -> str:
        result = measured(mode, workers, 10.0)
        final = result.worker_metrics_aggregated.model_copy(update={"final_test_source": "final parameters"})
        return summary([result.model_copy(update={"worker_metrics_aggregated": final})]).caption

    assert caption("async", 4).count("last epoch") == 1
    assert "last epoch" not in caption("sync", 4) + caption("async", 1)


def test_most_workers_make_the_headline_and_scaling_names_the_ideal() -> None:
    found = findings([measured("sync", n, 24 / n) for n in (1, 2, 4)] + [measured("async", 4, 3.0)])
    assert found.headline.startswith("Async with 4 workers finished 2.0× sooner")
    assert found.sentences[-1] == "Going from 1 to 4 workers, sync got 4.0× faster (ideal: 4× faster)."


@pytest.mark.parametrize("order", tuple(permutations(range(3))))
def test_runs_that_repeat_a_seed_are_averaged_in_any_order(order: tuple[int, ...]) -> None:
    given_results = [
        measured("sync", 4, 10.0, name="sync-a", correct=340),
        measured("sync", 4, 20.0, name="sync-b", correct=350),
        measured("async", 4, 10.0, correct=350),
    ]
    results = [given_results[place] for place in order]
    found = findings(results)
    assert found.headline == (
        "Async with 4 workers finished 1.5× sooner than sync (10.0 s against 15.0 s) and ended at 97.2 %"
        " against 95.8 % accuracy."
    )
    assert "single runs" not in found.notes[0]
    assert "no interval" in found.notes[0]
    assert "averaged" in " ".join(found.notes)


def test_each_seed_weighs_the_same_however_often_it_was_run() -> None:
    runs_of_sync = [
        measured("sync", 4, seconds, seed=seed, name=f"sync{place}")
        for place, (seconds, seed) in enumerate([(20.0, 1), (8.0, 0), (12.0, 0)])
    ]
    runs_of_async = [measured("async", 4, 5.0, seed=0), measured("async", 4, 10.0, seed=1)]
    [(sync, asynchronous)] = compared([*runs_of_sync, *runs_of_async])
    assert pairs(asynchronous, sync, lambda result: result.training_seconds) == [(5.0, 10.0), (10.0, 20.0)]
    assert sync.spread(lambda result: result.training_seconds) == Spread(15.0, 10.0, 20.0, 2)


def test_images_apart_are_those_of_the_compared_seed() -> None:
    found = findings(
        [
            measured("sync", 4, 10.0, seed=1, correct=346),
            measured("async", 4, 5.0, seed=0, correct=100),
            measured("async", 4, 5.0, seed=1, correct=342),
        ]
    )
    assert "(4 of 360 test samples apart)" in found.headline


def test_a_mode_that_is_told_different_things_is_different_conditions() -> None:
    results = [
        measured("ksync", workers, seconds, told={"k": k}, name=f"k{k}-{workers}")
        for workers, k, seconds in [(4, 1, 8.0), (4, 2, 10.0), (8, 2, 5.0)]
    ]
    found = findings(results)
    assert found.headline.startswith(
        "With 4 workers ksync (k = 1) finished first, after 8.0 s; ksync (k = 2) took 1.2× as long."
    )
    assert found.sentences[0].startswith("Ksync (k = 2) with 8 workers trained for 5.0 s")
    assert (
        found.sentences[-1] == "Going from 4 to 8 workers, ksync (k = 2) got 2.0× faster (ideal: 2× faster)."
    )
    headings = [column.label for column in scaling_figures(results).columns]
    assert "ksync (k = 1): time" in headings
    assert "ksync (k = 2): time" in headings


def test_a_paired_interval_is_students_t_by_hand() -> None:
    # differences 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303
    estimate = paired_difference([(2, 1), (4, 2), (6, 3)])
    assert estimate is not None
    assert (estimate.value, estimate.pairs) == (2, 3)
    assert estimate.low == pytest.approx(2 - 4.303 / 3**0.5)
    assert not estimate.excludes(0)


def test_a_ratio_is_averaged_on_logarithms() -> None:
    estimate = paired_ratio([(2, 1), (1, 2)])
    assert estimate is not None
    assert estimate.value == pytest.approx(1)
    assert log(estimate.high) == pytest.approx(T_975[0] * log(2))
    assert paired_ratio([(0, 1)]) is None


def test_one_pair_gives_no_interval_and_rules_nothing_out() -> None:
    estimate = paired_difference([(5, 1)])
    assert estimate is not None
    assert (estimate.low, estimate.high) == (-inf, inf)
    assert not estimate.excludes(0)
    assert spread([None, 1.0, 3.0]) == spread([3.0, 1.0])
    assert spread([None]) is None


@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)), min_size=1, max_size=12))
def test_a_ratio_turned_round_is_its_inverse(measurements: list[tuple[float, float]]) -> None:
    one, other = paired_ratio(measurements), paired_ratio([(b, a) for a, b in measurements])
    assert one is not None
    assert other is not None
    assert one.value * other.value == pytest.approx(1)
    assert one.excludes(1 + NEAR) == other.excludes(1 / (1 + NEAR)) or one.pairs == 1


def test_the_longest_of_exponential_draws_has_the_harmonic_mean() -> None:
    mean, deviation = draw_of_rank(Compute(mode="emulated", mean_ms=50), 4, 4)
    assert mean == pytest.approx(0.05 * (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert deviation == pytest.approx(0.05 * (1 + 1 / 4 + 1 / 9 + 1 / 16) ** 0.5)
    constant = Compute(mode="emulated", distribution="constant", mean_ms=50)
    assert draw_of_rank(constant, 4, 2) == (0.05, 0)


def test_simulated_training_obeys_the_laws_that_it_is_held_against() -> None:
    results = [experiment_result(outcome) for outcome in study_outcome(workers=(2, 4), epochs=20).experiments]
    by_statement = {
        (law.experiment, law.statement.split(" =")[0]): law for result in results for law in laws_of(result)
    }
    step = by_statement["sync_4workers", "step"]
    staleness = by_statement["async_4workers", "staleness while all trained"]
    whole_run = by_statement["async_4workers", "staleness over the whole run"]
    assert step.measured is not None
    assert step.predicted is not None
    assert step.margin is not None
    # the simulation adds 4 ms for the round trip and testing to each step
    assert abs(step.measured - 0.006 - step.predicted) < 2 * step.margin
    assert staleness.predicted == 3
    assert staleness.measured == pytest.approx(3, abs=0.05)
    assert whole_run.predicted is None
    assert whole_run.measured is not None
    assert whole_run.measured <= (staleness.measured or 0)


def law_statements(mode: Mode, compute: dict[str, object], **told: object) -> dict[str, float | None]:
    """What each law says of an experiment with 4 workers of a mode: statement → prediction."""
    emulated = {"mode": "emulated", "mean_ms": 50, **compute}
    outcome = study_outcome(modes=(mode,), workers=(4,), compute=emulated, aggregation=told, epochs=1)
    [result] = [experiment_result(experiment) for experiment in outcome.experiments]
    return {law.statement: law.predicted for law in laws_of(result)}


@pytest.mark.parametrize(
    ("mode", "compute", "told", "statement", "seconds"),
    [
        (Mode.BACKUP, {}, {"backup_workers": 1}, "step = mean × (H₄ − H₁)", 0.05 * (1 / 2 + 1 / 3 + 1 / 4)),
        (Mode.KSYNC, {}, {"k": 2}, "step = mean × (H₄ − H₂)", 0.05 * (1 / 3 + 1 / 4)),
        (Mode.KSYNC, {}, {"k": 4}, "step = mean × H₄", 0.05 * 25 / 12),
        (
            Mode.KASYNC,
            {},
            {"k": 2},
            "time between updates while all trained = mean × (H₄ − H₂)",
            0.05 * (1 / 3 + 1 / 4),
        ),
        (Mode.STALENESS_AWARE, {}, {}, "time between updates while all trained = mean ÷ N", 0.0125),
        (
            Mode.DC_ASGD,
            {"distribution": "pareto", "tail_index": 3.0},
            {"dc_lambda": 0.04},
            "time between updates while all trained = mean ÷ N",
            0.0125,
        ),
        (
            Mode.SYNC,
            {"distribution": "shifted-exponential", "shift_ms": 30},
            {},
            "step = shift + (mean − shift) × H₄",
            0.03 + 0.02 * 25 / 12,
        ),
        (Mode.KSYNC, {"distribution": "constant"}, {"k": 2}, "step = mean", 0.05),
    ],
)
def test_each_mode_is_held_against_its_own_law(
    mode: Mode, compute: dict[str, object], told: dict[str, object], statement: str, seconds: float
) -> None:
    assert law_statements(mode, compute, **told)[statement] == pytest.approx(seconds)


def test_where_there_is_no_short_formula_none_is_claimed() -> None:
    pareto = {"distribution": "pareto", "tail_index": 3.0}
    assert law_statements(Mode.SYNC, pareto) == {}
    assert not any("time" in statement for statement in law_statements(Mode.KASYNC, pareto, k=2))
    assert not any("time" in statement for statement in law_statements(Mode.SSP, {}, staleness_bound=2))
    straggling: dict[str, object] = {"stragglers": [{"rank": 0, "slowdown": 10}]}
    assert law_statements(Mode.SYNC, straggling) == {}


def test_staleness_has_the_law_of_its_quorum() -> None:
    assert law_statements(Mode.KASYNC, {}, k=2)["staleness while all trained = (N − K) ÷ K"] == 1
    assert law_statements(Mode.DC_ASGD, {}, dc_lambda=1)["staleness while all trained = N − 1"] == 3
    assert (
        law_statements(Mode.SSP, {}, staleness_bound=2)["staleness while all trained, at most N − 1"] is None
    )
    assert not any(
        "staleness" in statement for statement in law_statements(Mode.BACKUP, {}, backup_workers=1)
    )


def test_a_mode_with_nothing_beside_it_is_told_by_itself() -> None:
    found = findings([measured("ssp", 4, 8.0, told={"staleness_bound": 1})])
    assert found.headline == (
        "Ssp with 4 workers trained for 8.0 s and ended at 95.0 % accuracy;"
        " no other experiment with as many workers completed, so there is no comparison."
    )


def test_beside_other_modes_the_ranking_leads_and_sync_and_async_keep_their_sentence() -> None:
    outcome = study_outcome(modes=("sync", "async", "ssp"), workers=(4,), aggregation={"staleness_bound": 1})
    found = findings([experiment_result(experiment) for experiment in outcome.experiments])
    assert found.headline.startswith("With 4 workers ")
    assert "finished first" in found.headline
    assert found.sentences[0].startswith("Async with 4 workers finished ")


def test_laws_of_time_are_silent_over_an_injected_network_and_all_laws_after_a_loss() -> None:
    plain = measured("async", 4, 10.0)
    assert {law.unit for law in laws_of(plain)} == {"s", "updates"}
    slow = measured("async", 4, 10.0, network={"bandwidth_mbit_per_second": 100})
    assert {law.unit for law in laws_of(slow)} == {"updates"}
    assert laws_of(measured("async", 4, 10.0, server={"lost_workers": [1]})) == []


def test_real_compute_has_no_law_for_its_steps_and_one_worker_none_for_staleness() -> None:
    real = study_outcome(modes=("sync", "async"), workers=(1,), compute={"mode": "real"})
    assert [law for outcome in real.experiments for law in laws_of(experiment_result(outcome))] == []
