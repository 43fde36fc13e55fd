"""What is said where more than sync and async ran, or over several links: true, and with its interval."""

from collections.abc import Sequence

import pytest

from contract.metrics import ServerSummary
from contract.network import Network
from contract.plan import plan
from contract.study import parse_study
from contract.table import Status
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.conditions import compared, conditions, lines, pictured
from lambdas.publish_report.estimates import quantile
from lambdas.publish_report.findings import findings
from lambdas.publish_report.labels import (
    compression_label,
    compute_label,
    crashes_label,
    labels_of,
    network_label,
)
from lambdas.publish_report.rankings import losses, quorums, ranking, savings, side_by_side
from lambdas.publish_report.results import ExperimentOutcome, ExperimentResult, Traffic
from lambdas.publish_report.spending import losses as losses_table
from lambdas.publish_report.spending import time_split, traffic, waits
from tests.unit.report_fixtures import measured, records_of, study_outcome
from tests.unit.test_report_results import experiment, server_summary, worker_summary

BACKUP = {"backup_workers": 1}
INT8, TOPK = {"compression": "int8"}, {"compression": "topk", "topk_ratio": 0.01}
SLOW = {"bandwidth_mbit_per_second": 100, "latency_ms": 1}


def ranked(results: Sequence[ExperimentResult]) -> str:
    [together] = side_by_side(results)
    return ranking(together)


def carrying(
    result: ExperimentResult, sent: float, received: float, transport: str = "tcp"
) -> ExperimentResult:
    moved = Traffic(transports=[transport], sent_bytes_per_step=sent, received_bytes_per_step=received)
    return result.model_copy(update={"traffic": moved})


def test_single_runs_are_put_in_order_and_near_ones_are_not_told_apart() -> None:
    results = [
        measured("sync", 4, 20.0, correct=350),
        measured("async", 4, 10.0, correct=340),
        measured("staleness-aware", 4, 10.4, correct=342),
        measured("backup", 4, 15.0, told=BACKUP, correct=345),
    ]
    assert ranked(results) == (
        "With 4 workers async finished first, after 10.0 s, within 5 % of staleness-aware; backup took 1.5× as long"
        " and sync 2.0×. Accuracy ended between 94.4 % with async and 97.2 % with sync."
    )


def test_over_seeds_only_what_the_interval_rules_out_is_claimed() -> None:
    results = [
        measured(mode, 4, seconds, seed=seed, told=told, correct=correct)
        for mode, told, times, correct in (
            ("async", {}, [10.0, 10.2, 9.8], 340),
            ("backup", BACKUP, [9.9, 10.4, 9.9], 340),
            ("sync", {}, [20.0, 20.2, 19.9], 346),
        )
        for seed, seconds in enumerate(times)
    ]
    told = ranked(results)
    assert "not told apart from backup (0.97× to 1.04× of its time)" in told
    assert "sync took 2.0× as long (1.9× to 2.1×)" in told
    assert told.endswith(
        "Accuracy ended between 94.4 % with async and 96.1 % with sync;"
        " 95 % interval of the difference +1.7 to +1.7 points."
    )


def test_an_accuracy_whose_interval_holds_none_is_no_difference() -> None:
    results = [
        measured(mode, 4, 10.0 + seed, seed=seed, told=told, correct=correct)
        for mode, told, counts in (("ssp", {"staleness_bound": 2}, [340, 350]), ("sync", {}, [345, 344]))
        for seed, correct in enumerate(counts)
    ]
    assert ranked(results).endswith("points, so none was detected.")


def test_sync_and_async_alone_keep_the_sentence_of_their_own() -> None:
    assert side_by_side([measured("sync", 4, 2.0), measured("async", 4, 1.0)]) == []


@pytest.mark.parametrize("several", [True, False])
def test_experiments_that_differ_in_their_link_are_no_repetitions_of_each_other(several: bool) -> None:
    results = [measured("sync", 4, 8.0, name="a")]
    results += [measured("sync", 4, 2.0, name="b", exchange=INT8)] if several else []
    labels = [condition.label for line in lines(results).values() for condition in line]
    assert labels == (["sync (fp32)", "sync (int8)"] if several else ["sync"])
    for line in lines(results).values():
        assert [len(condition.results) for condition in line] == [1]


def test_a_label_tells_all_that_differs_and_nothing_else() -> None:
    results = [
        measured("ksync", 4, 8.0, name="a", told={"k": 2}),
        measured("ksync", 4, 8.0, name="b", told={"k": 3}, network=SLOW),
        measured("sync", 4, 8.0, name="c", network=SLOW, exchange={"transport": "tcp"}),
        measured("sync", 4, 8.0, name="d", exchange={"tls": False}),
    ]
    assert list(lines(results)) == [
        "sync (network as it is, TLS off)",
        "sync (100 Mbit/s, 1 ms each way, tcp)",
        "ksync (k = 2, network as it is)",
        "ksync (k = 3, 100 Mbit/s, 1 ms each way)",
    ]


def test_links_of_single_workers_are_told_apart_and_by_name() -> None:
    slow, slower = (
        {"workers": [{"rank": 0, "bandwidth_mbit_per_second": bandwidth}]} for bandwidth in (10, 5)
    )
    results = [
        measured("sync", 4, 8.0, name="a"),
        measured("sync", 4, 8.0, name="b", network=slow),
        measured("sync", 4, 8.0, name="c", network=slower),
    ]
    assert list(lines(results)) == [
        "sync (network as it is)",
        "sync (worker 0: 10 Mbit/s)",
        "sync (worker 0: 5 Mbit/s)",
    ]
    mixed = Network.model_validate({**SLOW, "workers": [{"rank": 2, "latency_ms": 9}]})
    assert network_label(mixed) == "100 Mbit/s, 1 ms each way; worker 2: 100 Mbit/s, 9 ms each way"
    assert network_label(Network.model_validate({"workers": [{"rank": 0, "latency_ms": 0}]})) == (
        "worker 0: as it is"
    )
    many = Network.model_validate({"workers": [{"rank": rank, "latency_ms": 5} for rank in range(4)]})
    assert network_label(many) == "4 workers with links of their own"


def test_links_come_in_the_order_of_what_is_done_to_the_data() -> None:
    networks = [SLOW, {"bandwidth_mbit_per_second": 1000}, None]
    exchanges = [TOPK, {**TOPK, "topk_ratio": 0.1}, INT8, None]
    results = [
        measured("sync", 4, 1.0, name=f"e{i}-{j}", network=network, exchange=exchange)
        for i, network in enumerate(networks)
        for j, exchange in enumerate(exchanges)
    ]
    found = [condition.results[0] for condition in conditions(results, results[0].mode)]
    assert list(dict.fromkeys(network_label(result.network) for result in found)) == [
        "not injected",
        "1000 Mbit/s",
        "100 Mbit/s, 1 ms each way",
    ]
    assert [compression_label(result.exchange) for result in found[:4]] == [
        "fp32",
        "int8",
        "topk 10 %",
        "topk 1 %",
    ]


def test_sync_and_async_are_compared_over_the_same_link_alone() -> None:
    results = [
        measured("sync", 4, 8.0, name="a"),
        measured("async", 4, 4.0, name="b", exchange=INT8),
        measured("sync", 4, 6.0, name="c", exchange=INT8),
    ]
    [(sync, asynchronous)] = compared(results)
    assert (sync.label, asynchronous.label) == ("sync (int8)", "async (int8)")
    results.append(measured("async", 4, 5.0, name="d"))
    assert [sync.label for sync, _ in compared(results)] == ["sync (fp32)", "sync (int8)"]
    [(plainest, _)] = pictured(results)
    assert plainest.label == "sync (fp32)"
    sentences = findings(results).sentences
    assert any(
        s.startswith("Async (int8) with 4 workers finished 1.5× sooner than sync (int8)") for s in sentences
    )


def test_what_a_quorum_buys_and_costs() -> None:
    sync = {"mean_step_seconds": 0.1, "barrier_wait_histogram": {0.032: 90, 0.256: 10}}
    backup = {
        "mean_step_seconds": 0.05,
        "gradients_processed": 300,
        "dropped_gradients": 100,
        "barrier_wait_histogram": {0.032: 300},
    }
    results = [measured("sync", 4, 10.0, server=sync), measured("backup", 4, 5.0, told=BACKUP, server=backup)]
    [together] = side_by_side(results)
    assert quorums(together) == [
        "Backup with 4 workers took 50 ms for a step, sync 0.10 s (2.0× as long); 25.0 % of its gradients came too"
        " late and were dropped; 99 % of its gradients were held for at most 32 ms, of sync's for 0.26 s."
    ]
    assert findings(results).sentences[0] == quorums(together)[0]


def test_what_compression_saved() -> None:
    results = [
        carrying(measured("sync", 4, 8.0, name="a"), 340_000, 340_000),
        carrying(measured("sync", 4, 2.0, name="b", exchange=INT8), 85_000, 85_000),
        carrying(measured("sync", 4, 1.0, name="c", exchange=TOPK), 6_800, 10_200),
    ]
    [together] = side_by_side(results)
    assert savings(together) == [
        "A step of a worker of sync with 4 workers took 680 kB both ways as fp32; int8 4.0× less and topk 1 %"
        " 40× less."
    ]
    shared = [carrying(result, 30, 20, "shared-memory") for result in results]
    [together] = side_by_side(shared)
    assert savings(together) == []


def test_losses_are_told_and_work_that_is_not_the_same_is_warned_of() -> None:
    hit = {"lost_workers": [1, 2], "rejoined_workers": [1], "lost_steps": 40}
    results = [measured("sync", 4, 8.0), measured("async", 4, 5.0, server=hit)]
    assert losses(results) == [
        "2 workers were lost in 1 experiment, which completed all the same; 1 of them came back, and 40 steps were"
        " never made."
    ]
    found = findings(results)
    assert losses(results)[0] in found.sentences
    assert any("made fewer steps" in warning for warning in found.warnings)
    assert losses(results[:1]) == []
    assert findings(results[:1]).warnings == []
    row = losses_table(results).rows
    assert [cells[:4] for cells in row] == [
        ["async_4workers_seed0", "worker 1 and worker 2", "worker 1", "40"]
    ]


def test_waits_stand_where_gradients_are_held_and_nowhere_else() -> None:
    outcome = study_outcome(modes=("sync", "async"), workers=(1, 4))
    table = waits([experiment_result(each) for each in outcome.experiments])
    [row] = table.rows
    assert row[0] == "sync_4workers"
    assert [column.label for column in table.columns][2:] == ["Half", "90 %", "99 %", "All"]


@pytest.mark.parametrize(("share", "bound"), [(0.5, 1.0), (0.9, 2.0), (0.95, 4.0), (1.0, 4.0), (0.0, 1.0)])
def test_a_quantile_is_the_bound_that_so_many_stay_below(share: float, bound: float) -> None:
    assert quantile({4.0: 1, 1.0: 5, 2.0: 4}, share) == bound


def test_a_quantile_of_nothing_is_none() -> None:
    assert quantile({}, 0.5) is None


def test_bytes_are_those_of_the_workers_that_finished() -> None:
    of = experiment()
    result = experiment_result(
        ExperimentOutcome(
            experiment=of,
            status=Status.COMPLETED,
            records=[
                worker_summary(of, 0, steps=20, sent_bytes=2_000, received_bytes=4_000, transport="tls"),
                worker_summary(of, 1, steps=10, sent_bytes=4_000, received_bytes=5_000, transport="tls"),
                server_summary(of),
            ],
        )
    )
    assert result.traffic == Traffic(
        transports=["tls"], sent_bytes_per_step=200.0, received_bytes_per_step=300.0
    )
    [row] = traffic([result]).rows
    assert row == ["async_2workers", "fp32", "not injected", "TLS", "200 B", "300 B"]


def test_bytes_are_not_told_where_a_server_was_restarted() -> None:
    of = experiment()
    records = [worker_summary(of, 0, sent_bytes=5), server_summary(of, resumed_from_version=7)]
    moved = experiment_result(
        ExperimentOutcome(experiment=of, status=Status.COMPLETED, records=records)
    ).traffic
    assert moved is not None
    assert moved.sent_bytes_per_step is None


def test_the_split_of_time_has_five_parts_that_make_up_all_of_it() -> None:
    outcome = study_outcome(modes=("sync",), workers=(2,))
    result = experiment_result(outcome.experiments[0])
    [bar] = time_split([result]).bars
    assert len(bar) == 5
    assert sum(bar) == pytest.approx(1)
    assert result.time_split is not None
    assert result.time_split.push_pull_seconds == pytest.approx(
        result.time_split.serialize_seconds + result.time_split.transfer_seconds
    )


def test_servers_of_several_shards_are_taken_together() -> None:
    document = {"experiments": [{"mode": "async", "workers": 2}], "shards": 2}
    of = plan(parse_study(document), "study-1")[0]

    def shard(rank: int, digest: str) -> ServerSummary:
        return server_summary(of, rank=rank, sent_bytes=10, apply_seconds=0.5, parameters_sha256=digest * 32)

    def metrics(*servers: ServerSummary) -> dict[str, object]:
        outcome = ExperimentOutcome(experiment=of, status=Status.COMPLETED, records=servers)
        return experiment_result(outcome).server_metrics.model_dump()

    both, swapped = metrics(shard(0, "aa"), shard(1, "bb")), metrics(shard(0, "bb"), shard(1, "aa"))
    assert (both["sent_bytes"], both["apply_seconds"], both["global_steps_completed"]) == (20, 1.0, 40)
    assert len(str(both["parameters_sha256"])) == 64
    assert both["parameters_sha256"] != swapped["parameters_sha256"]
    alone = metrics(shard(0, "aa"))
    assert alone["sent_bytes"] is None
    assert alone["last_version_seen"] == 40


def test_every_injected_condition_has_a_label() -> None:
    document = {
        "experiments": [
            {"name": "plain", "mode": "sync", "workers": 2},
            {"name": "slow", "mode": "sync", "workers": 2, "network": SLOW},
        ],
        "faults": {"crashes": [{"rank": 0, "step": 3, "restart_after_seconds": 2}, {"rank": 1, "step": 5}]},
        "on_worker_loss": "continue",
    }
    results = [
        experiment_result(
            ExperimentOutcome(experiment=each, status=Status.COMPLETED, records=records_of(each))
        )
        for each in plan(parse_study(document), "study-1")
    ]
    crashes = "injected crashes: worker 0 at step 3, back after 2 s; worker 1 at step 5"
    assert labels_of(results) == ["real compute", "injected network: differs between experiments", crashes]
    assert labels_of(results[1:]) == ["real compute", "injected network: 100 Mbit/s, 1 ms each way", crashes]
    assert labels_of(results[:1]) == ["real compute", crashes]
    many = [{"rank": 0, "step": step, "restart_after_seconds": 0} for step in range(5)]
    assert crashes_label(type(results[0].faults).model_validate({"crashes": many})) == "injected crashes: 5"


@pytest.mark.parametrize(
    ("stragglers", "label"),
    [
        ([{"rank": 1, "slowdown": 4}], "emulated compute: exponential, mean 50 ms, worker 1 4× slower"),
        (
            [{"rank": rank, "slowdown": 2} for rank in range(4)],
            "emulated compute: exponential, mean 50 ms, 4 stragglers",
        ),
    ],
)
def test_stragglers_are_part_of_the_label(stragglers: list[dict[str, int]], label: str) -> None:
    compute = {"mode": "emulated", "distribution": "exponential", "mean_ms": 50, "stragglers": stragglers}
    study = parse_study({"experiments": [{"mode": "sync", "workers": 4}], "compute": compute})
    assert compute_label(study.compute) == label
