"""Vectors in memory that a worker shares with its server: where both are on one host, nothing is sent.

Runs on both sides. The memory is anonymous: it has no name that could be left behind, and goes with the last
process that has it mapped. The server finds it below /proc, which it cannot from another host or container.
"""

import fcntl
import hmac
import mmap
import os
import secrets
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from runtime.blocks import ITEM_BYTES
from runtime.wire.parameter_server_pb2 import SharedMemory

_NONCE_BYTES: Final = 32
_MEMFD: Final = "lockstep-vectors"
_HEAD_BYTES: Final = mmap.PAGESIZE
"""The nonce, and then nothing: vectors begin on a page."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""What is mapped stays: were it cut, whoever reads it next would be killed. Source: fcntl(2), File sealing."""


class SharedVectors:
    """A gradient and parameters (flat, fp32, of one length) in shared memory."""

    def __init__(self, memory: mmap.mmap, length: int) -> None:
        self.gradient = _vector(memory, length, 0)
        self.parameters = _vector(memory, length, 1)


class OwnVectors(SharedVectors):
    """Those of a worker; `offer` is what its server needs to find them."""

    def __init__(self, length: int) -> None:
        """All zero. Raises OSError where there is no room for them."""
        descriptor = os.memfd_create(_MEMFD, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Reserved now: memory that is short later would be a signal in the middle of a step.
            os.posix_fallocate(descriptor, 0, _size(length))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(descriptor, _size(length))
        except OSError:
            # What was reserved of it would stay so.
            os.close(descriptor)
            raise
        nonce = secrets.token_bytes(_NONCE_BYTES)
        memory[:_NONCE_BYTES] = nonce
        super().__init__(memory, length)
        self._descriptor = descriptor
        self.offer = SharedMemory(process=os.getpid(), descriptor=descriptor, nonce=nonce)

    def close(self) -> None:
        """No server finds them any more; who has them mapped keeps them."""
        os.close(self._descriptor)


def accept(offer: SharedMemory, length: int) -> SharedVectors | None:
    """The vectors that a worker offers, or None where they cannot be reached from here."""
    path = Path("/proc", str(offer.process), "fd", str(offer.descriptor))
    try:
        memory = _mapped(path, _size(length))
    except OSError:
        return None
    if memory is None or not hmac.compare_digest(memory[:_NONCE_BYTES], offer.nonce):
        return None
    return SharedVectors(memory, length)


def _mapped(path: Path, size: int) -> mmap.mmap | None:
    """Memory of another process, if it is what workers share. Raises OSError if it cannot be reached."""
    # Nothing else is opened: a worker must not have the server touch other files.
    if not str(path.readlink()).startswith(f"/memfd:{_MEMFD} "):
        return None
    descriptor = os.open(path, os.O_RDWR)
    try:
        if os.fstat(descriptor).st_size != size or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) != _SEALS:
            return None
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _size(length: int) -> int:
    return _HEAD_BYTES + 2 * _stride(length)


def _stride(length: int) -> int:
    """Bytes of a vector, in whole pages."""
    return -(-length * ITEM_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


def _vector(memory: mmap.mmap, length: int, position: int) -> Tensor:
    offset = _HEAD_BYTES + position * _stride(length)
    return torch.frombuffer(memory, dtype=torch.float32, count=length, offset=offset)
