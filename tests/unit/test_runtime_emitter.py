"""Metric lines: numbered, whole, and parseable whatever the threads do."""

import os
import threading
from pathlib import Path

from contract.metrics import ServerInterval, TaskFailed, from_line
from runtime.emitter import Emitter

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
