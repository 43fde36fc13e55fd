"""Task sizes that Fargate runs: which memory goes with how many CPU units.

Used by study validation. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

CPU_UNITS_OF_A_VCPU: Final = 1024

FARGATE_MEMORY: Mapping[int, Sequence[int]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}
"""CPU units → memory sizes in MiB that Fargate runs on Linux.

Source: Amazon ECS Developer Guide, "Fargate task definition considerations", task CPU and memory.
"""


def size_problem(cpu: int, memory: int) -> str:
    """What is wrong with a pair of CPU units and MiB, and what to choose; empty where Fargate runs it."""
    if cpu not in FARGATE_MEMORY:
        return f"cpu {cpu} is no Fargate size; choose {_list(FARGATE_MEMORY)}"
    sizes = FARGATE_MEMORY[cpu]
    if memory in sizes:
        return ""
    choice = _list(sizes)
    if isinstance(sizes, range):
        choice = f"{sizes.start} to {sizes[-1]} in steps of {sizes.step}"
    return f"memory {memory} does not go with cpu {cpu}; choose {choice} (MiB)"


def _list(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
