"""The task engine's log buffer: lines survive any cut, memory does not grow, losses are told."""

from __future__ import annotations

import asyncio
import struct

from hypothesis import given
from hypothesis import strategies as st

from local.engine.logs import Line, LineSplitter, LogBuffer, Stream, encode_frame


def split(pieces: list[bytes], max_line_bytes: int) -> list[bytes]:
    splitter = LineSplitter(max_line_bytes)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + list(splitter.flush())


@given(st.lists(st.binary(max_size=40) | st.just(b"\n")), st.integers(1, 30))
def test_lines_do_not_depend_on_how_the_reads_fell(pieces: list[bytes], max_line_bytes: int) -> None:
    lines = split(pieces, max_line_bytes)

    assert lines == split([b"".join(pieces)], max_line_bytes)
    assert b"".join(lines) == b"".join(pieces)
    assert all(0 < len(line) <= max_line_bytes for line in lines)
    assert all(b"\n" not in line[:-1] for line in lines)
    assert all(line.endswith(b"\n") or len(line) == max_line_bytes for line in lines[:-1])


@given(st.lists(st.text(alphabet="ab", max_size=30)), st.data())
def test_short_lines_are_never_cut(texts: list[str], data: st.DataObject) -> None:
    written = [f"{text}\n".encode() for text in texts]
    stream = b"".join(written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert split(pieces, 31) == written


@given(st.sampled_from(Stream), st.binary(max_size=300))
def test_a_frame_says_stream_and_length(stream: Stream, text: bytes) -> None:
    frame = encode_frame(Line(stream, text))

    assert struct.unpack(">BBBBI", frame[:8]) == (stream, 0, 0, 0, len(text))
    assert frame[8:] == text


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=80), st.integers(300, 2000))
def test_the_buffer_keeps_the_newest_lines_within_its_bound_and_tells_the_rest(
    texts: list[bytes], max_bytes: int
) -> None:
    buffer = LogBuffer(max_bytes)
    for text in texts:
        buffer.append(Line(Stream.STDOUT, text))

    lines, end = buffer.read()

    kept = [line.text for line in lines if line.stream is Stream.STDOUT]
    notices = [line.text for line in lines if line.stream is Stream.STDERR]
    assert end == len(texts)
    assert kept == texts[len(texts) - len(kept) :]
    assert sum(map(len, kept)) <= max_bytes
    assert bool(notices) == (len(kept) < len(texts))
    if notices:
        assert f"{len(texts) - len(kept)} lines dropped".encode() in notices[0]


async def followed() -> list[list[bytes]]:
    buffer = LogBuffer()

    async def follow(tail: int | None) -> list[bytes]:
        return [line.text async for line in buffer.follow(tail)]

    for text in (b"1", b"2", b"3"):
        buffer.append(Line(Stream.STDOUT, text))
    readers = [
        asyncio.create_task(follow(None)),
        asyncio.create_task(follow(1)),
        asyncio.create_task(follow(0)),
    ]
    await asyncio.sleep(0)
    buffer.append(Line(Stream.STDOUT, b"4"))
    await asyncio.sleep(0)
    buffer.append(Line(Stream.STDERR, b"5"))
    buffer.close()
    return await asyncio.gather(*readers, follow(None))


def test_followers_get_every_line_and_end_with_the_log() -> None:
    everything, last, new, late = asyncio.run(followed())

    assert everything == late == [b"1", b"2", b"3", b"4", b"5"]
    assert last == [b"3", b"4", b"5"]
    assert new == [b"4", b"5"]
