"""Derive independent random numbers from a study's seed.

Pure. Every random choice of a training goes through here, so that the same seed gives the same run whatever the
order in which processes come to ask.
"""

import hashlib


def derive_seed(purpose: str, *numbers: int) -> int:
    """A number in [0, 2**63) that depends on nothing but the arguments.

    A hash, not a running generator: the draw of rank 3, step 70 needs no draws before it, and is the same
    in every mode, so that modes are compared under the same stragglers.
    """
    text = "/".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
