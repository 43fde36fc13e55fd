"""What a container wrote, line by line, bounded in memory and readable by any number of followers.

Runs in the engine process; must not know processes, pipes or HTTP.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import IntEnum

# One line may be as long as one CloudWatch Logs event may be (1 MiB, API_PutLogEvents); a longer one is cut
# there.
MAX_LINE_BYTES = 1 << 20
# Kept per container, the cost of the Python objects included; 33 containers of one experiment: 132 MiB at
# worst.
MAX_RETAINED_BYTES = 4 << 20
_OBJECT_BYTES = 128


class Stream(IntEnum):
    """Which of its two outputs a container wrote to, as numbered in Docker's frames."""

    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it was written, its newline included."""

    stream: Stream
    text: bytes


def encode_frame(line: Line) -> bytes:
    """The line as a frame of Docker's multiplexed stream: 1 byte stream, 3 zero, 4 length, payload.

    Source: Docker Engine API, ContainerAttach, "Stream format".
    """
    return struct.pack(">BxxxL", line.stream, len(line.text)) + line.text


class LineSplitter:
    """Cuts the bytes of one pipe into lines, however the reads fell."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes; a tail without newline waits for the next call."""
        *complete, tail = data.split(b"\n")
        for piece in complete:
            self._partial += piece + b"\n"
            yield from self._cut(1)
        self._partial += tail
        yield from self._cut(self._max)  # or a writer that never ends its line would fill the engine's memory

    def flush(self) -> Iterator[bytes]:
        """The unfinished last line, when the pipe has ended."""
        yield from self._cut(1)

    def _cut(self, shortest: int) -> Iterator[bytes]:
        while len(self._partial) >= shortest:
            yield bytes(self._partial[: self._max])
            del self._partial[: self._max]


class LogBuffer:
    """The newest lines of one container, and a way to follow them that never holds the writer up.

    A follower keeps only a position. One too slow for the bound misses the oldest lines, and is told how many
    in a line on stderr; so is whoever reads later.
    """

    def __init__(self, max_bytes: int = MAX_RETAINED_BYTES) -> None:
        self._max = max_bytes
        self._lines: deque[Line] = deque()
        self._bytes = 0
        self._first = 0  # position of the oldest line kept
        self._closed = False
        self._news = asyncio.Event()

    def append(self, line: Line) -> None:
        """Keep a line, and let go of the oldest ones that no longer fit."""
        self._lines.append(line)
        self._bytes += len(line.text) + _OBJECT_BYTES
        while self._bytes > self._max and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft().text) + _OBJECT_BYTES
            self._first += 1
        self._announce()

    def close(self) -> None:
        """No line will come any more: followers end after the last one."""
        self._closed = True
        self._announce()

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def read(self, position: int = 0) -> tuple[list[Line], int]:
        """The lines from `position` on, after a notice if some were dropped; and the position after them."""
        end = self._first + len(self._lines)
        dropped = self._first - position
        if dropped <= 0:
            return [self._lines[index] for index in range(-dropped, len(self._lines))], end
        notice = f"[task engine] {dropped} lines dropped here: a container's log keeps {self._max} bytes\n"
        return [Line(Stream.STDERR, notice.encode()), *self._lines], end

    async def follow(self, tail: int | None = None) -> AsyncIterator[Line]:
        """The last `tail` lines kept (None: all), then every line as it comes, until the log is closed."""
        lines, position = self.read()
        lines = lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
        while True:
            for line in lines:
                yield line
            news = self._news
            lines, position = self.read(position)
            if lines:
                continue
            if self._closed:
                return
            await news.wait()
            lines, position = self.read(position)
