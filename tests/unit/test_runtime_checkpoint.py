"""Checkpoints: as bytes, in a folder and in S3, and the thread that writes them; what is damaged is never used."""

import io
import json
import os
import resource
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import boto3
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import TrainingFailed
from runtime.checkpoint import Checkpoint, CheckpointDamaged, Owner, dump, load
from runtime.checkpoint_store import CheckpointFailed, CheckpointStore, PiecesReader, store_for
from runtime.checkpoint_writer import CheckpointWriter

OWNER = Owner("study-1", "sync-4w")

FP32 = st.lists(st.floats(width=32), max_size=9).map(lambda values: torch.tensor(values, dtype=torch.float32))
INT64 = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9).map(
    lambda values: torch.tensor(values, dtype=torch.int64)
)
TENSORS = st.dictionaries(st.text().filter(lambda name: name != "__metadata__"), FP32 | INT64, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
FACTS = st.dictionaries(st.text(), JSON, max_size=4)


def file_of(checkpoint: Checkpoint, owner: Owner = OWNER) -> bytearray:
    return bytearray(b"".join(dump(checkpoint, owner)))


def numbered(number: int, elements: int = 5) -> Checkpoint:
    """A checkpoint that can be told from another, and from half of one."""
    return Checkpoint({"parameters": torch.full((elements,), float(number))}, {"version": number})


def version_of(checkpoint: Checkpoint | None) -> int:
    """Which of the `numbered` ones it is."""
    assert checkpoint is not None
    version: int = checkpoint.facts["version"]
    assert (checkpoint.tensors["parameters"] == version).all()
    return version


def bits(tensors: Any) -> dict[str, tuple[torch.dtype, bytes]]:
    return {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in tensors.items()}


# As bytes.


@given(TENSORS, FACTS, st.builds(Owner, st.text(), st.text()))
def test_what_is_dumped_is_loaded_bit_for_bit(tensors: Any, facts: Any, owner: Owner) -> None:
    loaded = load(file_of(Checkpoint(tensors, facts), owner), owner)
    assert bits(loaded.tensors) == bits(tensors)
    assert loaded.facts == facts


@given(TENSORS)
def test_the_formats_own_library_reads_it(tensors: Any) -> None:
    data = bytes(file_of(Checkpoint(tensors, {"version": 3})))
    assert bits(safetensors.torch.load(data)) == bits(tensors)


def test_tensors_are_neither_copied_to_dump_nor_to_load() -> None:
    tensor = torch.zeros(4)
    pieces = dump(Checkpoint({"parameters": tensor}, {}), OWNER)
    tensor[0] = 1.0
    assert b"".join(pieces).endswith(torch.tensor([1.0, 0.0, 0.0, 0.0]).numpy().tobytes())
    data = file_of(Checkpoint({"parameters": tensor}, {}))
    load(data, OWNER).tensors["parameters"][:] = 7.0
    assert data.endswith(torch.full((4,), 7.0).numpy().tobytes())


SMALL = file_of(Checkpoint({"parameters": torch.arange(3.0), "steps": torch.arange(2)}, {"version": 7}))


def test_a_file_that_ends_too_early_or_too_late_is_damaged() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(CheckpointDamaged, match=r"^(cut off or changed|not a checkpoint): "):
            load(SMALL[:length], OWNER)
    for more in (b"\0", SMALL):
        with pytest.raises(
            CheckpointDamaged, match=r"^cut off or changed: the checksum of its \d+ bytes is "
        ):
            load(SMALL + more, OWNER)


def test_a_file_with_any_bit_flipped_is_damaged() -> None:
    for position in range(len(SMALL)):
        for bit in range(8):
            data = bytearray(SMALL)
            data[position] ^= 1 << bit
            with pytest.raises(CheckpointDamaged):
                load(data, OWNER)


@given(st.data())
def test_a_file_with_bytes_overwritten_is_damaged(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SMALL) - 1))
    changed = SMALL[:start] + data.draw(st.binary(min_size=1, max_size=len(SMALL) - start))
    changed += SMALL[len(changed) :]
    if changed != SMALL:
        with pytest.raises(CheckpointDamaged):
            load(changed, OWNER)


@given(st.binary(max_size=200))
def test_what_is_no_checkpoint_is_damaged(data: bytes) -> None:
    with pytest.raises(CheckpointDamaged):
        load(bytearray(data), OWNER)


def test_a_file_of_the_formats_own_library_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointDamaged, match=r"^not a checkpoint: "):
        load(bytearray(safetensors.torch.save({"parameters": torch.zeros(9)}, {"format": "pt"})), OWNER)


def test_a_file_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other_program:
        other_program.setattr("runtime.checkpoint.FORMAT", "3")
        data = file_of(numbered(1))
    with pytest.raises(CheckpointDamaged, match=r"^format 3; this program reads 2$"):
        load(data, OWNER)


@pytest.mark.parametrize("other", [Owner("study-2", OWNER.experiment), Owner(OWNER.study, "async-4w")])
def test_another_experiments_file_is_refused(other: Owner) -> None:
    with pytest.raises(CheckpointDamaged) as caught:
        load(file_of(numbered(1), other), OWNER)
    assert str(caught.value) == (
        f"of study {other.study}, experiment {other.experiment}; expected {OWNER.study}, {OWNER.experiment}"
    )


def sealed(tensors: object, data: bytes = b"", **metadata: object) -> bytearray:
    """A file whose checksum is right, whatever it says."""
    told = {"format": "2", "facts": "{}", "study": OWNER.study, "experiment": OWNER.experiment} | metadata
    rest = json.dumps(told).encode()[1:] + b"," + json.dumps(tensors).encode()[1:]
    first = b'{"__metadata__":{"crc32":"'
    length = len(first) + 8 + len(b'",') + len(rest)
    before, after = length.to_bytes(8, "little") + first, b'",' + rest + data
    return bytearray(before + f"{zlib.crc32(before + after):08x}".encode() + after)


def told(start: int = 0, end: int = 8, *, elements: int = 2, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [elements], "data_offsets": [start, end]}


def test_a_header_that_another_program_wrote_is_read() -> None:
    loaded = load(sealed({"a": told(), "b": told(8, 24, dtype="I64")}, bytes(24)), OWNER)
    assert bits(loaded.tensors) == {"a": (torch.float32, bytes(8)), "b": (torch.int64, bytes(16))}


@pytest.mark.parametrize(
    "data",
    [
        sealed({"a": told()}, bytes(7)),
        sealed({"a": told()}, bytes(9)),
        sealed({"a": told(), "b": told(4, 12)}, bytes(12)),
        sealed({"a": told(8, 16)}, bytes(16)),
        sealed({"a": told(elements=3)}, bytes(8)),
        sealed({"a": told(0, -8, elements=-2)}),
        sealed({"a": told(elements=2**70)}, bytes(8)),
        sealed({"a": told(dtype="F16")}, bytes(8)),
        sealed({"a": told() | {"shape": [1, 2]}}, bytes(8)),
        sealed({"a": []}),
        sealed({"a": told()} | {"__metadata__": 1}, bytes(8)),
        sealed({"a": told()}, bytes(8), facts=None),
        sealed({"a": told()}, bytes(8), facts="[" * 100_000),
        sealed({"a": told()}, bytes(8), format=None),
    ],
)
def test_a_header_that_does_not_fit_its_data_is_damage(data: bytearray) -> None:
    with pytest.raises(CheckpointDamaged):
        load(data, OWNER)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(2, 3), r"torch.float32 of shape \(2, 3\) on cpu"),
        (torch.zeros(3, dtype=torch.float16), "torch.float16"),
        (torch.zeros(6)[::2], r"of shape \(3,\)"),
        (torch.zeros(3, device="meta"), "on meta"),
    ],
)
def test_a_tensor_that_a_checkpoint_cannot_hold_is_refused(tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(
        ValueError, match=f"^tensor momentum: .*{says}.*; expected a flat, contiguous one on the"
    ):
        dump(Checkpoint({"momentum": tensor}, {}), OWNER)


def test_a_tensor_cannot_be_named_as_the_metadata_are() -> None:
    with pytest.raises(ValueError, match="a tensor cannot be named __metadata__"):
        dump(Checkpoint({"__metadata__": torch.zeros(1)}, {}), OWNER)


@pytest.mark.parametrize("facts", [{"steps": {0: 5}}, {"steps": (1, 2)}, {"loss": float("nan")}])
def test_facts_that_json_would_change_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump(Checkpoint({}, facts), OWNER)


@given(
    st.lists(st.binary(max_size=6), max_size=4),
    st.lists(st.integers(-1, 8) | st.tuples(st.integers(0, 30), st.sampled_from([0, 2])), max_size=8),
)
def test_pieces_read_like_one_file(pieces: list[bytes], calls: list[int | tuple[int, int]]) -> None:
    stream, file = (
        io.BufferedReader(PiecesReader([memoryview(piece) for piece in pieces])),
        io.BytesIO(b"".join(pieces)),
    )
    for call in calls:
        if isinstance(call, int):
            assert stream.read(call) == file.read(call)
        else:
            assert stream.seek(*call) == file.seek(*call)
        assert stream.tell() == file.tell()


# In a folder and in S3.


class Files:
    """A place of checkpoints, as its owner sees it from outside."""

    def __init__(self, location: str, bucket: Any = None) -> None:
        self.location = location
        self._bucket = bucket
        self.warnings: list[str] = []

    def store(self, study: str = OWNER.study, experiment: str = OWNER.experiment) -> CheckpointStore:
        return store_for(self.location, study, experiment, self.warnings.append)

    def names(self) -> list[str]:
        """Of all files, whoever's they are, relative to the location."""
        if self._bucket is None:
            root = Path(self.location)
            return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        return sorted(each.key.removeprefix("runs/") for each in self._bucket.objects.all())

    def read(self, name: str) -> bytes:
        if self._bucket is None:
            return (Path(self.location) / name).read_bytes()
        content: bytes = self._bucket.Object(f"runs/{name}").get()["Body"].read()
        return content

    def write(self, name: str, content: bytes) -> None:
        if self._bucket is None:
            (Path(self.location) / name).write_bytes(content)
        else:
            self._bucket.Object(f"runs/{name}").put(Body=content)


@pytest.fixture
def folder(tmp_path: Path) -> Files:
    return Files(str(tmp_path / "runs"))


@pytest.fixture(params=["folder", "s3"])
def files(request: pytest.FixtureRequest) -> Files:
    """An empty folder, or an S3 prefix."""
    if request.param == "folder":
        empty: Files = request.getfixturevalue("folder")
        return empty
    aws: boto3.Session = request.getfixturevalue("aws")
    return Files("s3://checkpoints/runs/", aws.resource("s3").create_bucket(Bucket="checkpoints"))


def of(number: int, *, study: str = OWNER.study, experiment: str = OWNER.experiment) -> str:
    return f"{study}/{experiment}/{number:08d}.safetensors"


def test_there_is_no_checkpoint_at_first(files: Files) -> None:
    assert files.store().newest() is None
    assert files.names() == []


def test_a_restarted_server_finds_the_newest_and_the_two_newest_stay(files: Files) -> None:
    for number in range(1, 5):
        assert files.store().save(numbered(number)) == number
        assert version_of(files.store().newest()) == number
    assert files.names() == [of(3), of(4)]
    assert files.warnings == []


def test_a_server_that_is_taken_for_dead_and_still_writes_is_not_gone_on_from(files: Files) -> None:
    old, new = files.store(), files.store()
    old.save(numbered(1))
    new.attempt = 1
    new.save(numbered(2))
    for version in range(10, 14):
        old.save(numbered(version))
        assert version_of(files.store().newest()) == 2
    new.save(numbered(3))
    assert version_of(files.store().newest()) == 3


def test_a_large_checkpoint_is_the_same_again(files: Files) -> None:
    # Longer than the parts in which S3 is read, and than any buffer
    tensors = {"parameters": torch.randn(3_000_001), "momentum": torch.randn(3), "steps": torch.arange(9)}
    files.store().save(Checkpoint(tensors, {}))
    newest = files.store().newest()
    assert newest is not None
    assert bits(newest.tensors) == bits(tensors)


def test_experiments_of_one_location_do_not_see_each_other(files: Files) -> None:
    # One study's name starts with the other's; a name may hold what a path gives a meaning to
    studies = [OWNER.study, f"{OWNER.study}0"]
    experiments = [OWNER.experiment, f"{OWNER.experiment}/seed 1?"]
    owners = [(study, experiment) for study in studies for experiment in experiments]
    for number, owner in enumerate(owners):
        assert files.store(*owner).newest() is None
        files.store(*owner).save(numbered(number))
    assert [version_of(files.store(*owner).newest()) for owner in owners] == [0, 1, 2, 3]
    assert len(files.names()) == 4
    assert files.warnings == []


def test_a_copy_of_another_experiments_checkpoint_is_skipped(files: Files) -> None:
    files.store().save(numbered(1))
    files.store(study="study-2").save(numbered(2))
    files.write(of(5), files.read(of(1, study="study-2")))
    assert version_of(files.store().newest()) == 1
    (warning,) = files.warnings
    assert warning.endswith(
        f"{of(5)} is skipped: of study study-2, experiment sync-4w; expected study-1, sync-4w"
    )


def test_other_files_are_none_of_its_business(files: Files) -> None:
    files.store().save(numbered(1))
    others = ["notes.txt", "00000009.safetensors.copy", "9.safetensors", "model.safetensors"]
    for name in others:
        files.write(f"{OWNER.study}/{OWNER.experiment}/{name}", b"?")
    assert version_of(files.store().newest()) == 1
    for number in range(2, 5):
        files.store().save(numbered(number))
    assert {name.rpartition("/")[2] for name in files.names()} > set(others)
    assert files.warnings == []


def test_a_damaged_checkpoint_leaves_the_one_before(files: Files) -> None:
    for number in (1, 2):
        files.store().save(numbered(number))
    files.write(of(2), files.read(of(2))[:-1])
    assert version_of(files.store().newest()) == 1
    (warning,) = files.warnings
    where = f"{files.location.rstrip('/')}/{of(2)}"
    assert warning.startswith(f"checkpoint {where} is skipped: cut off or changed: the checksum of its ")


def test_damaged_checkpoints_do_not_push_out_a_whole_one(files: Files) -> None:
    files.store().save(numbered(1))
    whole = files.read(of(1))
    for number in (2, 3):
        files.write(of(number), b"torn")
    # When the server restarts from the whole one, and writes the next
    store = files.store()
    assert version_of(store.newest()) == 1
    assert store.save(numbered(4)) == 4
    # Then that one may be damaged as well
    files.write(of(4), whole[:-1])
    assert version_of(files.store().newest()) == 1
    # And with two whole ones the damaged are gone
    store.newest()
    store.save(numbered(5))
    store.save(numbered(6))
    assert files.names() == [of(5), of(6)]


def test_where_all_are_damaged_there_is_none_and_each_is_named(files: Files) -> None:
    for number in (1, 2):
        files.store().save(numbered(number))
        files.write(of(number), b"")
    assert files.store().newest() is None
    assert [of(2) in files.warnings[0], of(1) in files.warnings[1]] == [True, True]


def test_what_a_killed_writer_left_is_ignored_and_goes_with_the_next_save(folder: Files) -> None:
    folder.store().save(numbered(1))
    left = f"{of(2)}.0123abcd.unfinished"
    folder.write(left, folder.read(of(1))[:100])
    assert version_of(folder.store().newest()) == 1
    assert left in folder.names()
    assert folder.store().save(numbered(2)) == 2
    assert folder.names() == [of(1), of(2)]
    assert folder.warnings == []


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 10 kB: like a full disk, a write fails in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_loses_nothing(folder: Files) -> None:
    for number in (1, 2):
        folder.store().save(numbered(number))
    with full_disk(), pytest.raises(CheckpointFailed) as caught:
        folder.store().save(numbered(3, elements=100_000))
    assert str(caught.value) == (
        f"checkpoint {folder.location}/{of(3)} cannot be written: File too large;"
        " expected a folder with room that the server may write"
    )
    assert folder.names() == [of(1), of(2)]
    assert version_of(folder.store().newest()) == 2


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write anywhere, where the tests have it."""
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that anyone can read, and the working directory: those above it are for its owner alone."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def test_a_folder_that_must_not_be_written_is_named_and_loses_nothing(shared: Path) -> None:
    files = Files(str(shared))
    files.store().save(numbered(1))
    (shared / of(1)).parent.chmod(0o555)
    with (
        nobody(),
        pytest.raises(CheckpointFailed, match=rf"^checkpoint runs/{of(2)} cannot be written: Permission"),
    ):
        files.store().save(numbered(2))
    assert files.names() == [of(1)]
    assert version_of(files.store().newest()) == 1


def test_a_newest_that_must_not_be_read_is_an_error_not_a_step_back(shared: Path) -> None:
    files = Files(str(shared))
    for number in (1, 2):
        files.store().save(numbered(number))
    (shared / of(2)).chmod(0)
    with (
        nobody(),
        pytest.raises(CheckpointFailed, match=rf"^checkpoint runs/{of(2)} cannot be read: Permission"),
    ):
        files.store().newest()


def test_a_location_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    store = Files(str(tmp_path / "runs")).store()
    for call in (store.newest, lambda: store.save(numbered(1))):
        with pytest.raises(CheckpointFailed) as caught:
            call()
        assert str(caught.value) == (
            f"checkpoints in {tmp_path}/runs/{OWNER.study}/{OWNER.experiment} cannot be listed: Not a directory;"
            " expected a folder with room that the server may write"
        )


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("location", ["s3://nowhere/runs", "s3://nowhere", "s3://"])
def test_a_bucket_that_is_not_there_is_named(location: str) -> None:
    store = Files(location).store()
    for call in (store.newest, lambda: store.save(numbered(1))):
        with pytest.raises(CheckpointFailed) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(
            f"checkpoints in {location}/{OWNER.study}/{OWNER.experiment}/ cannot be listed: "
        )
        assert (
            "; expected a bucket where the server's task role allows s3:ListBucket, s3:GetObject, " in message
        )
        assert "\n" not in message


def test_one_that_cannot_be_deleted_is_told_and_the_new_one_is_there(folder: Files, tmp_path: Path) -> None:
    # Given a folder where the oldest should be: unlink refuses it
    (tmp_path / "runs" / of(1)).mkdir(parents=True)
    for number in (2, 3):
        assert folder.store().save(numbered(number)) == number
    (warning,) = folder.warnings
    assert warning.startswith(
        f"checkpoint {tmp_path}/runs/{of(1)} cannot be deleted: Is a directory; expected"
    )
    assert version_of(folder.store().newest()) == 3


KILLED = """
import os, random, signal, sys, time
import torch
from runtime.checkpoint import Checkpoint
from runtime.checkpoint_store import store_for

torch.set_num_threads(1)  # a fork keeps no thread
warnings, chance = [], random.Random(0)
store = store_for(sys.argv[1], "study", "experiment", warnings.append)

def newest():
    checkpoint = store.newest()
    if checkpoint is None:
        return 0
    version = checkpoint.facts["version"]
    assert (checkpoint.tensors["parameters"] == version).all(), "not all of one checkpoint"
    return version

version, took = 0, 0.0
for _ in range(30):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        while True:
            version += 1
            store.save(Checkpoint({"parameters": torch.full((2_000_000,), float(version))}, {"version": version}))
            os.write(write, b".")
    os.close(write)
    # One saved, or none; and then any part of the time that one took at first, on whichever machine.
    began = time.monotonic()
    saved = version + sum(len(os.read(read, 1)) for _ in range(chance.randrange(2) or not version))
    took = took or time.monotonic() - began
    time.sleep(chance.uniform(0, 2 * took))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
    saved += len(os.read(read, 65536))
    version = newest()
    # The one under way may have got its name, and not been told of.
    assert version in (saved, saved + 1), f"{saved} saved, {version} found"
print(version, warnings)
"""


def test_a_writer_killed_at_any_moment_leaves_what_it_had_saved(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    version, _, warnings = done.stdout.strip().partition(" ")
    assert int(version) > 0
    assert warnings == "[]"


# The thread that writes them.


class Run:
    """A writer, the state that it saves, and what it says."""

    def __init__(self, store: CheckpointStore, *, interval_seconds: float = 3600.0) -> None:
        self.version = 0
        self.taken: SimpleQueue[int] = SimpleQueue()
        self.warnings: SimpleQueue[str] = SimpleQueue()
        self.given_up: SimpleQueue[TrainingFailed] = SimpleQueue()
        self.writer = CheckpointWriter(
            store, self.take, interval_seconds, warn=self.warnings.put, give_up=self.given_up.put
        )
        self.writer.start()

    def take(self) -> Checkpoint:
        self.version += 1
        self.taken.put(self.version)
        return numbered(self.version)


class HeldRun(Run):
    """One whose checkpoints are not there until it may go on."""

    def __init__(self, store: CheckpointStore, *, interval_seconds: float = 3600.0) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        super().__init__(store, interval_seconds=interval_seconds)

    def take(self) -> Checkpoint:
        checkpoint = super().take()
        self.threads.add(threading.get_ident())
        self.began.set()
        assert self.go_on.wait(30)
        return checkpoint


def test_the_first_is_written_at_once_and_the_last_at_the_end(files: Files) -> None:
    run = Run(files.store())
    run.taken.get(timeout=30)
    run.writer.stop(final=True)
    assert version_of(files.store().newest()) == run.writer.written == 2
    assert run.writer.seconds > 0
    assert run.warnings.empty()
    assert run.given_up.empty()


def test_one_is_written_every_interval_until_it_is_stopped(folder: Files) -> None:
    run = Run(folder.store(), interval_seconds=0.001)
    for expected in range(1, 6):
        assert run.taken.get(timeout=30) == expected
    run.writer.stop(final=False)
    assert version_of(folder.store().newest()) == run.writer.written == run.version
    assert len(folder.names()) == 2


def test_what_was_so_when_it_was_asked_for_is_in_a_checkpoint(folder: Files) -> None:
    run = Run(folder.store())
    run.taken.get(timeout=30)
    before = run.version
    run.writer.write_now()
    assert version_of(folder.store().newest()) > before
    run.writer.stop(final=False)
    assert run.warnings.empty()


@pytest.mark.parametrize("failed_before", [False, True])
def test_who_asks_for_a_checkpoint_waits_until_one_is_written_not_only_tried(
    failed_before: bool, folder: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.checkpoint_writer.RETRY_SECONDS", 0.01)
    run = Run(folder.store())
    run.writer.write_now()
    # Given a place that takes none for a while
    (tmp_path / "runs").rename(tmp_path / "gone")
    (tmp_path / "runs").touch()
    if failed_before:
        run.writer.write_now(patience_seconds=0.05)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(run.writer.write_now, 30)
        while "cannot be" not in run.warnings.get(timeout=30):
            pass
        assert not asked.done()
        (tmp_path / "runs").unlink()
        asked.result(30)
    assert version_of(folder.store().newest()) == run.version
    run.writer.stop(final=False)


def test_nobody_waits_for_a_checkpoint_that_will_not_come(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    run = Run(Files(str(tmp_path / "runs")).store())
    run.given_up.get(timeout=30)
    run.writer.write_now(patience_seconds=30)
    assert run.warnings.empty()


def test_who_asks_for_a_checkpoint_that_takes_too_long_goes_on_and_that_is_told(folder: Files) -> None:
    run = HeldRun(folder.store())
    assert run.began.wait(30)
    run.writer.write_now(patience_seconds=0.01)
    assert run.warnings.get(timeout=30) == "a checkpoint is not yet written after 0 s: training goes on"
    run.go_on.set()
    run.writer.stop(final=False)


def test_one_that_takes_longer_than_the_interval_delays_the_next(folder: Files) -> None:
    run = HeldRun(folder.store(), interval_seconds=0.001)
    assert run.began.wait(30)
    assert not run.go_on.wait(0.05)
    assert run.version == 1
    run.go_on.set()
    run.writer.stop(final=True)
    assert run.writer.written == run.version
    assert len(run.threads) == 1
    assert run.warnings.empty()
    assert run.given_up.empty()


def test_a_last_checkpoint_that_was_asked_for_is_written_though_training_ends_meanwhile(
    folder: Files,
) -> None:
    # Given a process that is told to stop while it writes one
    run = HeldRun(folder.store())
    assert run.began.wait(30)
    stops = threading.Thread(target=run.writer.stop, kwargs={"final": True})
    stops.start()
    while not run.writer._final:
        assert stops.is_alive()
    # When training ends then
    ends = threading.Thread(target=run.writer.stop, kwargs={"final": False})
    ends.start()
    run.go_on.set()
    stops.join(60)
    ends.join(60)
    assert (run.writer.written, version_of(folder.store().newest())) == (2, 2)
    assert run.warnings.empty()
    assert run.given_up.empty()


def test_a_place_that_takes_no_checkpoint_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    run = Run(Files(str(tmp_path / "runs")).store(), interval_seconds=0.001)
    error = run.given_up.get(timeout=30)
    run.writer.stop(final=True)
    assert f"checkpoints in {tmp_path}/runs/" in str(error)
    assert (run.version, run.writer.written) == (1, 0)
    assert run.warnings.empty()
    assert run.given_up.empty()


def test_a_failure_after_one_was_written_is_told_and_the_next_attempt_may_succeed(
    folder: Files, tmp_path: Path
) -> None:
    class Interrupted(Run):
        def take(self) -> Checkpoint:
            if self.version == 1:
                (tmp_path / "runs").rename(tmp_path / "gone")
                (tmp_path / "runs").touch()
            if self.version == 3:
                (tmp_path / "runs").unlink()
            return super().take()

    run = Interrupted(folder.store(), interval_seconds=0.001)
    for _ in range(5):
        run.taken.get(timeout=30)
    run.writer.stop(final=True)
    for _ in range(2):
        assert f"checkpoints in {tmp_path}/runs/" in run.warnings.get(timeout=30)
    assert run.warnings.empty()
    assert version_of(folder.store().newest()) == run.version == run.writer.written + 2
    assert run.given_up.empty()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TrainingFailed("the state is gone"), "the state is gone"),
        (RuntimeError("oops"), "no checkpoint could be taken: RuntimeError: oops"),
    ],
)
def test_a_state_that_cannot_be_taken_ends_the_training(folder: Files, error: Exception, says: str) -> None:
    def take() -> Checkpoint:
        raise error

    given_up: SimpleQueue[TrainingFailed] = SimpleQueue()
    ignored: Callable[[str], None] = SimpleQueue[str]().put
    CheckpointWriter(folder.store(), take, 0.001, warn=ignored, give_up=given_up.put).start()
    assert str(given_up.get(timeout=30)) == says


def test_the_end_does_not_wait_for_ever(folder: Files) -> None:
    began, go_on = threading.Event(), threading.Event()

    def take() -> Checkpoint:
        began.set()
        go_on.wait(30)
        return numbered(1)

    warnings: SimpleQueue[str] = SimpleQueue()
    writer = CheckpointWriter(
        folder.store(), take, 3600.0, warn=warnings.put, give_up=lambda error: pytest.fail(str(error))
    )
    writer.start()
    assert began.wait(30)
    writer.stop(final=False, patience_seconds=0.01)
    assert warnings.get(timeout=30) == "a checkpoint is not yet written 0 s after training ended"
    go_on.set()
    writer.stop(final=False)
    assert version_of(folder.store().newest()) == 1
