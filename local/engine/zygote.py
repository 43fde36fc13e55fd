"""The warm parent: imports the heavy modules once, then forks one process per container.

Runs as the engine's only child, single-threaded for life; must not know HTTP, Docker, names or addresses.

It talks to the engine over a SOCK_SEQPACKET pair, one JSON object per message:
engine → zygote  {"op": "fork", "id", "argv", "env"} + two file descriptors (stdout, stderr)
                 {"op": "signal", "id", "signal", "group"}
zygote → engine  {"op": "ready"} | {"op": "failed", "reason"}, once; then
                 {"op": "forked", "id", "pid"} | {"op": "refused", "id", "reason"} |
                 {"op": "exited", "id", "code"}
The end of the stream means that the engine is gone: every container is killed.

Forking is safe only while nothing here runs a thread: a lock that a thread held at the fork stays locked in
the child for ever. `import torch` and `import grpc` (1.85) start none; creating a gRPC channel, server or
credentials, or any parallel tensor operation does. numpy's OpenBLAS starts its pool on import unless told to
use one thread.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

Entry = Callable[[list[str]], int | None]
# What a kill leaves as exit code, as Docker and shells report it: 137 for SIGKILL.
SIGNAL_EXIT_BASE = 128
MAX_MESSAGE_BYTES = 192 << 10  # below Linux's default socket buffer (208 KiB), which bounds one message
_ASKING_TO_END = {signal.SIGINT, signal.SIGTERM}
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class PreloadFailed(RuntimeError):
    """A module named by --preload or --entry cannot be used."""


def run(control: socket.socket, entry_name: str, preload: Sequence[str]) -> int:
    """Be the zygote until the engine's end of `control` closes; returns the process's exit code."""
    # Blocked rather than ignored: a Ctrl-C reaches the whole foreground group, but ending is the engine's
    # decision. A child inherits the block, so a SIGTERM that arrives before it has set itself up waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING_TO_END)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of containers become ours, and are reaped
    # As PYTHONUNBUFFERED would have it in an image: a log that comes in blocks of 8 KiB comes too late. Set here and
    # not after the fork, because containers keep these very objects: preloaded modules (logging) may hold them.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    try:
        entry = load(entry_name, preload)
    except PreloadFailed as error:
        _send(control, {"op": "failed", "reason": str(error)})
        return 1
    # The collector would write into every object's header, and so copy the pages that children share.
    gc.collect()
    gc.freeze()
    zygote = Zygote(control, entry)
    _send(control, {"op": "ready"})
    zygote.serve()
    return 0


def load(entry_name: str, preload: Sequence[str]) -> Entry:
    """Import all modules, then the entry `module:function`. Raises `PreloadFailed`, naming every fault."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read once, when numpy is imported; see the module's docstring
    module_name, _, function_name = entry_name.partition(":")
    failures = []
    for name in [*preload, module_name]:
        before = _thread_count()
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - SystemExit too: whatever an import does, the engine hears of it
            failures.append(f"cannot import {name}:\n{traceback.format_exc()}")
        if _thread_count() > before:
            failures.append(f"importing {name} started a thread, and forking is safe only without any")
    entry: Entry | None = getattr(sys.modules.get(module_name), function_name, None)
    if not failures and not callable(entry):
        failures.append(f"--entry {entry_name}: not a function; it must be module:function")
    if failures or entry is None:
        raise PreloadFailed("\n".join(failures))
    return entry


def _thread_count() -> int:
    # The kernel's count: the threading module knows nothing of native threads.
    return len(list(Path("/proc/self/task").iterdir()))


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the engine is gone: the next receive says so
        control.send(json.dumps(message).encode())


class Zygote:
    """Forks, signals and reaps; signals come from here because only here is known who is not reaped yet."""

    def __init__(self, control: socket.socket, entry: Entry) -> None:
        self._control = control
        self._entry = entry
        self._ids: dict[int, str] = {}  # pid → container id, of every container not reaped yet
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> None:
        """Work until the engine is gone, then kill every container."""
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(
            signal.SIGCHLD, lambda *_: None
        )  # a handler must exist for the wake-up byte to be written
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        engine_lives = True
        while engine_lives:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if self._control.fileno() in ready:
                engine_lives = self._obey()
        for pid in self._ids:
            _kill_group(pid)

    def _obey(self) -> bool:
        try:
            data, ancillary, _flags, _ = self._control.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(8))
        except ConnectionError:
            return False
        if not data:
            return False
        descriptors = array.array("i")
        for _level, _type, raw in ancillary:
            descriptors.frombytes(raw)
        order = json.loads(data)
        if order["op"] == "fork":
            self._fork(order, *descriptors)
        else:
            self._signal(order)
        return True

    def _fork(self, order: dict[str, Any], stdout: int, stderr: int) -> None:
        zygote_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _send(self._control, {"op": "refused", "id": order["id"], "reason": f"cannot fork: {error}"})
        else:
            if pid == 0:
                self._become_container(order, stdout, stderr, zygote_pid)
            self._ids[pid] = order["id"]
            _send(self._control, {"op": "forked", "id": order["id"], "pid": pid})
        os.close(stdout)
        os.close(stderr)

    def _become_container(self, order: dict[str, Any], stdout: int, stderr: int, zygote_pid: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            _die_with(zygote_pid)
            self._wire(stdout, stderr)
            os.environ.clear()
            os.environ.update(order["env"])
            sys.argv = [self._entry.__module__, *order["argv"]]
            _reseed()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING_TO_END)
            code = call(self._entry, order["argv"])
        except BaseException:  # noqa: BLE001 - the copy must not go on as a second zygote, whatever happens
            traceback.print_exc()
        finally:
            # Not sys.exit: what the zygote registered to run at exit is not this container's to run.
            os._exit(code & 0xFF)

    def _wire(self, stdout: int, stderr: int) -> None:
        """Put the pipes where 1 and 2 are, and leave nothing of the zygote's own open."""
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nowhere, 0), (stdout, 1), (stderr, 2)):
            os.dup2(source, target)
        for descriptor in (nowhere, stdout, stderr, self._wake_read, self._wake_write):
            os.close(descriptor)
        self._control.close()

    def _signal(self, order: dict[str, Any]) -> None:
        for pid, container_id in self._ids.items():
            if container_id == order["id"]:
                # Not reaped, so the number cannot belong to anybody else by now.
                os.kill(pid, order["signal"])
                if order["group"]:
                    _kill_group(pid)

    def _reap(self) -> None:
        while True:
            try:
                # Look before taking away: as long as the leader is a zombie, its group's number is not
                # reused.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            container_id = self._ids.pop(found.si_pid, None)
            if container_id is not None:
                _kill_group(found.si_pid)  # a container ends as a whole, as its PID namespace would
            os.waitpid(found.si_pid, 0)
            if container_id is not None:
                code = found.si_status + (0 if found.si_code == os.CLD_EXITED else SIGNAL_EXIT_BASE)
                _send(self._control, {"op": "exited", "id": container_id, "code": code})


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has not called setsid yet, or nobody is left
        os.killpg(leader, signal.SIGKILL)


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died between fork and prctl
        os._exit(SIGNAL_EXIT_BASE + signal.SIGKILL)


def _reseed() -> None:
    """Or all copies of a generator would draw the same: `random` reseeds after a fork, numpy does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def call(entry: Entry, argv: list[str]) -> int:
    """Run the entry point as an interpreter runs a main program: its exit code, the output flushed."""
    try:
        code: object = entry(argv)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:  # noqa: BLE001 - KeyboardInterrupt too: it is the container's end, as any other
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")  # what sys.exit("message") means
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed by the program, or nobody reads any more
            stream.flush()
    return code or 0
