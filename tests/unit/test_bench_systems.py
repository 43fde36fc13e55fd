"""Every system with a server and workers that are processes: small, but real."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.case import Case, RoundFailed, Variant
from bench.processes import CONTEXT
from bench.registry import SYSTEMS
from bench.round import ProcessSystem, Update
from bench.systems.lockstep import CERTIFICATE, Lockstep
from bench.systems.ray_actor import samples_of
from contract.aggregation import Mode

TIMEOUT_SECONDS = 60.0
PROCESS_SYSTEMS = [name for name, system in SYSTEMS.items() if isinstance(system, ProcessSystem)]


def case(folder: Path, workers: int = 2, variant: Variant | None = None) -> Case:
    # More than one chunk of 1 MiB, and a rest.
    return Case(300_000, workers, variant or Variant(), warm_up=1, updates=3, folder=folder)


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, SYSTEMS[name].variants[-1]) for name in PROCESS_SYSTEMS]
    + [("raw-tcp", Variant(option=option)) for option in ("in turn", "duplex")],
)
def test_a_round_applies_every_gradient_and_is_measured(name: str, variant: Variant, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    sample = system.run_round(case(tmp_path, variant=variant), TIMEOUT_SECONDS)
    assert sample.updates == 6
    assert 0 < sample.seconds < TIMEOUT_SECONDS
    if system.has_server:
        assert sample.server_cpu_seconds is not None
        assert 0 < sample.server_cpu_seconds < TIMEOUT_SECONDS
        assert sample.server_peak_bytes is not None
        assert sample.server_peak_bytes >= 300_000 * 4
    if system.transport.startswith("tcp"):
        # Two ranks that reduce send each other their own half and the other's sum.
        per_update = 8 if system.has_server else 4
        assert sample.loopback_bytes >= 6 * 300_000 * per_update


def test_one_worker_reduces_with_a_second_rank(tmp_path: Path) -> None:
    sample = SYSTEMS["gloo-all-reduce"].run_round(case(tmp_path, workers=1), TIMEOUT_SECONDS)
    assert sample.updates == 3


@pytest.fixture(scope="module")
def _warm() -> None:
    """The parent of processes has imported torch: that alone may take longer than a round that is cut short."""
    first = CONTEXT.Process(target=abs, args=(0,))
    first.start()
    first.join()


class Faulty(ProcessSystem):
    """A system that goes wrong as it is told."""

    name = transport = "faulty"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    @contextmanager
    def serve(self, case: Case) -> Iterator[str]:
        (case.folder / f"pid.{os.getpid()}").touch()
        if self.fault == "server":
            raise OSError("no such interface")
        yield ""

    @contextmanager
    def connect(self, case: Case, rank: int, address: str) -> Iterator[Update]:
        del rank, address
        (case.folder / f"pid.{os.getpid()}").touch()
        if self.fault == "worker":
            raise ConnectionError("refused")
        if self.fault == "hang":
            time.sleep(60)
        yield lambda: torch.zeros(case.parameters)


@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("server", "server ended: .*no such interface"),
        ("worker", "worker. ended: .*refused"),
        ("hang", "worker0 did not answer within 8 s"),
        ("lazy", "wrong parameters: 0.0 after all updates; expected -0.0078125"),
    ],
)
def test_a_round_that_goes_wrong_says_why_and_leaves_nothing(fault: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RoundFailed, match=says):
        Faulty(fault).run_round(case(tmp_path), 8.0 if fault == "hang" else TIMEOUT_SECONDS)
    started = [int(path.suffix[1:]) for path in tmp_path.glob("pid.*")]
    assert started
    assert not _of_session(os.getsid(0)) & set(started)


def test_over_tls_workers_need_the_certificate_that_the_server_made(tmp_path: Path) -> None:
    SYSTEMS["lockstep-tls"].run_round(case(tmp_path), TIMEOUT_SECONDS)
    assert "BEGIN CERTIFICATE" in (tmp_path / CERTIFICATE).read_text()


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC])
def test_what_travels_in_16_bits_arrives_but_for_the_last_rounding(mode: Mode, tmp_path: Path) -> None:
    system = Lockstep("tcp", mode=mode, momentum=0.75, compression="fp16")
    assert system.run_round(case(tmp_path), TIMEOUT_SECONDS).updates == 6


def test_rays_answer_is_a_sample_a_lap_unless_its_parameters_are_wrong(tmp_path: Path) -> None:
    said = {
        "seconds": 2.0,
        "loopback_bytes": 5,
        "server_cpu_seconds": 0.5,
        "server_peak_bytes": 7,
    }
    laps = [said | {"parameter": -8 / 1024}, said | {"parameter": -14 / 1024, "seconds": 4.0}]
    first, second = samples_of("a warning\n" + json.dumps(laps), case(tmp_path))
    assert dataclasses.astuple(first) == (6, 2.0, 5, 0.5, 7)
    assert dataclasses.astuple(second) == (6, 4.0, 5, 0.5, 7)
    laps[1]["parameter"] = -13 / 1024
    with pytest.raises(RoundFailed, match=r"wrong parameters: -0\.0126.*expected -0\.0136"):
        samples_of(json.dumps(laps), case(tmp_path))


def test_the_command_measures_what_it_is_asked_and_writes_rows(tmp_path: Path) -> None:
    arguments = "--quick --only lockstep-tcp,raw-tcp --sizes 62k --workers 1 --seconds 0.05 --output"
    assert main([*arguments.split(), str(tmp_path)]) == 0
    found = json.loads((tmp_path / "push_pull.json").read_text())
    assert [row["system"] for row in found["rows"]] == ["raw TCP round trip", "Lockstep"]
    assert all(row["rounds"] == 3 for row in found["rows"])
    assert found["rows"][1]["ratio_to_raw_tcp"] < 1
    assert found["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    "arguments", ["--only gossip", "--sizes 1G", "--workers 0", "--workloads gpt", "everything"]
)
def test_wrong_usage_is_refused_before_anything_starts(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert arguments.rsplit(maxsplit=1)[-1] in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_stopped_no_process_is_left(signum: signal.Signals, tmp_path: Path) -> None:
    command = "-m bench --only raw-tcp --sizes 62k --workers 4 --rounds 3 --seconds 60 --output"
    bench = subprocess.Popen(
        [sys.executable, *command.split(), str(tmp_path / "results")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # Where nobody is left to delete a round's folder, pytest does.
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        _wait_for(lambda: len(_of_session(bench.pid)) >= 5, "server and workers")
        os.kill(bench.pid, signum)
        code = bench.wait(60)
        assert code == (-signum if signum == signal.SIGKILL else 130)
        _wait_for(lambda: not _of_session(bench.pid), "the end of all processes")
        assert not (tmp_path / "results").exists()
    finally:
        for pid in _of_session(bench.pid):
            os.kill(pid, signal.SIGKILL)
        bench.wait()


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


def _of_session(session: int) -> set[int]:
    """Living processes of a session."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.add(int(stat.parent.name))
    return found
