"""The pacing of inspects: pollers wait, whoever asks once does not, nobody waits past a release."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.engine.polling import (
    ANSWERS_BEFORE_HOLDING,
    LONGEST_GAP_SECONDS,
    SHORTEST_GAP_SECONDS,
    PollPacer,
)


class Clock:
    """Stands still unless moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def answered_at_once(pacer: PollPacer) -> bool:
    asking = asyncio.ensure_future(pacer.pace())
    await asyncio.sleep(0)
    if asking.done():
        return True
    asking.cancel()
    return False


async def warmed_up(clock: Clock) -> PollPacer:
    pacer = PollPacer(clock)
    for _ in range(ANSWERS_BEFORE_HOLDING):
        await pacer.pace()
    return pacer


@given(st.lists(st.floats(0, 10), max_size=ANSWERS_BEFORE_HOLDING - 1))
def test_the_first_inspects_are_never_held(gaps: list[float]) -> None:
    async def scenario() -> None:
        clock = Clock()
        pacer = PollPacer(clock)
        for gap in [0.0, *gaps]:
            clock.now += gap
            assert await answered_at_once(pacer)

    asyncio.run(scenario())


@given(st.floats(0, 5))
def test_only_the_rhythm_of_a_poller_is_held(gap: float) -> None:
    async def scenario() -> bool:
        clock = Clock()
        pacer = await warmed_up(clock)
        clock.now += gap
        return await answered_at_once(pacer)

    in_rhythm = SHORTEST_GAP_SECONDS <= gap <= LONGEST_GAP_SECONDS
    assert asyncio.run(scenario()) is not in_rhythm


def test_a_second_inspect_and_an_exit_each_release_the_held_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("SHORTEST", "LONGEST"):
        monkeypatch.setattr(f"local.engine.polling.{end}_HOLD_SECONDS", 600)

    async def scenario() -> None:
        clock = Clock()
        pacer = await warmed_up(clock)
        clock.now += 0.15
        held = asyncio.ensure_future(pacer.pace())
        await asyncio.sleep(0)
        other = asyncio.ensure_future(pacer.pace())
        await asyncio.wait_for(held, 60)
        clock.now += 0.15
        pacer.release()
        await asyncio.wait_for(other, 60)

    asyncio.run(scenario())


def test_a_held_inspect_is_answered_after_a_while_even_if_nothing_happens() -> None:
    async def scenario() -> None:
        clock = Clock()
        pacer = await warmed_up(clock)
        clock.now += 0.15
        await asyncio.wait_for(pacer.pace(), 10)

    asyncio.run(scenario())
