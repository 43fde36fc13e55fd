"""A burst of metric lines is spaced; everything else passes at once."""

import asyncio
import time

from local.engine.delivery import DeliveryPacer

METRIC = b'METRICS_JSON {"kind": "x"}\n'


def seconds_of(pacer: DeliveryPacer, lines: list[bytes]) -> float:
    async def burst() -> None:
        await asyncio.gather(*(pacer.turn(line) for line in lines))

    began = time.monotonic()
    asyncio.run(burst())
    return time.monotonic() - began


def test_burst_of_metric_lines_takes_a_turn_each() -> None:
    assert seconds_of(DeliveryPacer(spacing_seconds=0.02), 6 * [METRIC]) >= 5 * 0.02


def test_line_after_a_pause_passes_at_once() -> None:
    pacer = DeliveryPacer(spacing_seconds=60)
    # Neither the first metric line nor any other line waits: with a spacing of a minute, one that did would show
    assert seconds_of(pacer, [METRIC, *(1000 * [b"epoch 1 of 5\n"]), b"about METRICS_JSON\n"]) < 30
