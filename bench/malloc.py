"""The glibc malloc settings of the runtime, for peers: each is measured with and without them.

Runs in every measured process, also under a Python that has neither torch nor grpc: standard library only.
"""

import ctypes

SETTINGS = {
    "MMAP_THRESHOLD": (-3, 1 << 30),
    "TRIM_THRESHOLD": (-1, (1 << 31) - 1),
    "TOP_PAD": (-2, 256 << 20),
}
"""Name → number of the parameter in glibc's malloc.h, and its value; why, says runtime/process.py."""

ENVIRONMENT = {f"MALLOC_{name}_": str(value) for name, (_, value) in SETTINGS.items()}
"""The same for processes that are executed, not forked. Source: mallopt(3)."""


def tune() -> None:
    """Apply the settings to this process. Other C libraries are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    for number, value in SETTINGS.values():
        mallopt(number, value)
