"""Tune glibc's malloc: keep freed memory for the next message instead of giving it back to the kernel.

By default each message of some MB is mapped, faulted in page by page and unmapped again; measured at 44 MB with one
worker: 4 updates/s, with this 16 to 20. Runs in both roles, and in what is measured beside them, also under a Python
that has neither torch nor gRPC: standard library only.
"""

import ctypes
from typing import Final

# Name → number of the parameter in glibc's malloc.h, and its value.
_SETTINGS: Final = {
    "MMAP_THRESHOLD": (-3, 1 << 30),  # take large blocks from the heap, not from mmap …
    "TRIM_THRESHOLD": (-1, (1 << 31) - 1),  # … never shrink the heap …
    "TOP_PAD": (-2, 256 << 20),  # … and grow it in steps that need few calls; untouched pages cost nothing
}

ENVIRONMENT: Final = {f"MALLOC_{name}_": str(value) for name, (_, value) in _SETTINGS.items()}
"""The same for processes that are executed, not forked. Source: mallopt(3)."""


def tune() -> None:
    """Apply the settings to this process. Other C libraries are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    for number, value in _SETTINGS.values():
        mallopt(number, value)
