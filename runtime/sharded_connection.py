"""A worker's connections to all servers of an experiment, one for each shard of the parameters, as if to one.

Runs in the worker; knows nothing of models or data. Every step is pushed to every shard, and the next one is begun
only when all have answered: no shard is ever ahead of another by more than the gradients that are under way.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any, Self, TypeVar

from torch import Tensor

from runtime.connection import Connection, Traffic
from runtime.data_connection import Exchanged, Wire, push_finite

R = TypeVar("R")


def shard_slices(length: int, shards: int) -> list[slice]:
    """Which part of a vector of `length` elements each shard has: nearly equal ones, in order."""
    bounds = [length * index // shards for index in range(shards + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


class ShardedConnection:
    """Connections in the order of their shards; at least one. A context manager: leaving it hangs up all of them."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections
        self._slices: list[slice] = []
        self._versions = [0] * len(connections)
        self._threads = ThreadPoolExecutor(len(connections), thread_name_prefix="shard")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Hang up: what happens to the servers now does not matter any more."""
        for connection in self._connections:
            connection.attendance.leave()
        self._threads.shutdown()

    def withdraw(self, reason: str) -> None:
        """Tell every server that this worker cannot take part."""
        for connection in self._connections:
            connection.withdraw(reason)

    def ready(self, wires: Sequence[Wire], steps: int, next_step: int) -> int:
        """As Connection.ready, with the wire of each shard."""
        self._slices = shard_slices(sum(wire.length for wire in wires), len(wires))
        return self._each(
            lambda index, connection: connection.ready(wires[index], steps, next_step),
        )[0]

    def sleep(self, seconds: float, version: int) -> bool:
        """As Attendance.sleep: where there are several shards, no gradient is ever superseded."""
        return self._connections[0].attendance.sleep(seconds, version)

    def pull(self, into: Tensor) -> int:
        """Write the current parameters to `into` (flat, fp32); returns their version."""
        return self._exchange(lambda _, connection, part: connection.pull(into[part])).version

    def push_pull(self, gradient: Tensor, step: int, into: Tensor) -> Exchanged:
        """As Connection.push_pull. What is said of time is that of the slowest shard, the version that of the first."""

        def push_pull(index: int, connection: Connection, part: slice) -> Exchanged:
            return connection.push_pull_finite(gradient[part], step, self._versions[index], into[part])

        # The whole of it before any part: what one server has applied, another cannot refuse.
        return push_finite(
            lambda: self._exchange(push_pull),
            gradient,
            f"{self._connections[0].name}, step {step}",
            self.withdraw,
        )

    def finish(self) -> bool:
        """Say that all steps are done, and that the parameters of the last answer were tested.

        Returns whether this worker must test what the servers have now.
        """
        replies = self._each(lambda index, connection: connection.finish(self._versions[index]))
        return any(reply.test_final for reply in replies)

    @property
    def transport(self) -> str:
        """How vectors travel, all ways that do."""
        return ", ".join(sorted({connection.transport for connection in self._connections}))

    @property
    def traffic(self) -> Traffic:
        """What passed on the data planes."""
        return sum((connection.traffic for connection in self._connections), Traffic())

    def _exchange(self, exchange: Callable[[int, Connection, slice], Exchanged]) -> Exchanged:
        answers = self._each(lambda index, connection: exchange(index, connection, self._slices[index]))
        self._versions = [answer.version for answer in answers]
        if len(answers) == 1:
            return answers[0]
        return Exchanged(
            version=answers[0].version,
            waited_seconds=max(answer.waited_seconds for answer in answers),
            dropped=any(answer.dropped for answer in answers),
            serialize_seconds=max(answer.serialize_seconds for answer in answers),
        )

    def _each(self, call: Callable[[int, Connection], R]) -> list[R]:
        """Call every connection, all at once. Raises what failed first; the others are then given up."""
        if len(self._connections) == 1:
            return [call(0, self._connections[0])]
        futures = [
            self._threads.submit(call, index, connection)
            for index, connection in enumerate(self._connections)
        ]
        done, others = wait(futures, return_when=FIRST_EXCEPTION)
        failed: list[Any] = [future for future in done if future.exception() is not None]
        if failed and others:
            for connection in self._connections:
                connection.attendance.leave()
        return [future.result() for future in [*failed, *futures]][len(failed) :]
