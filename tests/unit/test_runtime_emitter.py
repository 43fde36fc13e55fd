"""Metric lines: numbered, whole, and parseable whatever the threads do."""

import os
import signal
import threading
from pathlib import Path

import pytest

from contract.metrics import ServerInterval, TaskFailed, from_line
from runtime.emitter import Emitter
from runtime.process import Stopped

INTERVAL = {
    "interval_seconds": 2.0,
    "version": 3,
    "updates": 3,
    "updates_per_second": 1.5,
    "gradients": 3,
    "mean_staleness": 1.0,
    "max_staleness": 2,
}


def emitter_into(path: Path) -> Emitter:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    return Emitter(
        study="study",
        experiment="sync_2workers",
        role="worker",
        rank=1,
        attempt=2,
        descriptor=descriptor,
    )


def test_a_record_says_whose_it_is(tmp_path: Path) -> None:
    emitter = emitter_into(tmp_path / "out")
    emitter.emit(TaskFailed, reason="no disk", lost_peer="")
    record = from_line((tmp_path / "out").read_text().strip())
    assert isinstance(record, TaskFailed)
    whose = (record.study, record.experiment, record.role, record.rank, record.attempt)
    assert whose == ("study", "sync_2workers", "worker", 1, 2)
    assert record.timestamp.tzinfo is not None


def test_a_server_that_learns_that_it_is_not_the_first_says_so_from_then_on(tmp_path: Path) -> None:
    emitter = emitter_into(tmp_path / "out")
    emitter.attempt = 3
    emitter.emit(TaskFailed, reason="no disk", lost_peer="")
    record = from_line((tmp_path / "out").read_text().strip())
    assert (record.attempt, record.seq) == (3, 0)


def test_lines_of_many_threads_stay_whole_and_are_numbered_in_order(tmp_path: Path) -> None:
    emitter = emitter_into(tmp_path / "out")
    threads = [
        threading.Thread(target=lambda: [emitter.emit(ServerInterval, **INTERVAL) for _ in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "out").read_text().splitlines()
    assert [from_line(line).seq for line in lines] == list(range(400))


def test_a_task_that_is_told_to_stop_while_it_prints_stops_after_that_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter, write = emitter_into(tmp_path / "out"), os.write

    def stop(signum: int, _: object) -> None:
        raise Stopped(signum)

    def told_to_stop(descriptor: int, data: memoryview) -> int:
        # A pipe that is nearly full takes a part
        signal.raise_signal(signal.SIGTERM)
        return write(descriptor, data[:40])

    before = signal.signal(signal.SIGTERM, stop)
    try:
        # When a signal comes in the middle of a record, and of a note
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", told_to_stop)
            with pytest.raises(Stopped):
                emitter.emit(ServerInterval, **INTERVAL)
            with pytest.raises(Stopped):
                emitter.note("going on")
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    # Then both are whole, and no number is left out before the last words
    emitter.emit(TaskFailed, reason="stopped", lost_peer="")
    first, note, last = (tmp_path / "out").read_text().splitlines()
    assert note == "study/sync_2workers: going on"
    assert [from_line(line).seq for line in (first, last)] == [0, 1]
