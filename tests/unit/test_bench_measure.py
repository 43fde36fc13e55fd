import ctypes
import os
import time
from types import SimpleNamespace

import pytest
import torch

from bench.measure import (
    Memory,
    Shares,
    cpu_seconds,
    loopback_bytes,
    parse_loopback_bytes,
    parse_shares,
    parse_status,
    peak_above_idle,
    read_memory,
    read_shares,
)
from runtime import malloc

STATUS = """Name:\tpython
VmPeak:\t  900000 kB
VmHWM:\t  5000 kB
VmRSS:\t  4000 kB
RssAnon:\t  1000 kB
RssFile:\t  2000 kB
RssShmem:\t  500 kB
"""


def test_status_is_read_in_bytes() -> None:
    assert parse_status(STATUS) == Memory(peak=5000 << 10, own=1500 << 10, files=2000 << 10)


ROLLUP = """5581-7ffd ---p 00000000 00:00 0                    [rollup]
Rss:                9000 kB
Pss:                4000 kB
Pss_Anon:           2000 kB
Pss_Shmem:          1500 kB
Anonymous:          3000 kB
"""


def test_shares_are_read_in_bytes() -> None:
    assert parse_shares(ROLLUP) == Shares(anonymous=3000 << 10, shared=1500 << 10)


def test_what_a_process_writes_to_is_its_own() -> None:
    before = read_shares()
    held = torch.ones(100_000_000)
    assert read_shares(os.getpid()).anonymous - before.anonymous >= 0.99 * 4 * held.numel()


def test_the_peak_leaves_out_code_that_was_read_meanwhile() -> None:
    idle = Memory(peak=30, own=10, files=20)
    assert peak_above_idle(idle, Memory(peak=130, own=60, files=50)) == 70
    assert peak_above_idle(idle, Memory(peak=30, own=10, files=25)) == 0


def test_memory_that_was_given_back_still_counts() -> None:
    idle = read_memory()
    # Larger than anything that the test process may have freed and kept.
    held = torch.ones(100_000_000)
    del held
    assert peak_above_idle(idle, read_memory(os.getpid())) >= 0
    assert read_memory().peak - idle.own >= 400_000_000


def test_the_clock_of_a_process_is_its_cpu_time() -> None:
    before, own = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() < own + 0.05:
        pass
    assert cpu_seconds(os.getpid()) - before == pytest.approx(time.process_time() - own, abs=0.02)


def test_a_process_that_is_gone_has_no_clock() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        cpu_seconds(pid)


def test_only_the_loopback_interface_counts() -> None:
    text = "Inter-|   Receive\n face |bytes    packets\n eth0: 77 1 0\n    lo: 1234 5 0 0\n"
    assert parse_loopback_bytes(text) == 1234
    assert parse_loopback_bytes("") == 0
    assert loopback_bytes() >= 0


def test_processes_that_are_executed_get_the_malloc_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda number, value: calls.append((number, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    malloc.tune()
    # glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD.
    assert sorted(str(value) for _, value in calls) == sorted(malloc.ENVIRONMENT.values())
    assert malloc.ENVIRONMENT["MALLOC_TOP_PAD_"] == str(dict(calls)[-2])


def test_other_c_libraries_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    malloc.tune()
