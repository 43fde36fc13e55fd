import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.science import __main__ as science
from bench.science.experiment import Experiment, Unusable, experiment_of
from bench.science.figures import chen, dutta, zhang
from bench.science.page import chen_section, dutta_section, page, zhang_section
from bench.science.plots import plots
from bench.science.statistics import (
    Curve,
    crossing,
    drawn_seconds,
    kth_draw_seconds,
    on_grid,
    over_seeds,
    ratio,
    slope,
)
from contract.aggregation import Mode
from contract.compute import Compute
from contract.draws import draw_seconds
from contract.study import parse_study
from contract.training import Training

ROOT = Path(__file__).parents[2]

EXPONENTIAL = Compute(mode="emulated", distribution="exponential", mean_ms=60)
PARETO = Compute(mode="emulated", distribution="pareto", mean_ms=60, tail_index=2.1)


def experiment(mode: Mode, seed: int, **told: Any) -> Experiment:
    given: dict[str, Any] = {
        "name": f"{mode}_seed{seed}",
        "workers": 8,
        "training": Training(),
        "compute": EXPONENTIAL,
        "training_seconds": 10.0 + seed,
        "update_seconds": 0.16,
        "updates": 100,
        "gradients": 800,
        "dropped": 0,
        "error_percent": 5.0,
        "epoch_seconds": [2.0] * 5,
        "losses": [1.0, 0.5, 0.3, 0.2, 0.2],
        "errors": [30.0, 12.0, 8.0, 6.0, 5.0],
    }
    return Experiment(mode=mode, seed=seed, **{**given, **told})


def async_like(seed: int) -> Experiment:
    """Down at once, and no further."""
    return experiment(
        Mode.ASYNC, seed, epoch_seconds=[1.0] * 8, losses=[0.35] * 8, errors=[9.0] * 8, training_seconds=8.0
    )


# Curves


def test_a_curve_is_straight_between_its_points() -> None:
    curve = Curve([1.0, 3.0], [10.0, 20.0])
    assert [curve.at(second) for second in (1.0, 2.0, 3.0)] == [10.0, 15.0, 20.0]


@pytest.mark.parametrize("second", [0.9, 3.1])
def test_a_curve_says_nothing_of_before_and_after(second: float) -> None:
    with pytest.raises(ValueError, match=r"outside the curve, 1\.0 to 3\.0"):
        Curve([1.0, 3.0], [10.0, 20.0]).at(second)


@pytest.mark.parametrize(
    ("reached", "when"), [(10.0, 1.0), (12.0, 1.0), (8.0, 1.5), (6.0, 2.0), (4.0, 3.5), (3.9, None)]
)
def test_the_first_time_that_a_value_is_reached(reached: float, when: float | None) -> None:
    curve = Curve([1.0, 2.0, 3.0, 4.0], [10.0, 6.0, 9.0, -1.0 if reached == 4.0 else 3.95])
    assert curve.first(reached) == (when if when is None else pytest.approx(when))


def test_curves_cross_where_they_are_equal() -> None:
    late, early = Curve([0.0, 10.0], [10.0, 0.0]), Curve([0.0, 5.0, 20.0], [4.0, 4.0, 4.0])
    assert crossing(late, early) == pytest.approx(6.0)


def test_the_last_of_several_crossings_counts() -> None:
    late, early = Curve([0.0, 1.0, 2.0, 3.0], [2.0, 0.0, 2.0, 0.0]), Curve([0.0, 3.0], [1.0, 1.0])
    assert crossing(late, early) == pytest.approx(2.5)


@pytest.mark.parametrize(
    "late",
    [
        Curve([0.0, 10.0], [9.0, 5.0]),  # never comes below
        Curve([0.0, 10.0], [1.0, 0.0]),  # was below all along
        Curve([0.0, 5.0, 10.0], [9.0, 1.0, 8.0]),  # is above again at the end
        Curve([20.0, 30.0], [1.0, 0.0]),  # at another time
    ],
)
def test_curves_that_do_not_cross_for_good(late: Curve) -> None:
    assert crossing(late, Curve([0.0, 10.0], [4.0, 4.0])) is None


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=8),
    st.lists(st.floats(0.1, 10), min_size=2, max_size=8),
)
def test_after_a_crossing_the_late_curve_stays_below(first: list[float], second: list[float]) -> None:
    late, early = (Curve([float(i) for i in range(len(values))], values) for values in (first, second))
    when = crossing(late, early)
    if when is not None:
        end = min(late.seconds[-1], early.seconds[-1])
        assert late.at(when) == pytest.approx(early.at(when))
        for i in range(1, 101):
            moment = when + (end - when) * i / 100
            assert late.at(min(moment, end)) <= early.at(min(moment, end)) + 1e-9


def test_a_grid_covers_the_time_that_all_curves_cover() -> None:
    grid = on_grid([Curve([0.0, 4.0], [0.0, 4.0]), Curve([1.0, 3.0], [3.0, 5.0])], points=3)
    assert grid == [(1.0, 2.0, 1.0, 3.0), (2.0, 3.0, 2.0, 4.0), (3.0, 4.0, 3.0, 5.0)]


def test_a_slope_is_that_of_the_straight_line_through_the_points() -> None:
    assert slope(Curve([1.0, 2.0, 3.0], [5.0, 3.0, 1.0])) == pytest.approx(-2.0)
    # Noise that is even about the line changes nothing.
    assert slope(Curve([0.0, 1.0, 2.0, 3.0], [1.0, -1.0, -1.0, 1.0])) == pytest.approx(0.0)
    assert slope(Curve([1.0], [5.0])) == 0.0


# Figures over seeds


def test_an_interval_is_students_t() -> None:
    found = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * (2.5**0.5) / 5**0.5
    assert found == {
        "mean": 3.0,
        "low": pytest.approx(3 - half),
        "high": pytest.approx(3 + half),
        "seeds": 5,
        "of": 5,
    }


def test_a_seed_without_a_figure_is_counted() -> None:
    assert over_seeds([2.0, None]) == {"mean": 2.0, "low": None, "high": None, "seeds": 1, "of": 2}
    assert over_seeds([None]) == {"mean": None, "low": None, "high": None, "seeds": 0, "of": 1}


def test_a_ratio_is_taken_within_seeds() -> None:
    found = ratio([(2.0, 1.0), (8.0, 4.0), (3.0, None)])
    assert (found["mean"], found["seeds"], found["of"]) == (pytest.approx(2.0), 2, 3)


@pytest.mark.parametrize("compute", [EXPONENTIAL, PARETO])
@pytest.mark.parametrize(("workers", "k"), [(8, 8), (9, 8), (10, 8), (5, 1)])
def test_the_law_is_the_mean_of_many_draws(compute: Compute, workers: int, k: int) -> None:
    random, steps = Random(1), count()
    picked = []
    for _ in range(6000):
        step = next(steps) + random.randrange(10**6) * 10_000
        picked.append(sorted(draw_seconds(7, rank, step, compute) for rank in range(workers))[k - 1])
    # The longest of Pareto draws has hardly a variance.
    tolerance = 0.12 if compute is PARETO and k == workers else 0.04
    assert fmean(picked) == pytest.approx(kth_draw_seconds(compute, workers, k), rel=tolerance)


def test_the_least_of_pareto_draws_is_pareto_again() -> None:
    least = 0.060 * 1.1 / 2.1
    assert kth_draw_seconds(PARETO, 5, 1) == pytest.approx(least * 10.5 / 9.5)
    assert kth_draw_seconds(PARETO, 1, 1) == pytest.approx(0.060)


def test_drawn_seconds_are_those_of_the_workers_own_draws() -> None:
    expected = fmean(sorted(draw_seconds(3, rank, step, PARETO) for rank in range(4))[2] for step in range(5))
    assert drawn_seconds(PARETO, 4, 3, steps=5, seed=3) == pytest.approx(expected)


# Papers


def test_dutta_finds_who_is_ahead_and_where_they_cross() -> None:
    found = dutta([run for seed in (0, 1) for run in (experiment(Mode.SYNC, seed), async_like(seed))])
    assert found["seconds_to_fallen_loss"]["sync"]["mean"] == pytest.approx(3.0)
    assert found["seconds_to_fallen_loss"]["async"]["mean"] == pytest.approx(0.5)
    assert found["fallen_sync_over_async"]["mean"] == pytest.approx(6.0)
    assert found["crossing_seconds_by_seed"] == [pytest.approx(4.5)] * 2
    assert found["last_crossing_seconds"]["mean"] == pytest.approx(4.5)
    # The last two of five epochs, and the last four of eight.
    assert found["floor_epochs"] == {"sync": 2, "async": 4}
    assert found["floor_loss_async_minus_sync"]["mean"] == pytest.approx(0.35 - 0.2)
    assert "floor at **4.5 [4.5, 4.5] s** (each seed: 4.5, 4.5)" in dutta_section(found)


def test_a_dip_of_async_moves_the_last_crossing_alone() -> None:
    dip = replace(async_like(0), losses=[0.35] * 6 + [0.2, 0.5])
    found = dutta([experiment(Mode.SYNC, 0), dip])
    assert found["crossing_seconds"]["mean"] == pytest.approx(4.5, abs=0.1)
    assert found["last_crossing_seconds"]["mean"] > 6


def test_a_seed_whose_curves_do_not_cross_is_told() -> None:
    never = experiment(Mode.SYNC, 1, losses=[1.0] * 5)
    found = dutta([experiment(Mode.SYNC, 0), async_like(0), never, async_like(1)])
    assert found["crossing_seconds_by_seed"] == [pytest.approx(4.5), None]
    assert "**4.5 (1 of 2 seeds) s** (each seed: 4.5, –)" in dutta_section(found)


@pytest.mark.parametrize(("seconds", "crossed"), [(0.57, True), (0.56, False)])
def test_no_crossing_is_claimed_after_asyncs_run(seconds: float, crossed: bool) -> None:
    # Sync comes down to async's floor at 4.5 s; async makes eight epochs.
    other = replace(async_like(0), epoch_seconds=[seconds] * 8)
    found = dutta([experiment(Mode.SYNC, 0), other])
    assert (found["crossing_seconds_by_seed"] == [pytest.approx(4.5)]) is crossed
    assert ("no crossing is claimed" in dutta_section(found)) is not crossed


def test_a_floor_that_still_falls_is_told_from_one_that_is_flat() -> None:
    runs = [experiment(Mode.SYNC, seed) for seed in (0, 1)]
    noise = [(0.35, 0.36, 0.34, 0.35), (0.36, 0.35, 0.35, 0.36)]
    flat = [replace(async_like(seed), losses=[0.4] * 4 + [*of]) for seed, of in enumerate(noise)]
    found = dutta([*runs, *flat])
    assert "cannot be told from a flat one" in dutta_section(found)
    falling = [0.5, 0.4, 0.3, 0.2]
    found = dutta([*runs, *(replace(run, losses=[0.6] * 4 + falling) for run in flat)])
    assert found["floor_drift"]["async"]["mean"] == pytest.approx(-0.3)
    assert "floor is not flat" in dutta_section(found)


def test_one_seed_says_nothing_of_a_floor() -> None:
    section = dutta_section(dutta([experiment(Mode.SYNC, 0), async_like(0)]))
    assert "cannot be told from one seed" in section


def test_a_missing_seed_is_an_error() -> None:
    with pytest.raises(Unusable, match=r"differ in their seeds.*\(0, 1\)"):
        dutta([experiment(Mode.SYNC, 0), experiment(Mode.SYNC, 1), async_like(0)])


def test_a_failed_experiment_is_an_error() -> None:
    failed = experiment(Mode.SYNC, 0, completed=False, cause="worker 3 vanished")
    with pytest.raises(Unusable, match="sync_seed0 did not complete: worker 3 vanished"):
        dutta([failed, async_like(0)])


def of_zhang(seed: int, **told: Any) -> list[Experiment]:
    stale = {"mean_staleness": 29.0, "stalenesses": {28: 30, 30: 69, 61: 1}}
    return [
        experiment(Mode.SYNC, seed, workers=30, error_percent=6.0),
        experiment(Mode.ASYNC, seed, workers=30, error_percent=88.0, **{**stale, **told}),
        experiment(Mode.STALENESS_AWARE, seed, workers=30, error_percent=7.0 + seed, **stale),
    ]


def test_zhang_compares_within_seeds_and_pools_staleness() -> None:
    found = zhang([*of_zhang(0), *of_zhang(1)])
    assert found["async_minus_aware_percent"]["mean"] == pytest.approx(80.5)
    assert found["aware_minus_sync_percent"]["mean"] == pytest.approx(1.5)
    assert found["staleness_histogram"]["async"] == {"28": 60, "30": 138, "61": 2}
    assert found["share_beyond_twice_workers"] == {"async": 0.01, "staleness-aware": 0.01}


def test_a_run_that_diverged_counts_as_guessing_and_is_shown() -> None:
    diverged = {
        "completed": False,
        "cause": "worker 2: 9 of 10 values are NaN or infinite; lower the learning rate",
    }
    found = zhang([*of_zhang(0), *of_zhang(1, **diverged)])
    assert found["final_error_percent_by_seed"]["async"] == [88.0, 90.0]
    assert found["diverged"]["async"] == [False, True]
    assert found["training_seconds"]["async"]["of"] == 1
    section = zhang_section(found)
    assert "88.0, *diverged*" in section
    assert "it counts with the error of guessing" in section


def test_a_run_that_failed_otherwise_does_not_count_as_diverged() -> None:
    with pytest.raises(Unusable, match="async_seed1 did not complete: worker 2 vanished"):
        zhang([*of_zhang(0), *of_zhang(1, completed=False, cause="worker 2 vanished")])


def of_chen(seed: int) -> list[Experiment]:
    return [
        experiment(Mode.SYNC, seed, update_seconds=0.18),
        experiment(
            Mode.BACKUP,
            seed,
            workers=10,
            backup_workers=2,
            update_seconds=0.09,
            dropped=200,
            epoch_seconds=[1.0] * 5,
        ),
    ]


def test_chen_compares_with_the_law_and_with_no_backups() -> None:
    found = chen([*of_chen(0), *of_chen(1)])
    none, two = found["by_backup_workers"]["0"], found["by_backup_workers"]["2"]
    assert none["update_seconds_by_law"] == pytest.approx(0.060 * sum(1 / i for i in range(1, 9)))
    assert two["update_seconds_by_law"] == pytest.approx(0.060 * sum(1 / i for i in range(3, 11)))
    assert two["speed_up_of_updates"]["mean"] == pytest.approx(2.0)
    assert (none["seconds_to_target"]["mean"], two["seconds_to_target"]["mean"]) == (5.0, 2.5)
    assert none["updates_to_target"]["mean"] == two["updates_to_target"]["mean"] == 50
    assert two["dropped_share"]["mean"] == pytest.approx(0.2)
    drawn = fmean(drawn_seconds(EXPONENTIAL, 8, 8, steps=100, seed=seed) for seed in (0, 1))
    assert none["overhead_seconds"]["mean"] == pytest.approx(0.18 - drawn)
    assert "| 2 | 90.0 [90.0, 90.0] |" in chen_section({"exponential": found})


# Files


def document(**server: object) -> dict[str, Any]:
    return {
        "experiment_name": "backup_b2_10workers_seed4",
        "status": "COMPLETED",
        "cause": "",
        "failures": [],
        "seed": 4,
        "aggregation": {"backup_workers": 2},
        "training": Training().model_dump(mode="json"),
        "compute": EXPONENTIAL.model_dump(mode="json"),
        "server_metrics": {
            "mode": "backup",
            "total_workers": 10,
            "total_training_time_seconds": 9.5,
            "mean_step_seconds": 0.07,
            "global_steps_completed": 136,
            "gradients_processed": 1088,
            "dropped_gradients": 272,
            **server,
        },
        "worker_metrics_aggregated": {
            "final_test_accuracy_percent": 92.5,
            "epoch_times_by_epoch": [{"epoch": 1, "avg_time": 1.5}, {"epoch": 2, "avg_time": 1.0}],
            "accuracy_by_epoch": [
                {"epoch": 1, "mean_loss": 0.9, "test_accuracy_percent": 80.0},
                {"epoch": 2, "mean_loss": 0.5, "test_accuracy_percent": 92.5},
            ],
        },
    }


def test_an_experiment_is_read_from_its_published_result() -> None:
    read = experiment_of(document())
    assert (read.mode, read.quorum, read.seed, read.final_error) == (Mode.BACKUP, 8, 4, 7.5)
    assert read.loss_curve == Curve([0.75, 2.0], [0.9, 0.5])
    assert read.error_curve == Curve([1.5, 2.5], [20.0, 7.5])
    assert read.updates_to_error(20.0) == 68


def test_staleness_is_read_where_it_was_measured() -> None:
    read = experiment_of(
        document(staleness_histogram={"29": 3}, average_gradient_staleness_all_training=29.0)
    )
    assert (read.stalenesses, read.mean_staleness) == ({29: 3}, 29.0)


def test_why_an_experiment_failed_is_read_from_all_that_was_said() -> None:
    failed = {
        **document(),
        "status": "FAILED",
        "cause": "worker 1 exited with 1",
        "failures": [{"reason": "block 0: 3 of 9 values are NaN or infinite"}],
    }
    assert experiment_of(failed).has_diverged


def test_a_file_that_is_no_result_is_named() -> None:
    broken = document()
    del broken["server_metrics"]["total_workers"]
    with pytest.raises(Unusable, match=r"backup_b2_10workers_seed4 is no result.*total_workers"):
        experiment_of(broken)


def test_a_figure_that_was_not_measured_is_named() -> None:
    with pytest.raises(Unusable, match="sync_seed0 lacks a figure"):
        _ = experiment(Mode.SYNC, 0, error_percent=None).final_error


def test_the_newest_results_of_a_study_are_found(tmp_path: Path) -> None:
    for name in (
        "chen-20261123-100000-aaaa",
        "chen-20261124-090000-aaaa",
        "chen-pareto-20261125-090000-aaaa",
    ):
        (tmp_path / name).mkdir()
    assert science.newest(tmp_path, "chen").name == "chen-20261124-090000-aaaa"
    assert science.newest(tmp_path, "chen-pareto").name == "chen-pareto-20261125-090000-aaaa"
    with pytest.raises(Unusable, match="no results of dutta: run it first"):
        science.newest(tmp_path, "dutta")


def write_results(results: Path, file: str, **changed: object) -> None:
    """What a run of a study would leave, in small."""
    study = parse_study(json.loads((ROOT / "examples" / "science" / f"{file}.json").read_text()))
    folder = results / f"{study.name}-20261123-100000-aaaa"
    (folder / "experiments").mkdir(parents=True)
    times = {"started_at": "2026-11-23T10:00:00+00:00", "ended_at": "2026-11-23T10:02:30+00:00"}
    (folder / "study.json").write_text(json.dumps(times))
    task = {
        "cpu_model": "EPYC",
        "cpu_count": 2,
        "python_version": "3.11.7",
        "torch_version": "2.13.0",
        "threads": 1,
    }
    for cell in study.cells():
        result = document(mode=cell.mode.value, total_workers=cell.workers) | {
            "experiment_name": cell.name,
            "seed": cell.seed,
            "aggregation": {"backup_workers": cell.aggregation.backup_workers},
            "training": study.training.model_dump(mode="json"),
            "compute": study.compute.model_dump(mode="json"),
            "provenance": [task],
            **changed,
        }
        (folder / "experiments" / f"{cell.name}.json").write_text(json.dumps(result))


def test_results_become_figures_plots_and_page(tmp_path: Path) -> None:
    write_results(tmp_path, "chen-exponential")
    write_results(tmp_path, "chen-pareto")
    figures = tmp_path / "science.json"
    science.keep("chen", science.evaluate("chen", tmp_path), figures)
    found = json.loads(figures.read_text())
    assert [study["seeds"] for study in found["studies"]] == [[0, 1, 2, 3, 4]] * 2
    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "science.md").write_text("before\n<!-- chen: begin -->\nold\n<!-- chen: end -->\nafter\n")
    science.write(found, docs)
    text = (docs / "science.md").read_text()
    assert "Seeds 0, 1, 2, 3, 4; 5.0 minutes in all. Machine: EPYC, 2 cores;" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert (docs / "images" / "science_chen.svg").read_bytes() == plots(found)["science_chen.svg"]


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    for file in ("dutta-sync", "dutta-async"):
        write_results(
            tmp_path, file, compute=EXPONENTIAL.model_copy(update={"mean_ms": 7.0}).model_dump(mode="json")
        )
    with pytest.raises(Unusable, match="other settings"):
        science.evaluate("dutta", tmp_path)


def test_figures_of_one_paper_may_come_from_several_studies(tmp_path: Path) -> None:
    write_results(tmp_path, "dutta-sync")
    write_results(tmp_path, "dutta-async")
    found = science.evaluate("dutta", tmp_path)
    assert [study["study"] for study in found["studies"]] == ["science-dutta-sync", "science-dutta-async"]
    assert found["dutta"]["seeds"] == [0, 1, 2, 3, 4]
    assert found["dutta"]["seconds_to_fallen_loss"]["async"]["seeds"] == 5


def test_results_that_lack_an_experiment_are_refused(tmp_path: Path) -> None:
    write_results(tmp_path, "dutta-sync")
    write_results(tmp_path, "dutta-async")
    next(tmp_path.glob("*/experiments/async*seed3.json")).unlink()
    with pytest.raises(Unusable, match="lacks async_8workers_seed3"):
        science.evaluate("dutta", tmp_path)


def test_a_papers_figures_take_the_place_of_its_own_alone(tmp_path: Path) -> None:
    file = tmp_path / "science.json"
    first = {"studies": [{"paper": "dutta", "run": "1"}], "dutta": {"old": True}}
    science.keep("dutta", first, file)
    science.keep("zhang", {"studies": [{"paper": "zhang", "run": "2"}], "zhang": {"x": 1 / 3}}, file)
    science.keep("dutta", {"studies": [{"paper": "dutta", "run": "3"}], "dutta": {}}, file)
    assert json.loads(file.read_text()) == {
        "studies": [{"paper": "zhang", "run": "2"}, {"paper": "dutta", "run": "3"}],
        "dutta": {},
        "zhang": {"x": 0.33333},
    }


@given(
    st.recursive(
        st.floats(-1e6, 1e6) | st.text('[]{} "\n'),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("ab["), inner),
    )
)
def test_lines_of_a_handy_length_are_the_same_json(value: object) -> None:
    assert json.loads(science.as_text({"value": value})) == {"value": science.rounded(value)}


@pytest.mark.parametrize("argv", [["--only", "dutta,dijkstra"], ["--seeds", "3"]])
def test_wrong_usage_is_refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        science.main(argv)
    assert refused.value.code == 2
    assert "usage: python -m bench.science" in capsys.readouterr().err


# What is committed


@pytest.mark.parametrize("paper", science.PAPERS)
def test_every_study_has_at_least_five_seeds_in_every_condition(paper: str) -> None:
    for file in science.PAPERS[paper].files:
        study = parse_study(json.loads((science.STUDIES / f"{file}.json").read_text()))
        seeds: dict[tuple[Mode, int], set[int]] = {}
        for cell in study.cells():
            seeds.setdefault((cell.mode, cell.workers), set()).add(cell.seed)
        assert min(len(of) for of in seeds.values()) >= 5
        assert len({frozenset(of) for of in seeds.values()}) == 1
        assert study.compute.mode == "emulated"


def test_metric_lines_come_no_faster_than_the_embedded_cloud_takes_them() -> None:
    """A worker prints one line an epoch; more than some ten a second start function after function."""
    for paper in science.PAPERS.values():
        for file in paper.files:
            study = parse_study(json.loads((science.STUDIES / f"{file}.json").read_text()))
            rates = []
            for cell in study.cells():
                steps = 1437 // cell.workers // study.training.batch_size
                quorum = cell.workers - (cell.aggregation.backup_workers or 0)
                barrier = cell.mode in {Mode.SYNC, Mode.BACKUP}
                mean = study.compute.mean_ms / 1000
                seconds = kth_draw_seconds(study.compute, cell.workers, quorum) if barrier else mean
                rates.append(cell.workers / (steps * seconds))
            busiest = sorted(rates, reverse=True)[: study.max_parallel_experiments]
            assert sum(busiest) < 20


def test_sync_and_async_of_dutta_run_equally_long_and_differ_in_nothing_else() -> None:
    sync, other = (
        parse_study(json.loads((science.STUDIES / f"{file}.json").read_text()))
        for file in ("dutta-sync", "dutta-async")
    )
    seconds = sync.training.epochs * kth_draw_seconds(sync.compute, 8, 8)
    assert other.training.epochs * other.compute.mean_ms / 1000 == pytest.approx(seconds, rel=0.02)
    assert other.training.model_copy(update={"epochs": sync.training.epochs}) == sync.training
    assert (other.compute, other.seeds, other.matrix.workers) == (
        sync.compute,
        sync.seeds,
        sync.matrix.workers,
    )


def test_the_committed_page_and_plots_show_the_committed_figures() -> None:
    found = json.loads(science.FIGURES.read_text()) if science.FIGURES.exists() else {"studies": []}
    text = (science.DOCS / "science.md").read_text()
    assert page(text, found) == text
    for name, image in plots(found).items():
        assert (science.DOCS / "images" / name).read_bytes() == image
