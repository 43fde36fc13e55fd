"""From records to the result of one experiment: hand-computed figures, missing and repeated records."""

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.metrics import MetricRecord, ServerInterval, ServerSummary, WorkerEpoch, WorkerSummary
from contract.plan import Experiment, plan
from contract.study import parse_study
from contract.table import Status
from lambdas.publish_report.aggregation import experiment_result, unique_records
from lambdas.publish_report.results import ExperimentOutcome, ExperimentResult
from tests.unit.report_fixtures import records_of, task_failed, whose

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def experiment(mode: str = "async", workers: int = 2) -> Experiment:
    study = parse_study({"matrix": {"mode": [mode], "workers": [workers]}, "training": {"epochs": 2}})
    return plan(study, "study-1")[0]


def epoch(of: Experiment, rank: int, number: int, **changed: Any) -> WorkerEpoch:
    values = {
        "epoch": number,
        "epoch_seconds": 2.0,
        "steps": 10,
        "samples": 160,
        "samples_per_second": 80.0,
        "compute_seconds": 1.0,
        "push_pull_seconds": 0.5,
        "waiting_seconds": 0.25,
        "evaluation_seconds": 0.25,
        "loss": 1.0,
        "test_correct": 9,
        "test_samples": 10,
        "version": 20,
    }
    return WorkerEpoch.model_validate(whose(of, "worker", rank, number, number) | values | changed)


def worker_summary(of: Experiment, rank: int, seq: int = 3, **changed: Any) -> WorkerSummary:
    values = {
        "training_seconds": 4.0,
        "epochs": 2,
        "steps": 20,
        "samples": 320,
        "compute_seconds": 3.0,
        "emulated_seconds": 0.0,
        "push_pull_seconds": 1.0,
        "waiting_seconds": 0.0,
        "evaluation_seconds": 1.0,
        "sent_bytes": 100,
        "received_bytes": 200,
    }
    return WorkerSummary.model_validate(whose(of, "worker", rank, seq, 10 + rank) | values | changed)


def server_summary(of: Experiment, **changed: Any) -> ServerSummary:
    values = {
        "mode": of.mode,
        "total_workers": of.workers,
        "total_training_time_seconds": 8.0,
        "global_steps_completed": 40,
        "gradients_processed": 40,
        "dropped_gradients": 0,
        "repeated_pushes": 0,
        "updates_per_second": 5.0,
        "mean_step_seconds": 0.2,
        "average_gradient_staleness": 0.75,
        "average_gradient_staleness_all_training": 1.0,
        "gradients_all_training": 30,
        "updates_all_training": 30,
        "all_training_seconds": 5.5,
        "staleness_histogram": {1: 30, 0: 10},
        "apply_seconds": 0.1,
        "parameters_sha256": "5e" * 32,
    }
    return ServerSummary.model_validate(whose(of, "server", 0, 1, 20) | values | changed)


def result_of(of: Experiment, *records: MetricRecord, status: Status = Status.COMPLETED) -> ExperimentResult:
    return experiment_result(ExperimentOutcome(experiment=of, status=status, records=records))


def test_the_shape_has_the_keys_that_users_already_parse() -> None:
    of = experiment()
    given_result = json.loads(result_of(of, *records_of(of)).model_dump_json())
    assert given_result["experiment_name"] == "async_2workers"
    assert {
        "mode",
        "total_workers",
        "total_training_time_seconds",
        "global_steps_completed",
        "gradients_processed",
        "updates_per_second",
        "average_gradient_staleness",
    } <= given_result["server_metrics"].keys()
    workers = given_result["worker_metrics_aggregated"]
    assert {"num_workers", "average_epoch_time_seconds", "final_test_accuracy_percent"} <= workers.keys()
    assert {"epoch", "max_time", "avg_time", "min_time"} <= workers["epoch_times_by_epoch"][0].keys()
    assert {"epoch", "test_accuracy_percent"} <= workers["accuracy_by_epoch"][0].keys()


def test_staleness_is_a_figure_of_the_async_family_only() -> None:
    of = experiment("sync")
    given_result = json.loads(result_of(of, server_summary(of)).model_dump_json())
    assert "average_gradient_staleness" not in given_result["server_metrics"]


def test_server_metrics_are_those_of_the_summary() -> None:
    of = experiment()
    server = json.loads(result_of(of, server_summary(of)).model_dump_json())["server_metrics"]
    assert server == {
        "mode": "async",
        "total_workers": 2,
        "total_training_time_seconds": 8.0,
        "global_steps_completed": 40,
        "gradients_processed": 40,
        "dropped_gradients": 0,
        "repeated_pushes": 0,
        "updates_per_second": 5.0,
        "mean_step_seconds": 0.2,
        "apply_seconds": 0.1,
        "lock_seconds": 0.0,
        "sent_bytes": 0,
        "received_bytes": 0,
        "barrier_wait_histogram": {},
        "lost_workers": [],
        "rejoined_workers": [],
        "lost_steps": 0,
        "checkpoints_written": 0,
        "checkpoint_seconds": 0.0,
        "resumed_from_version": None,
        "parameters_sha256": "5e" * 32,
        "last_version_seen": 40,
        "average_gradient_staleness": 0.75,
        "average_gradient_staleness_all_training": 1.0,
        "gradients_all_training": 30,
        "updates_all_training": 30,
        "all_training_seconds": 5.5,
        "staleness_histogram": {"0": 10, "1": 30},
    }


def test_epochs_are_averaged_over_workers_and_accuracies_summed_over_shares() -> None:
    of = experiment()
    workers = result_of(
        of,
        epoch(of, 0, 1, epoch_seconds=2.0, test_correct=5, test_samples=10, loss=2.0),
        epoch(of, 1, 1, epoch_seconds=4.0, test_correct=27, test_samples=30, loss=None),
        epoch(of, 0, 2, epoch_seconds=1.0, test_correct=9, test_samples=10, loss=0.5),
        epoch(of, 1, 2, epoch_seconds=1.0, test_correct=29, test_samples=30, loss=1.5),
    ).worker_metrics_aggregated
    first, second = workers.epoch_times_by_epoch
    assert (first.min_time, first.avg_time, first.max_time, first.workers) == (2.0, 3.0, 4.0, 2)
    assert (second.min_time, second.max_time) == (1.0, 1.0)
    assert workers.average_epoch_time_seconds == 2.0
    # (5 + 27) / 40, not the mean of 50 % and 90 %
    assert [e.test_accuracy_percent for e in workers.accuracy_by_epoch] == [80.0, 95.0]
    assert [e.mean_loss for e in workers.accuracy_by_epoch] == [2.0, 1.0]
    assert (workers.final_test_accuracy_percent, workers.final_test_epoch) == (95.0, 2)


def test_the_final_parameters_tested_by_a_worker_go_before_the_shares_of_the_last_epoch() -> None:
    of = experiment()
    workers = result_of(
        of,
        epoch(of, 0, 2),
        epoch(of, 1, 2),
        worker_summary(of, 0),
        worker_summary(of, 1, final_test_correct=97, final_test_samples=100),
    ).worker_metrics_aggregated
    assert workers.final_test_accuracy_percent == 97.0
    assert workers.final_test_source == "final parameters"


def test_an_epoch_that_not_all_ranks_tested_is_no_final_accuracy() -> None:
    of = experiment()
    workers = result_of(
        of, epoch(of, 0, 1), epoch(of, 1, 1), epoch(of, 0, 2, test_correct=10)
    ).worker_metrics_aggregated
    assert (workers.final_test_accuracy_percent, workers.final_test_epoch) == (90.0, 1)


@pytest.mark.parametrize(
    ("lost", "rejoined", "accuracy", "source", "epoch_number"),
    [
        ([1], [], 95.0, "shares of finished workers", 2),
        ([1, 1], [1], 95.0, "shares of finished workers", 2),
        # Who is back will finish, or the experiment has not completed: records are missing, and nothing is known.
        ([1], [1], 85.0, "shares of an epoch", 1),
        ([], [], 85.0, "shares of an epoch", 1),
    ],
)
def test_where_the_last_worker_that_trained_is_lost_accuracy_is_what_the_finished_ones_tested_last(
    lost: list[int], rejoined: list[int], accuracy: float, source: str, epoch_number: int
) -> None:
    """Worker 0 had finished before, and was told that it need not test the final parameters."""
    of = experiment()
    workers = result_of(
        of,
        epoch(of, 0, 1, test_correct=16, test_samples=20),
        epoch(of, 1, 1, test_correct=18, test_samples=20),
        epoch(of, 0, 2, test_correct=19, test_samples=20),
        worker_summary(of, 0),
        server_summary(of, lost_workers=lost, rejoined_workers=rejoined),
    ).worker_metrics_aggregated
    assert (workers.final_test_accuracy_percent, workers.final_test_source) == (accuracy, source)
    assert workers.final_test_epoch == epoch_number


def test_shares_of_finished_workers_are_those_of_the_newest_epoch_that_all_of_them_tested() -> None:
    of = experiment(workers=3)
    server = server_summary(of, total_workers=3, lost_workers=[2])
    workers = result_of(
        of, epoch(of, 0, 1), epoch(of, 1, 1), epoch(of, 0, 2), server
    ).worker_metrics_aggregated
    assert (workers.final_test_epoch, workers.final_test_samples) == (1, 20)
    # What a lost one tested of that epoch counts as well: then it is the whole set
    workers = result_of(
        of, epoch(of, 0, 2), epoch(of, 1, 2), epoch(of, 2, 2), server
    ).worker_metrics_aggregated
    assert (workers.final_test_source, workers.final_test_samples) == ("shares of an epoch", 30)


def test_the_time_split_takes_summaries_and_for_the_others_their_epochs() -> None:
    of = experiment()
    split = result_of(of, worker_summary(of, 0), epoch(of, 0, 1), epoch(of, 1, 1)).time_split
    assert split is not None
    assert (split.compute_seconds, split.push_pull_seconds) == (4.0, 1.5)
    assert (split.waiting_seconds, split.evaluation_seconds) == (0.25, 1.25)
    assert split.compute_share == pytest.approx(4 / 7)


def test_a_figure_without_records_is_null_never_zero() -> None:
    of = experiment()
    nothing = json.loads(result_of(of, status=Status.FAILED).model_dump_json())
    server = nothing["server_metrics"]
    assert {key for key, value in server.items() if value is not None} == {"mode", "total_workers"}
    workers = nothing["worker_metrics_aggregated"]
    assert workers["average_epoch_time_seconds"] is None
    assert workers["final_test_accuracy_percent"] is None
    assert nothing["time_split"] is None


def test_how_far_a_failed_experiment_came_is_the_highest_version_seen() -> None:
    of = experiment()
    intervals = [
        ServerInterval.model_validate(
            whose(of, "server", 0, seq, seq)
            | {
                "interval_seconds": 1,
                "version": 10 * seq,
                "updates": 10,
                "updates_per_second": 10,
                "gradients": 10,
                "mean_staleness": None,
                "max_staleness": None,
            }
        )
        for seq in (1, 2)
    ]
    server = result_of(of, *intervals, status=Status.FAILED).server_metrics
    assert (server.last_version_seen, server.global_steps_completed) == (20, None)


def test_records_expected_follow_from_the_final_records_number() -> None:
    of = experiment()
    lines = {
        (line.role, line.rank): line
        for line in result_of(
            of,
            epoch(of, 0, 1),
            worker_summary(of, 0, seq=3),
            task_failed(of, "server", 0, 0, "worker 1"),
        ).records
    }
    assert (lines["worker", 0].received, lines["worker", 0].expected, lines["worker", 0].missing) == (2, 4, 2)
    assert (lines["server", 0].received, lines["server", 0].expected) == (1, 1)
    assert (lines["worker", 1].received, lines["worker", 1].expected) == (0, None)


def test_the_records_of_a_task_that_was_started_again_are_all_kept() -> None:
    """Each attempt numbers its records anew; how many the one that died had is not known."""
    of = experiment()
    again: list[MetricRecord] = [epoch(of, 0, 1, seq=0), worker_summary(of, 0, seq=1)]
    second = [record.model_copy(update={"attempt": 1}) for record in again]
    cut_off = [epoch(of, 0, 1, seq=0), epoch(of, 0, 2, seq=2)]
    assert unique_records([*second, *cut_off, *second]) == [*cut_off, *second]
    (_, line, _) = result_of(of, *second, *cut_off).records
    assert (line.received, line.expected, line.missing) == (4, None, 1)
    gave_up = [epoch(of, 0, 1, seq=0), task_failed(of, "worker", 0, 1, "server")]
    (_, line, _) = result_of(of, *second, *gave_up).records
    assert (line.received, line.expected, line.missing) == (4, 4, 0)


def test_of_two_records_in_one_place_the_same_is_kept_in_any_order() -> None:
    of = experiment()
    one, other = epoch(of, 0, 1, loss=1.0), epoch(of, 0, 1, loss=2.0)
    assert unique_records([one, other]) == unique_records([other, one, one]) == [one]


def test_a_timestamp_that_runs_backwards_changes_no_duration() -> None:
    of = experiment()
    records = records_of(of)
    skewed = [
        record.model_copy(update={"timestamp": BEGIN - timedelta(hours=index)})
        for index, record in enumerate(records)
    ]
    assert result_of(of, *skewed) == result_of(of, *records)


@FAST
@given(seed=st.integers(0, 2**32), mode=st.sampled_from(["sync", "async"]), workers=st.integers(1, 4))
def test_shuffled_and_repeated_records_give_the_same_bytes(seed: int, mode: str, workers: int) -> None:
    of, random = experiment(mode, workers), Random(seed)
    records = records_of(of)
    arrived = [*records, *random.choices(records, k=len(records))]
    random.shuffle(arrived)
    assert result_of(of, *arrived).model_dump_json() == result_of(of, *records).model_dump_json()


@FAST
@given(data=st.data(), mode=st.sampled_from(["sync", "async"]), workers=st.integers(1, 4))
def test_any_subset_of_records_gives_a_result_that_invents_nothing(
    data: st.DataObject, mode: str, workers: int
) -> None:
    of = experiment(mode, workers)
    records = records_of(of)
    kept = [record for record in records if data.draw(st.booleans())]
    partial, whole = result_of(of, *kept), result_of(of, *records)
    assert sum(line.received for line in partial.records) == len(kept)
    assert partial.training_seconds in {None, whole.training_seconds}
    for line, complete in zip(partial.records, whole.records, strict=True):
        assert line.expected in {None, complete.expected}
        assert line.received + line.missing <= complete.received
