"""What the server counts while all workers train, and what it leaves out."""

from runtime.accounting import Accounting


def test_time_and_updates_while_all_train_leave_out_both_ends() -> None:
    accounting = Accounting()
    accounting.start(10.0)
    # (time, whether all workers have one push behind them and another ahead from then on)
    for now, all_training in [(11.0, False), (13.0, True), (13.5, True), (15.0, False), (25.0, False)]:
        accounting.update(now, [0], apply_seconds=0.0)
        accounting.all_training = all_training
    summary = accounting.summary()
    # From the second update, with which the window begins, to the fourth, which is a worker's last
    assert summary["all_training_seconds"] == 2.0
    assert summary["updates_all_training"] == 2
    assert summary["mean_step_seconds"] == 3.0


def test_where_all_never_trained_at_once_nothing_is_counted() -> None:
    accounting = Accounting()
    accounting.start(0.0)
    accounting.update(1.0, [0], apply_seconds=0.0)
    assert accounting.summary()["updates_all_training"] == 0
    assert accounting.summary()["all_training_seconds"] == 0.0
