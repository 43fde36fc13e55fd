"""What the kernel says of a process and of the loopback interface.

Reads /proc and clocks; Linux only, standard library only: one peer measures from a Python of its own.
"""

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """A process's memory in bytes."""

    peak: int
    """Most that was ever resident, of all kinds."""
    own: int
    """Resident now: heap, stacks, shared memory."""
    files: int
    """Resident now: code and other mapped files. Grows as code is first run."""


def parse_status(text: str) -> Memory:
    """Read the text of a /proc/<pid>/status. Source: proc_pid_status(5)."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kilobytes = {name: int(fields[name].split()[0]) for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}
    return Memory(
        peak=kilobytes["VmHWM"] << 10,
        own=(kilobytes["RssAnon"] + kilobytes["RssShmem"]) << 10,
        files=kilobytes["RssFile"] << 10,
    )


def read_memory(pid: int | str = "self") -> Memory:
    """The memory of a process. Raises OSError if it is gone."""
    return parse_status(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))


def peak_above_idle(idle: Memory, end: Memory) -> int:
    """Bytes that a process took at its peak beyond what it had when idle.

    Mapped code is left out: how much of it is resident says what ran, not what is held.
    """
    return max(end.peak - end.files - idle.own, 0)


@dataclass(frozen=True)
class Shares:
    """A process's resident memory in bytes, by whose it is."""

    anonymous: int
    """Its own: heap and stacks. What it has from its parent, until either writes to it, included."""
    shared: int
    """Its part of shared memory: of a page that n processes have mapped, an nth."""


def parse_shares(text: str) -> Shares:
    """Read the text of a /proc/<pid>/smaps_rollup. Source: proc_pid_smaps(5)."""
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:] if ":" in line)
    kilobytes = {name: int(fields[name].split()[0]) for name in ("Anonymous", "Pss_Shmem")}
    return Shares(anonymous=kilobytes["Anonymous"] << 10, shared=kilobytes["Pss_Shmem"] << 10)


def read_shares(pid: int | str = "self") -> Shares:
    """Whose the memory of a process is. Raises OSError if it is gone."""
    return parse_shares(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, those that have ended among them; in nanosecond steps.

    /proc/<pid>/stat would count in steps of 10 ms. Source of the clock's number: MAKE_PROCESS_CPUCLOCK in the kernel's
    include/linux/posix-timers_types.h, as glibc's clock_getcpuclockid(3) makes it. Raises OSError if it is gone.
    """
    cpuclock_sched = 2
    return time.clock_gettime((~pid << 3) | cpuclock_sched)


def parse_loopback_bytes(text: str) -> int:
    """Bytes that `lo` received, from the text of /proc/net/dev. Source: proc_pid_net(5)."""
    for line in text.splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0


def loopback_bytes() -> int:
    """Bytes that the loopback interface has carried since the machine started."""
    return parse_loopback_bytes(Path("/proc/net/dev").read_text(encoding="ascii"))
