"""An injected link, in virtual time: bytes take as long as they must, and latency comes once per message."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.link import Link, Timetable

SIZES = st.lists(st.integers(1, 1 << 20), min_size=1, max_size=40)
BANDWIDTHS = st.floats(1e3, 1e10)
DELAYS = st.floats(0, 0.01)
STARTS = st.floats(0, 1e6)


class VirtualTime:
    """A clock that moves while somebody sleeps, each time somewhat longer than was asked."""

    def __init__(self, now: float, overshoots: list[float]) -> None:
        self.now = now
        self.overshoots = overshoots
        self.sleeps = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.overshoots[self.sleeps % len(self.overshoots)]
        self.sleeps += 1


def link_of(bandwidth: float | None, latency: float, virtual: VirtualTime) -> Link:
    return Link(bandwidth, latency, clock=virtual.clock, sleep=virtual.sleep)


@settings(deadline=None)
@given(messages=st.lists(SIZES, min_size=1, max_size=5), bandwidth=BANDWIDTHS, latency=DELAYS, start=STARTS)
def test_what_is_sent_back_to_back_takes_its_bytes_over_the_bandwidth_and_a_latency_per_message(
    messages: list[list[int]], bandwidth: float, latency: float, start: float
) -> None:
    virtual = VirtualTime(start, [0.0])
    link = link_of(bandwidth, latency, virtual)
    for sizes in messages:
        for n_bytes in sizes:
            link.pass_through(n_bytes)
        link.arrive()
    expected = sum(sum(sizes) for sizes in messages) / bandwidth + len(messages) * latency
    # Each of some 200 steps rounds a clock of up to 1e6 seconds.
    assert virtual.now - start == pytest.approx(expected, rel=1e-9, abs=1e-7)
    assert link.delayed_seconds == pytest.approx(expected, rel=1e-9, abs=1e-7)


@settings(deadline=None)
@given(
    sizes=SIZES,
    bandwidth=BANDWIDTHS,
    start=STARTS,
    overshoots=st.lists(st.floats(0, 0.005), min_size=1, max_size=9),
)
def test_late_sleeps_do_not_add_up_and_no_piece_passes_early(
    sizes: list[int], bandwidth: float, start: float, overshoots: list[float]
) -> None:
    virtual = VirtualTime(start, overshoots)
    link = link_of(bandwidth, 0, virtual)
    for n_bytes, so_far in zip(sizes, accumulate(sizes), strict=True):
        link.pass_through(n_bytes)
        late = virtual.now - (start + so_far / bandwidth)
        assert -1e-7 <= late <= max(overshoots) + 1e-7


@settings(deadline=None)
@given(
    pieces=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 1 << 20)), min_size=1, max_size=40),
    bandwidth=BANDWIDTHS,
)
def test_bytes_queue_and_an_idle_link_saves_nothing_up(
    pieces: list[tuple[float, int]], bandwidth: float
) -> None:
    timetable, now, free_at = Timetable(bandwidth), 0.0, 0.0
    for gap, n_bytes in pieces:
        now += gap
        passed = timetable.book(now, n_bytes)
        assert passed == pytest.approx(max(now, free_at) + n_bytes / bandwidth)
        free_at = passed


@settings(deadline=None)
@given(shares=st.lists(st.floats(0, 3), max_size=40), n_bytes=st.integers(1, 1 << 20), bandwidth=BANDWIDTHS)
def test_a_caller_may_prepare_the_next_piece_of_a_message_while_one_passes(
    shares: list[float], n_bytes: int, bandwidth: float
) -> None:
    virtual = VirtualTime(0.0, [0.0])
    link, piece_seconds = link_of(bandwidth, 0, virtual), n_bytes / bandwidth
    link.pass_through(n_bytes)
    for share in shares:
        virtual.now += share * piece_seconds
        link.pass_through(n_bytes)
    assert virtual.now == pytest.approx(
        piece_seconds + sum(max(1, share) for share in shares) * piece_seconds
    )


@settings(deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.integers(1, 1 << 20), st.floats(0, 0.1), st.booleans()), min_size=1, max_size=40
    ),
    bandwidth=BANDWIDTHS,
    overshoots=st.lists(st.floats(0, 0.005), min_size=1, max_size=9),
)
def test_whatever_callers_do_between_pieces_the_bandwidth_is_never_exceeded(
    pieces: list[tuple[int, float, bool]], bandwidth: float, overshoots: list[float]
) -> None:
    virtual = VirtualTime(0.0, overshoots)
    link = link_of(bandwidth, 0, virtual)
    since, sent = 0.0, 0
    for n_bytes, work_seconds, ends in pieces:
        link.pass_through(n_bytes)
        sent += n_bytes
        assert virtual.now >= since + sent / bandwidth - 1e-7
        virtual.now += work_seconds
        if ends:
            # What was saved up shows at once in a message that begins after a pause.
            link.arrive()
            virtual.now += 1.0
            since, sent = virtual.now - max(overshoots), 0


@settings(deadline=None)
@given(
    work=st.lists(st.floats(0, 10), min_size=1, max_size=20),
    n_bytes=st.integers(1, 1 << 20),
    bandwidth=BANDWIDTHS,
    latency=DELAYS,
    overshoot=st.floats(0, 0.005),
)
def test_what_a_caller_does_between_messages_is_not_made_up_for(
    work: list[float], n_bytes: int, bandwidth: float, latency: float, overshoot: float
) -> None:
    virtual = VirtualTime(0.0, [overshoot])
    link = link_of(bandwidth, latency, virtual)
    for seconds in work:
        virtual.now += seconds
        link.pass_through(n_bytes)
        link.arrive()
    expected = sum(work) + len(work) * (n_bytes / bandwidth + latency)
    assert -1e-7 <= virtual.now - expected <= overshoot + 1e-7


def test_what_was_prepared_while_a_large_piece_passed_does_not_hasten_the_next_message() -> None:
    virtual = VirtualTime(0.0, [0.0])
    link = link_of(1000, 0, virtual)
    link.pass_through(1000)
    virtual.now += 1.0
    link.pass_through(1)
    assert virtual.now == 2.0
    link.arrive()
    link.pass_through(1000)
    assert virtual.now == 3.0


def test_an_unlimited_link_reads_no_clock_and_never_sleeps() -> None:
    def clock() -> float:
        raise AssertionError("the clock was read")

    def sleep(seconds: float) -> None:
        raise AssertionError(f"slept for {seconds} s")

    link = Link(None, 0, clock=clock, sleep=sleep)
    link.pass_through(1 << 20)
    link.arrive()
    assert link.delayed_seconds == 0


def test_latency_alone_and_bandwidth_alone() -> None:
    virtual = VirtualTime(5.0, [0.0])
    link = link_of(None, 0.25, virtual)
    link.pass_through(1 << 20)
    assert virtual.now == 5.0
    link.arrive()
    assert virtual.now == 5.25
    link = link_of(1000, 0, virtual)
    link.arrive()
    assert virtual.now == 5.25
    link.pass_through(250)
    assert virtual.now == 5.5


def test_threads_share_the_bandwidth_of_one_link() -> None:
    link = Link(10_000_000, 0)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(link.pass_through, [10_000] * 20))
    assert time.monotonic() - started >= 20 * 10_000 / 10_000_000


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_bandwidth_is_refused(bandwidth: float) -> None:
    with pytest.raises(ValueError, match=r"bandwidth is .* bytes/s; expected above 0, or None"):
        Link(bandwidth, 0)


@pytest.mark.parametrize("latency", [-1.0, math.inf, math.nan])
def test_an_impossible_latency_is_refused(latency: float) -> None:
    with pytest.raises(ValueError, match=r"latency is .* s; expected 0 or more"):
        Link(None, latency)
