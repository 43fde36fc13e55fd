"""Memory that two real processes share, and what a server does not take for it."""

import mmap
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.shared_memory import OwnVectors, SharedVectors, accept
from runtime.wire.parameter_server_pb2 import SharedMemory

LENGTH = 3000
PATIENCE = 60.0


def be_a_worker(told: Connection, length: int) -> None:
    """Runs in another process: offers vectors, writes and reads them as it is told."""
    vectors = OwnVectors(length)
    told.send(vectors.offer.SerializeToString())
    while (order := told.recv()) is not None:
        if order == "write":
            vectors.gradient.copy_(torch.arange(float(length)))
            told.send(None)
        elif order == "read":
            told.send(vectors.parameters.tolist())
        else:
            vectors.close()
            told.send(None)


class OtherProcess:
    """A worker in a process of its own."""

    def __init__(self, length: int = LENGTH) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=be_a_worker, args=(theirs, length))
        self.process.start()
        theirs.close()
        assert self._connection.poll(PATIENCE)
        self.offer = SharedMemory.FromString(self._connection.recv())

    def do(self, order: str) -> object:
        self._connection.send(order)
        assert self._connection.poll(PATIENCE)
        return self._connection.recv()

    def stop(self) -> None:
        if self.process.is_alive():
            self._connection.send(None)
        self.process.join(PATIENCE)
        self._connection.close()
        assert not self.process.is_alive()


@pytest.fixture(scope="module")
def worker() -> Iterator[OtherProcess]:
    other = OtherProcess()
    yield other
    other.stop()


def test_each_process_sees_what_the_other_writes(worker: OtherProcess) -> None:
    vectors = accept(worker.offer, LENGTH)
    assert vectors is not None
    worker.do("write")
    assert torch.equal(vectors.gradient, torch.arange(float(LENGTH)))
    vectors.parameters.fill_(2.5)
    assert worker.do("read") == [2.5] * LENGTH
    assert torch.equal(vectors.gradient, torch.arange(float(LENGTH))), "neither overlaps the other"


def changed(offer: SharedMemory, **changes: object) -> SharedMemory:
    other = SharedMemory()
    other.CopyFrom(offer)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


@settings(deadline=None, max_examples=30)
@given(nonce=st.one_of(st.just(b""), st.binary(max_size=64), st.just(bytes(32))))
def test_another_nonce_is_not_the_workers_own_memory(worker: OtherProcess, nonce: bytes) -> None:
    assert nonce == worker.offer.nonce or accept(changed(worker.offer, nonce=nonce), LENGTH) is None


@pytest.mark.parametrize("length", [1, LENGTH - 2000, LENGTH + 2000])
def test_memory_for_another_length_is_not_taken(worker: OtherProcess, length: int) -> None:
    assert accept(worker.offer, length) is None


@pytest.mark.parametrize("descriptor", [0, 1, 2, 999_999, 2**32 - 1])
def test_a_descriptor_of_something_else_is_not_taken(worker: OtherProcess, descriptor: int) -> None:
    assert accept(changed(worker.offer, descriptor=descriptor), LENGTH) is None


@pytest.mark.parametrize("process", [0, 2**22 + 1, 2**32 - 1])
def test_a_process_that_is_not_there_is_a_server_elsewhere(worker: OtherProcess, process: int) -> None:
    assert accept(changed(worker.offer, process=process), LENGTH) is None


@contextmanager
def holding(descriptor: int) -> Iterator[SharedMemory]:
    try:
        yield SharedMemory(process=os.getpid(), descriptor=descriptor, nonce=bytes(32))
    finally:
        os.close(descriptor)


def test_a_file_is_not_opened_whatever_is_in_it(tmp_path: Path) -> None:
    """A worker must not have the server write to files: even to one that looks like memory of its own."""
    own = OwnVectors(LENGTH)
    path = tmp_path / "memfd:lockstep-vectors "
    path.write_bytes(bytes(32) + bytes(mmap.PAGESIZE * 7 - 32))
    with holding(os.open(path, os.O_RDWR)) as offer:
        assert accept(offer, LENGTH) is None
    assert path.read_bytes() == bytes(mmap.PAGESIZE * 7)
    own.close()


def test_memory_of_another_name_is_not_taken() -> None:
    descriptor = os.memfd_create("something-else")
    own = OwnVectors(LENGTH)
    os.ftruncate(descriptor, os.fstat(own.offer.descriptor).st_size)
    with holding(descriptor) as offer:
        assert accept(offer, LENGTH) is None
    own.close()


def test_memory_that_is_shared_cannot_be_cut() -> None:
    """Whoever read what is gone would be killed, and the server with it all other workers' training."""
    own = OwnVectors(LENGTH)
    with pytest.raises(PermissionError):
        os.ftruncate(own.offer.descriptor, 0)
    own.close()


def test_memory_that_could_be_cut_is_not_taken() -> None:
    own = OwnVectors(LENGTH)
    descriptor = os.memfd_create("lockstep-vectors", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, os.fstat(own.offer.descriptor).st_size)
    with holding(descriptor) as offer:
        assert accept(offer, LENGTH) is None
    own.close()


def test_memory_that_its_worker_has_closed_is_not_found_but_stays_with_who_has_it() -> None:
    own = OwnVectors(LENGTH)
    held = accept(own.offer, LENGTH)
    own.close()
    assert held is not None
    assert accept(own.offer, LENGTH) is None
    own.parameters.fill_(3.0)
    assert held.parameters[0] == 3.0


def test_a_dead_process_shares_nothing_anew_and_takes_nothing_back() -> None:
    worker = OtherProcess(length=10)
    held = accept(worker.offer, 10)
    assert held is not None
    worker.do("write")
    worker.process.kill()
    worker.process.join(PATIENCE)  # or it could be told to stop in the middle of its death
    worker.stop()
    assert held.gradient.tolist() == list(range(10))
    held.parameters.fill_(1.0)
    assert accept(worker.offer, 10) is None


@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 5000))
def test_vectors_of_any_length_begin_on_a_page_and_lie_apart(length: int) -> None:
    own = OwnVectors(length)
    shared: SharedVectors | None = accept(own.offer, length)
    assert shared is not None
    for vectors in (own, shared):
        for vector in (vectors.gradient, vectors.parameters):
            assert vector.data_ptr() % mmap.PAGESIZE == 0
            assert (len(vector), vector.dtype) == (length, torch.float32)
    assert not own.gradient.any()
    assert not own.parameters.any()
    own.gradient.fill_(1.0)
    own.parameters.fill_(2.0)
    assert shared.gradient.tolist() == [1.0] * length
    assert shared.parameters.tolist() == [2.0] * length
    own.close()


def held_vectors() -> int:
    """How many this process has a descriptor of. Not of all: what other tests have opened may close meanwhile."""
    held = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            held += "memfd:lockstep-vectors" in str(path.readlink())
    return held


def test_where_there_is_no_room_nothing_is_left_behind() -> None:
    before = held_vectors()
    with (
        patch("os.posix_fallocate", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space left"),
    ):
        OwnVectors(LENGTH)
    assert held_vectors() == before
