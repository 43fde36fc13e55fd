"""Processes of one round: started, listened to, and stopped whatever happens.

Runs in the bench's main process, and first thing in each child. They are forked by a parent that has imported
torch, as the embedded cloud does it: importing it takes each of them two seconds.
"""

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from bench.case import RoundFailed
from runtime import malloc

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bench.registry", "bench.epoch", "bench.instrumentation"])

GOODBYE_SECONDS = 3.0
"""How long a process that was told to stop has before it is killed."""

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
"""Gloo and TensorPipe would otherwise listen where the host's name resolves to."""

Target = Callable[..., None]
"""Called in the child with its end of the pipe, then with the arguments of `Processes.start`."""

_PR_SET_PDEATHSIG = 1


def _run(target: Target, pipe: "Connection[Any, Any]", log: Path, tuned: bool, args: tuple[Any, ...]) -> None:
    """The child's life."""
    # Its parent is the fork server, which ends with the bench, however that ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the bench stops its children itself
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(LOOPBACK)
    torch.set_num_threads(1)
    if tuned:
        malloc.tune()
    code = 1
    try:
        target(pipe, *args)
        code = 0
    except BaseException:  # noqa: BLE001 - written to the log that the bench shows
        traceback.print_exc()
    finally:
        # Some peers' libraries wait for each other when a process ends in the ordinary way.
        os._exit(code)


class Child:
    """One process of a round."""

    def __init__(self, name: str, log: Path, target: Target, args: tuple[Any, ...], *, tuned: bool) -> None:
        self.name = name
        self.log = log
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_run, args=(target, theirs, log, tuned, args), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        if self.process.pid is None:
            raise RuntimeError(f"{self.name} was not started")
        return self.process.pid

    def last_words(self) -> str:
        """The end of what it printed."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return " | ".join(text.strip().splitlines()[-3:]) or "it said nothing"


class Processes:
    """The processes of one round. A context manager: leaving it stops them all."""

    def __init__(self, folder: Path, timeout_seconds: float, *, tuned: bool) -> None:
        """`folder`: where they log; `tuned`: whether malloc is set as the runtime sets it."""
        self._folder = folder
        self._deadline = time.monotonic() + timeout_seconds
        self._timeout_seconds = timeout_seconds
        self._tuned = tuned
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        patience = GOODBYE_SECONDS if kind is None else 0.0
        # Workers first: a server that vanishes would make them complain.
        for child in reversed(self._children):
            with suppress(OSError):
                child.pipe.send("stop")
            child.process.join(patience)
        for child in self._children:
            child.process.kill()
        for child in self._children:
            child.process.join()
            child.pipe.close()
            child.process.close()

    def start(self, name: str, target: Target, *args: Any) -> Child:
        """Start a process that runs `target(pipe, *args)`; `args` are pickled."""
        child = Child(name, self._folder / f"{name}.log", target, args, tuned=self._tuned)
        self._children.append(child)
        return child

    def receive(self, child: Child) -> Any:
        """The next message of a child. Raises RoundFailed if a process ends first, or the time is over."""
        sentinels = {other.process.sentinel: other for other in self._children}
        remaining = max(self._deadline - time.monotonic(), 0)
        ready = connection.wait([child.pipe, *sentinels], remaining)
        if child.pipe in ready:
            try:
                return child.pipe.recv()
            except EOFError:
                raise RoundFailed(f"{child.name} ended: {child.last_words()}") from None
        for sentinel in ready:
            if isinstance(sentinel, int):
                other = sentinels[sentinel]
                raise RoundFailed(f"{other.name} ended: {other.last_words()}")
        raise RoundFailed(
            f"{child.name} did not answer within {self._timeout_seconds:.0f} s: {child.last_words()}"
        )
