"""What must be shown: thresholds against results that are made up, just enough and just not."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import pytest
from rich.console import Console

from bench.__main__ import say_what_is_missing
from bench.case import SIZES
from bench.compression import SETTINGS
from bench.demands import NOT_MEASURED, PEERS, RACES, Demand, demands_of, demands_section
from bench.epoch import LOCKSTEP
from bench.instrumentation import MEASURED
from bench.memory import MODES, SIZES_MEASURED, WAYS
from bench.peers import OURS, RAW, SHARED, TCP, TLS, peers_tables, ratios_to_peers
from bench.registry import SYSTEMS
from bench.workload import WORKLOADS

PEER = "peer (tcp)"
OWN = {
    "epoch": "time per epoch",
    "instrumentation": "instrumentation, ",
    "memory": "server's own memory",
    "compression": "compression, ",
}
"""What the demands on each measurement have in their text."""


def raced(label: str, size: str, workers: int, rate: float, share: float | None = None) -> dict[str, Any]:
    name, _, transport = label.rstrip(")").partition(" (")
    return {
        "system": name,
        "transport": transport,
        "parameters": SIZES[size],
        "workers": workers,
        "updates_per_second": rate,
        "ratio_to_raw_tcp": share,
    }


def trained(system: str, ratio: float) -> dict[str, Any]:
    of = {"workload": "resnet18", "parameters": 11_173_962, "workers": 4}
    return {"system": system, "ratio_to_ddp": ratio, **of}


def in_all(row: dict[str, Any], *others: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of all laps: the first few are these, and the others like `row`."""
    return [
        {**as_, "workload": workload, "parameters": parameters, "transport": transport}
        for as_, (workload, parameters, transport) in zip_longest([row, *others], MEASURED, fillvalue=row)
    ]


def lapped(share: float, median: float, lower: float, upper: float) -> dict[str, Any]:
    return {
        "workload": "push-pull",
        "parameters": 62_006,
        "transport": "tcp",
        "cost_share": share,
        "off_over_on": median,
        "off_over_on_interval": [lower, upper],
    }


def held(private: float, longer: float, **told: Any) -> dict[str, Any]:
    return {
        "mode": "async",
        "transport": "tcp",
        "compression": "none",
        "parameters": SIZES["11.2M"],
        "workers": 16,
        "steps": 4,
        "private": private,
        "longer_steps": 12,
        "longer_private": longer,
        **told,
    }


def compressed(codec: str, shorter: float, points: float, **told: Any) -> dict[str, Any]:
    return {
        "compression": codec,
        "mode": "sync",
        "model": "mlp",
        "dataset": "digits",
        "mbit_per_second": 100.0,
        "times_shorter": shorter,
        "accuracy_difference": points,
        "accuracy_interval": [points - 0.5, points + 0.5],
        **told,
    }


def only(what: str, *rows: Mapping[str, Any]) -> list[Demand]:
    """Demands on what these rows measured."""
    measured = demands_of({what: {"rows": rows}})
    return [demand for demand in measured if demand.measured != NOT_MEASURED]


def test_every_demand_is_there_where_nothing_was_measured() -> None:
    demands = demands_of({})
    assert {demand.measured for demand in demands} == {NOT_MEASURED}
    assert {demand.met for demand in demands} == {None}
    whats = " ".join(demand.what for demand in demands)
    for word in (
        "62k",
        "every peer",
        "of raw TCP",
        "time per epoch",
        "instrumentation",
        "memory",
        "compression",
    ):
        assert word in whats


def test_races_name_systems_that_are_measured() -> None:
    labels = {system.label for system in SYSTEMS.values()}
    assert {race.ours for race in RACES} | {race.peer for race in RACES} <= labels
    assert {*OURS, RAW} <= labels
    assert {race.size for race in RACES} <= set(SIZES)


@pytest.mark.parametrize(("rate", "met"), [(12.0, True), (11.9, False)])
def test_a_race_is_won_at_its_threshold(rate: float, met: bool) -> None:
    first, *_ = only("push-pull", raced(TCP, "11.2M", 1, rate), raced("torch RPC (tcp)", "11.2M", 1, 10.0))
    assert (first.demanded, first.measured, first.met) == (
        "≥ 1.2 × torch RPC (tcp)",
        f"{rate / 10:.2f} ×",
        met,
    )


@pytest.mark.parametrize(("rate", "met"), [(10.0, False), (10.1, True)])
def test_ahead_is_more_than_even(rate: float, met: bool) -> None:
    first, *_ = only("push-pull", raced(SHARED, "1M", 1, rate), raced("Gloo send/recv (tcp)", "1M", 1, 10.0))
    assert (first.demanded, first.met) == ("> 1 × Gloo send/recv (tcp)", met)


def test_more_workers_are_no_race_of_one() -> None:
    rows = [raced(TCP, "11.2M", 4, 99.0), raced("torch RPC (tcp)", "11.2M", 4, 1.0)]
    assert all("every peer" in demand.what for demand in only("push-pull", *rows))


def test_the_aim_names_the_peer_that_is_furthest_ahead() -> None:
    rows = [
        raced(RAW, "62k", 1, 1000.0),
        raced(TCP, "62k", 1, 100.0, share=0.1),
        raced(TLS, "62k", 1, 60.0),
        raced(PEER, "62k", 1, 50.0),
        raced(TCP, "62k", 16, 80.0),
        raced(PEER, "62k", 16, 100.0),
    ]
    aim, share = only("push-pull", *rows)
    assert (aim.measured, aim.met) == (
        "1 of 2; least 0.80 × (peer (tcp), 62k, 16 workers); 63 not measured",
        False,
    )
    assert (share.what, share.measured, share.met) == (f"{TCP}, 1 worker, of raw TCP", "0.10 (62k)", None)


def test_ratios_are_to_peers_alone() -> None:
    rows = [raced(label, "1M", 1, 10.0) for label in (RAW, *OURS)] + [raced(PEER, "1M", 1, 4.0)]
    assert ratios_to_peers(rows, SHARED) == {(PEER, 1_000_000, 1): 2.5}
    assert ratios_to_peers(rows, "Lockstep (carrier pigeon)") == {}


def test_a_table_of_peers_is_bold_where_lockstep_is_behind() -> None:
    rows = [
        raced(TCP, "62k", 1, 10.0),
        raced(TCP, "62k", 16, 10.0),
        raced("a (tcp)", "62k", 1, 20.0),
        raced("a (tcp)", "62k", 16, 5.0),
        raced("b (tcp)", "62k", 16, 10.0),
    ]
    (text,) = peers_tables(rows)
    assert text.splitlines()[-4:] == [
        "| peer | 62k, 1 worker | 62k, 16 workers |",
        "| --- | ---: | ---: |",
        "| a (tcp) | **0.50** | 2.00 |",
        "| b (tcp) | – | **1.00** |",
    ]


def test_every_way_to_train_is_held_against_ddp() -> None:
    rows = [trained("Lockstep sync (shared-memory)", 1.25), trained("Lockstep sync (tcp)", 1.26)]
    shared, tcp = only("epoch", *rows, trained("PyTorch DDP (Gloo)", 1.0))
    assert (shared.measured, shared.met) == ("1.25 ×", True)
    assert (tcp.measured, tcp.met) == ("1.26 ×", False)
    assert tcp.what.startswith("Lockstep sync (tcp), resnet18, 11,173,962 parameters in 22 blocks, 4 workers")


def test_instrumentation_is_too_dear_where_one_workloads_is() -> None:
    cheap = lapped(0.001, 0.999, 0.995, 1.002)
    added_up, paired = only("instrumentation", *in_all(cheap, lapped(0.0099, 1.005, 1.002, 1.01)))
    assert (added_up.met, paired.met) == (True, True)
    assert added_up.measured == "at most 0.99% (push-pull, 62k, tcp)"
    assert paired.measured.startswith("medians -0.1% to +0.5%")
    added_up, paired = only("instrumentation", lapped(0.01, 1.03, 1.02, 1.04))
    assert (added_up.met, paired.met) == (False, False)
    assert "medians +3.0% to +3.0%; +2.0% to +4.0% in 95 % (push-pull, 62k, tcp)" in paired.measured


@pytest.mark.parametrize("interval", [(0.985, 1.005), (1.005, 1.0149)], ids=["wide", "beyond the threshold"])
def test_instrumentation_is_undecided_while_its_interval_does_not_tell(interval: tuple[float, float]) -> None:
    told = lapped(0.001, 1.0, 0.999, 1.001)
    added_up, paired = only("instrumentation", *in_all(told, lapped(0.001, 1.0, *interval)))
    assert (added_up.met, added_up.verdict) == (True, "yes")
    assert (paired.met, paired.verdict) == (None, "undecided")
    assert f"{interval[0] - 1:+.1%} to {interval[1] - 1:+.1%} in 95 %" in paired.measured


def test_instrumentation_is_undecided_while_a_workload_is_missing() -> None:
    demands = only("instrumentation", lapped(0.001, 1.0, 0.999, 1.001))
    assert [demand.met for demand in demands] == [None, None]
    assert all(demand.measured.endswith("; 4 not measured") for demand in demands)


def test_memory_is_the_most_of_either_round_and_the_large_models() -> None:
    rows = [held(4.8, 6.0), held(6.0, 6.1, compression="fp16"), held(99.0, 99.0, parameters=SIZES["1M"])]
    small, plain, lossy, queue = only("memory", *rows)
    assert (small.measured, small.demanded, small.met) == ("99.0 models", "no threshold", None)
    assert (plain.measured, plain.met) == ("6.0 models", True)
    assert (lossy.measured, lossy.met) == ("6.1 models", False)
    assert lossy.what.endswith("16 workers × 44.7 MB, async, tcp, fp16")
    assert (queue.measured, queue.met) == ("1.25 × with 3 times the steps (async, tcp); 4 not measured", None)
    assert only("memory", held(4.0, 5.1))[-1].met is False


def test_nothing_queues_up_where_memory_does_not_grow_in_any_way() -> None:
    rows = [
        held(4.0, 5.0, mode=mode, transport=transport, compression=codec)
        for mode in MODES
        for transport, codec in WAYS
    ]
    queue = only("memory", *rows)[-1]
    assert (queue.measured, queue.met) == ("1.25 × with 3 times the steps (async, tcp)", True)


def test_memory_of_small_models_alone_shows_nothing_of_large_ones() -> None:
    (small,) = only("memory", held(1.0, 1.0, parameters=SIZES["1M"]))
    assert (small.what, small.met) == ("server's own memory, 16 workers × 4 MB, async, tcp", None)


def test_one_codec_that_does_both_is_enough() -> None:
    rows = [
        compressed("none", 1.0, 0.0),
        compressed("int8", 3.0, -1.0, accuracy_interval=None),
        compressed("topk", 9.0, -1.1),
        compressed("none", 1.0, 0.0, mode="async"),
        compressed("int8", 2.9, 0.0, mode="async"),
        compressed("topk", 9.0, -1.1, mode="async"),
    ]
    sync, other = only("compression", *rows)
    assert (sync.measured, sync.met) == ("int8 3.0 ×, -1.00 points", True)
    assert (other.measured, other.met) == ("topk 9.0 ×, -1.10 points [-1.60, -0.60]", False)
    assert other.what == "compression, 100 Mbit/s, mlp on digits, async"


@pytest.mark.parametrize(
    ("what", "row", "missing"),
    [
        ("epoch", trained("Lockstep sync (tcp)", 1.0), len(WORKLOADS) * len(LOCKSTEP) - 1),
        ("instrumentation", lapped(0.001, 1.0, 0.999, 1.001), len(MEASURED) - 1),
        ("memory", held(1.0, 1.0), len(SIZES_MEASURED) * len(MODES) * len(WAYS) - 1),
        ("compression", compressed("topk", 9.0, 0.0), len(SETTINGS)),
    ],
)
def test_what_results_lack_is_missing_and_not_met(what: str, row: dict[str, Any], missing: int) -> None:
    demands = demands_of({what: {"rows": [row]}})
    lacking = [each for each in demands if each.measured == NOT_MEASURED and OWN[what] in each.what]
    assert len({demand.what for demand in lacking}) == len(lacking) == missing
    assert {demand.met for demand in lacking} == {None}


def test_a_codec_that_is_missing_is_named() -> None:
    demands = demands_of(
        {"compression": {"rows": [compressed("none", 1.0, 0.0), compressed("topk", 9.0, 0.0)]}}
    )
    assert "compression, 100 Mbit/s, mlp on digits, sync: fp16, bf16, int8" in {
        demand.what for demand in demands if demand.measured == NOT_MEASURED
    }


def test_an_aim_is_not_reached_while_a_peer_is_missing() -> None:
    demands = only("push-pull", raced(TCP, "62k", 1, 10.0), raced(PEERS[0], "62k", 1, 5.0))
    (aim,) = (demand for demand in demands if "every peer" in demand.what)
    assert (aim.met, aim.verdict) == (None, "undecided")
    assert aim.measured.endswith("62 not measured")


def test_the_section_says_yes_no_or_nothing() -> None:
    lines = demands_section({"epoch": {"rows": [trained("Lockstep sync (tcp)", 2.0)]}}).splitlines()
    assert any(line.endswith("| ≤ 1.25 × DDP | 2.00 × | **no** |") for line in lines)
    assert any(line.endswith("| not measured | – |") for line in lines)


def test_what_is_not_met_is_said_loudly_and_what_is_met_not_at_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    demands = [
        Demand("fast", "≥ 2", "3", True),
        Demand("small", "≤ 6", "7 [6, 8]", False),
        Demand("cheap", "< 1", NOT_MEASURED, None),
        Demand("near", "no threshold", "0.5", None),
        Demand("even", "< 1", "0.9 to 1.1", None, undecided=True),
    ]
    say_what_is_missing(demands, Console(stderr=True, width=80))
    assert capsys.readouterr().err.splitlines() == [
        "NOT MET small: ≤ 6; 7 [6, 8]",
        f"NOT MEASURED cheap: < 1; {NOT_MEASURED}",
        "UNDECIDED even: < 1; 0.9 to 1.1",
    ]
