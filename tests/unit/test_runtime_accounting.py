"""What the server counts, and what of it survives a restart."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.accounting import SHORTEST_WAIT, Accounting


def test_time_and_updates_while_all_train_leave_out_both_ends() -> None:
    accounting = Accounting()
    accounting.start(10.0)
    # (time, whether all workers have one push behind them and another ahead from then on)
    for now, all_training in [(11.0, False), (13.0, True), (13.5, True), (15.0, False), (25.0, False)]:
        accounting.update(now, [0])
        accounting.all_training = all_training
    summary = accounting.summary()
    # From the second update, with which the window begins, to the fourth, which is a worker's last
    assert summary["all_training_seconds"] == 2.0
    assert summary["updates_all_training"] == 2
    assert summary["mean_step_seconds"] == 3.0


def test_where_all_never_trained_at_once_nothing_is_counted() -> None:
    accounting = Accounting()
    accounting.start(0.0)
    accounting.update(1.0, [0])
    assert accounting.summary()["updates_all_training"] == 0
    assert accounting.summary()["all_training_seconds"] == 0.0


@settings(deadline=None)
@given(waits=st.lists(st.floats(0, 1e5), max_size=30))
def test_every_wait_is_in_the_smallest_bin_that_holds_it(waits: list[float]) -> None:
    accounting = Accounting()
    for seconds in waits:
        accounting.wait(seconds)
    histogram = accounting.summary()["barrier_wait_histogram"]
    assert sum(histogram.values()) == len(waits)
    for bound, count in histogram.items():
        lowest = bound / 2 if bound > SHORTEST_WAIT else -1
        assert sum(lowest < seconds <= bound for seconds in waits) == count


def busy(accounting: Accounting, began: float) -> None:
    """Two seconds of everything that is counted."""
    accounting.start(began)
    accounting.all_training = True
    accounting.update(began + 1.0, [0, 3])
    accounting.update(began + 2.0, [1])
    accounting.drop()
    accounting.repeat()
    accounting.wait(0.3)
    accounting.lose(1)
    accounting.rejoin(1)


def test_a_server_that_takes_over_goes_on_counting_and_its_own_clock_does_not_show() -> None:
    whole, first = Accounting(), Accounting()
    busy(whole, 10.0)
    busy(first, 10.0)
    facts = first.facts(12.0)
    assert json.loads(json.dumps(facts)) == facts, "a checkpoint keeps only what JSON does not change"
    # Given the second server's clock begins elsewhere, and it waits for its workers for an hour
    second = Accounting()
    second.resume(facts)
    second.start(5000.0)
    for accounting, now in ((whole, 12.5), (second, 5000.5)):
        accounting.update(now, [2])
        accounting.finish(now + 0.5)
    expected, counted = whole.summary(), second.summary()
    assert counted["total_training_time_seconds"] == pytest.approx(3.0)
    # Nobody has pushed to the second one yet: its first update belongs to no time in which all trained
    apart = [figure for figure, value in expected.items() if value != pytest.approx(counted[figure])]
    assert apart == [
        "average_gradient_staleness_all_training",
        "gradients_all_training",
        "updates_all_training",
        "all_training_seconds",
    ]
    assert (counted["updates_all_training"], counted["all_training_seconds"]) == (2, 2.0)


def test_before_training_no_time_has_passed_whatever_the_clock_says() -> None:
    accounting = Accounting()
    assert accounting.facts(98765.0)["seconds"] == 0
    accounting.resume({**accounting.facts(98765.0), "seconds": 7.0})
    assert accounting.facts(98765.0)["seconds"] == 7.0
    accounting.start(98766.0)
    assert accounting.facts(98767.0)["seconds"] == 8.0
