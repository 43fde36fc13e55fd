"""How gradients travel: transports, compression, an injected network, and connections that break on the way."""

import os
import random
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from proxies import HOST, Proxy
from training_processes import Experiment, experiment, free_ports, served

from contract.catalogue import Dataset, ModelName, images_of
from contract.errors import PeerLost, TrainingFailed
from contract.metrics import ServerSummary, WorkerEpoch, WorkerSummary
from contract.task import TaskEnvironment
from runtime.blocks import blocks_of
from runtime.connection import Connection
from runtime.data_connection import Wire, wires_for
from runtime.model import build_model
from runtime.parameters import FlatModel
from runtime.trust import Trust
from runtime.wire.parameter_server_pb2 import Sender
from tests.unit.torchvision_files import write_idx

PATIENCE = 180.0
NOTICED_WITHIN = 60.0
"""Of what takes 16 s and a few; the kernel itself would go on for minutes."""
DIGITS = 38_282
"""Parameters of the model for the digits."""
TESTED = 360
"""Test images of the digits."""


def finish(running: Experiment) -> ServerSummary:
    codes = running.exit_codes(PATIENCE)
    assert codes == [0] * len(running.tasks), [task.errors for task in running.tasks]
    return running.server.records(ServerSummary)[0]


def summaries(running: Experiment) -> list[WorkerSummary]:
    return [worker.records(WorkerSummary)[0] for worker in running.workers]


def accuracy(running: Experiment) -> float:
    """Of the final parameters, or in sync mode of those that all workers tested last, which are the same."""
    final = [s.final_test_correct for s in summaries(running) if s.final_test_correct is not None]
    last = [worker.records(WorkerEpoch)[-1].test_correct for worker in running.workers]
    return (final[0] if final else sum(last)) / TESTED


def connected(running: Experiment, rank: int = 0) -> Connection:
    """A worker's connection, from this process."""
    return Connection(
        running.address,
        Sender(study="study", experiment=running.name, rank=rank),
        trust=Trust(),
        timeout_seconds=PATIENCE,
        abandon=lambda error: pytest.fail(str(error)),
    )


@pytest.fixture(scope="module")
def several_blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of a model of several blocks, the last one shorter, and of few images."""
    folder = tmp_path_factory.mktemp("images")
    write_idx(folder / "MNIST" / "raw", train=list(range(10)) * 4)
    model = build_model(ModelName.MOBILENET_V2, images_of(Dataset.MNIST, ModelName.MOBILENET_V2), seed=0)
    blocks = blocks_of(FlatModel(model).length)
    assert len(blocks) > 2
    assert blocks[-1].stop - blocks[-1].start < blocks[0].stop
    return {
        "DATASET": "mnist",
        "DATA_DIRECTORY": folder,
        "MODEL": "mobilenet_v2",
        "BATCH_SIZE": 2,
        "EPOCHS": 1,
    }


@pytest.mark.parametrize("blocks", ["one", "several"])
def test_every_transport_gives_the_same_parameters(
    blocks: str, several_blocks: dict[str, object], tmp_path: Path
) -> None:
    settings = several_blocks if blocks == "several" else {"EPOCHS": 1}
    digests = set()
    for given, used in (("tcp", "tcp"), ("shared-memory", "shared-memory"), ("auto", "shared-memory")):
        with experiment(tmp_path / given, 2, TRANSPORT=given, **settings) as running:
            digests.add(finish(running).parameters_sha256)
            assert {summary.transport for summary in summaries(running)} == {used}
            if used == "shared-memory":
                # Nothing of the vectors went over the connections
                assert max(summary.sent_bytes for summary in summaries(running)) < 60 * 100
    assert len(digests) == 1


def test_memory_that_cannot_be_had_is_said_or_done_without() -> None:
    # Given a limit that memory to share is under as files are
    environment = {name: TaskEnvironment(transport=name) for name in ("shared-memory", "auto")}  # type: ignore[arg-type]  # both are
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, unlimited[1]))
    try:
        with pytest.raises(TrainingFailed, match=r"there is no room for shared memory: .*File too large"):
            wires_for(environment["shared-memory"], [DIGITS])
        assert wires_for(environment["auto"], [DIGITS])[0].vectors is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.parametrize("transport", ["shared-memory", "auto"])
def test_memory_that_the_server_cannot_reach_is_said_or_done_without(transport: str, tmp_path: Path) -> None:
    with served(tmp_path, 1, EPOCHS=1) as running, connected(running) as connection:
        environment = TaskEnvironment(transport=transport)  # type: ignore[arg-type]  # it is one
        [wire] = wires_for(environment, [DIGITS])
        assert wire.vectors is not None
        # Given a worker whose process has another number for its server, as in another container
        wire.vectors.offer.process = running.server.pid
        connection.ready(wire, steps=1)
        into = torch.empty(DIGITS)
        if transport == "auto":
            assert connection.pull(into).version == 0
            assert connection.transport == "tcp"
            assert into.norm() > 0
        else:
            with pytest.raises(TrainingFailed, match="the server cannot share memory: it runs on another"):
                connection.pull(into)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_compression_sends_less_and_learns_as_well(mode: str, tmp_path: Path) -> None:
    accuracies: dict[str, float] = {}
    per_push: dict[str, float] = {}
    for compression in ("none", "fp16", "bf16", "int8", "topk"):
        settings: dict[str, object] = {"COMPRESSION": compression, "TRANSPORT": "tcp", "EPOCHS": 4}
        if compression == "topk":
            settings["TOPK_RATIO"] = 0.05
        with experiment(tmp_path / compression, 2, SERVER_MODE=mode, **settings) as running:
            server = finish(running)
            accuracies[compression] = accuracy(running)
            [first, second] = summaries(running)
        assert first.steps == second.steps == 4 * 44
        per_push[compression] = (first.sent_bytes + second.sent_bytes) / (first.steps + second.steps)
        # Both sides counted the same; the server may speak before the last worker pulls the final parameters
        whole = 4 * DIGITS + 100
        received = first.received_bytes + second.received_bytes
        assert 0 <= first.sent_bytes + second.sent_bytes - server.received_bytes < 100
        assert 0 <= received - server.sent_bytes < whole
        # As much came back as went there, but for pulls, which are whole: each worker's first, and that last one
        pulls = 2 if mode == "sync" else 3
        assert abs((received - pulls * whole) / (first.steps + second.steps) - per_push[compression]) < 100
    # What each encoding takes, and a little for frames
    expected = {"none": 4 * DIGITS, "fp16": 2 * DIGITS, "bf16": 2 * DIGITS, "int8": DIGITS * (1 + 4 / 1024)}
    expected["topk"] = 8 * 0.05 * DIGITS
    for compression, payload in expected.items():
        assert payload * 0.99 < per_push[compression] < payload + 100, compression
    assert accuracies["none"] > 0.8
    assert min(accuracies.values()) > accuracies["none"] - 0.05, accuracies


def wire_with_residual(compression: str) -> Wire:
    """A wire whose codec has left something out of an earlier gradient."""
    [wire] = wires_for(TaskEnvironment(compression=compression), [DIGITS])  # type: ignore[arg-type]  # it is one
    wire.feedback.encode(slice(0, DIGITS), torch.randn(DIGITS, generator=torch.Generator().manual_seed(1)))
    assert wire.feedback.residual.any()
    return wire


def as_it_was(residual: torch.Tensor, before: torch.Tensor) -> bool:
    return torch.allclose(residual, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compression", ["int8", "topk"])
def test_what_a_dropped_gradient_carried_of_earlier_ones_is_sent_again(
    compression: str, tmp_path: Path
) -> None:
    settings = {"SERVER_MODE": "ksync", "AGGREGATION_K": 1, "COMPRESSION": compression}
    with served(tmp_path, 2, **settings) as running, ExitStack() as hung_up:
        wires = [wire_with_residual(compression) for _ in range(2)]
        ranks = [hung_up.enter_context(connected(running, rank)) for rank in range(2)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda rank: ranks[rank].ready(wires[rank], steps=2), range(2)))
        before, into = wires[1].feedback.residual.clone(), torch.zeros(DIGITS)
        for connection in ranks:
            connection.pull(into)
        assert not ranks[0].push_pull(torch.ones(DIGITS), 0, 0, into).dropped
        assert not as_it_was(wires[0].feedback.residual, before)
        # When a gradient comes too late to count
        assert ranks[1].push_pull(torch.ones(DIGITS), 0, 0, into).dropped
        # Then what it had been given of the one before it is not lost
        assert as_it_was(wires[1].feedback.residual, before)


def test_what_a_lost_server_was_sent_of_earlier_gradients_is_sent_again(tmp_path: Path) -> None:
    with served(
        tmp_path, 1, COMPRESSION="topk", CHECKPOINT_SECONDS=60, CHECKPOINT_LOCATION=tmp_path
    ) as running:
        wire = wire_with_residual("topk")
        with connected(running) as connection, ThreadPoolExecutor(1) as pool:
            connection.ready(wire, steps=1)
            before, into = wire.feedback.residual.clone(), torch.zeros(DIGITS)
            connection.pull(into)
            # When the server is gone before it has answered
            os.kill(running.server.pid, signal.SIGSTOP)
            pushed = pool.submit(connection.push_pull, torch.ones(DIGITS), 0, 0, into)
            while as_it_was(wire.feedback.residual, before):
                time.sleep(0.005)
            os.kill(running.server.pid, signal.SIGKILL)
            with pytest.raises(PeerLost, match="the server vanished"):
                pushed.result(PATIENCE)
        # Then the step that is pushed to the next one carries it anew
        assert as_it_was(wire.feedback.residual, before)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_injected_network_takes_its_time(mode: str, tmp_path: Path) -> None:
    steps, megabits, latency = 4, 16.0, 0.05
    settings = {"NETWORK_BANDWIDTH_MBIT_PER_SECOND": megabits, "NETWORK_LATENCY_MS": latency * 1000}
    with experiment(tmp_path, 2, SERVER_MODE=mode, BATCH_SIZE=170, EPOCHS=1, **settings) as running:
        finish(running)
        epochs = [worker.records(WorkerEpoch)[0] for worker in running.workers]
        ended = summaries(running)
    one_way = DIGITS * 4 * 8 / (megabits * 1e6) + latency
    for epoch, summary in zip(epochs, ended, strict=True):
        # In a step the gradient goes there and then the parameters come back
        assert epoch.steps == steps
        assert epoch.epoch_seconds >= steps * 2 * one_way * 0.99
        assert epoch.transfer_seconds >= steps * 2 * one_way * 0.99
        # The first pull sends next to nothing
        assert summary.injected_network_seconds >= (steps * 2 + 1) * one_way * 0.99
        assert summary.transport == "tcp"


def test_one_worker_may_have_a_slow_link(tmp_path: Path) -> None:
    settings = {"SERVER_MODE": "async", "BATCH_SIZE": 170, "EPOCHS": 1}
    settings["NETWORK_WORKERS"] = '[{"rank": 1, "bandwidth_mbit_per_second": 16}]'
    with experiment(tmp_path, 2, **settings) as running:
        finish(running)
        fast, slow = summaries(running)
    assert slow.injected_network_seconds >= (4 * 2 + 1) * DIGITS * 4 * 8 / 16e6 * 0.99
    assert fast.injected_network_seconds == 0
    # And in nothing else do they differ
    assert (fast.transport, slow.transport) == ("tcp", "tcp")


def cuts_for(most: int) -> list[int]:
    """After how many bytes the first connections break: at any point of HELLO, of a block, or of an answer."""
    chance = random.Random(most)
    return [chance.randrange(most) for _ in range(6)]


@pytest.mark.parametrize(
    ("most", "blocks", "settings"),
    [
        (2_000_000, "one", {"TRANSPORT": "tcp"}),
        (400, "one", {"TRANSPORT": "shared-memory"}),
        (300_000, "one", {"COMPRESSION": "int8"}),
        (40_000_000, "several", {"TRANSPORT": "tcp"}),
        (12_000_000, "several", {"COMPRESSION": "topk", "TOPK_RATIO": 0.1}),
    ],
)
def test_connections_that_break_change_nothing(
    most: int, blocks: str, settings: dict[str, object], several_blocks: dict[str, object], tmp_path: Path
) -> None:
    settings = settings | (several_blocks if blocks == "several" else {"EPOCHS": 1})
    with experiment(tmp_path / "calm", 2, EXPERIMENT_NAME="same", **settings) as running:
        undisturbed = finish(running)
    assert undisturbed.repeated_pushes == 0
    # Given connections that break, some time
    port = free_ports()
    settings |= {"EXPERIMENT_NAME": "same", "SERVER_PORT": port}
    with (
        served(tmp_path / "stormy", 2, **settings) as running,
        Proxy(port),
        Proxy(port + 1, cuts=cuts_for(most)) as data,
    ):
        running.start_workers(PARAMETER_SERVER_ADDRESS=f"{HOST}:{port}")
        server = finish(running)
        repeated = sum(summary.repeated_pushes for summary in summaries(running))
    # Then steps were pushed again, and the parameters are the same, bit for bit
    assert data.cut
    assert repeated
    assert server.parameters_sha256 == undisturbed.parameters_sha256
    assert server.global_steps_completed == undisturbed.global_steps_completed
    assert server.staleness_histogram == undisturbed.staleness_histogram


def test_data_connections_that_are_cut_off_without_a_word_are_made_anew(tmp_path: Path) -> None:
    settings: dict[str, object] = {"EPOCHS": 4, "EXPERIMENT_NAME": "same", "TRANSPORT": "tcp"}
    with experiment(tmp_path / "calm", 2, **settings) as running:
        undisturbed = finish(running)
    # Given steps that go on for some seconds
    port = free_ports()
    settings |= {"SERVER_PORT": port, "COMPUTE_MODE": "emulated", "COMPUTE_MEAN_MS": 20}
    with (
        served(tmp_path / "cut", 2, **settings) as running,
        Proxy(port),
        Proxy(port + 1) as data,
    ):
        running.start_workers(PARAMETER_SERVER_ADDRESS=f"{HOST}:{port}")
        for worker in running.workers:
            worker.wait_for('"kind":"worker_epoch"')
        # When nothing comes through any more on the data connections, while the server says that it lives
        accepted, began = data.accepted, time.monotonic()
        data.swallow()
        while data.accepted == accepted:
            assert time.monotonic() - began < NOTICED_WITHIN
            time.sleep(0.05)
        # Then training goes on, on new ones
        server = finish(running)
        assert sum(summary.repeated_pushes for summary in summaries(running)) > 0
    assert server.parameters_sha256 == undisturbed.parameters_sha256


def test_a_worker_that_sends_to_nobody_notices_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that does not fit into the socket's buffer: the kernel itself would go on for minutes."""
    monkeypatch.setattr("runtime.liveness.DATA_PROBE_SECONDS", 1)
    port = free_ports()
    with served(tmp_path, 1, SERVER_PORT=port) as running, Proxy(port), Proxy(port + 1) as data:
        running.address = f"{HOST}:{port}"
        with connected(running) as connection, ThreadPoolExecutor(1) as pool:
            connection.ready(wires_for(TaskEnvironment(transport="tcp"), [DIGITS])[0], steps=1)
            into = torch.empty(DIGITS)
            connection.pull(into)
            assert connection._data is not None
            connection._data._up._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            data.swallow()
            pushed = pool.submit(connection.push_pull, torch.ones(DIGITS), 0, 0, into)
            assert pushed.result(NOTICED_WITHIN).version == 1
            assert connection.traffic.repeated_pushes == 1


def test_a_way_that_stays_broken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a data port that nothing comes through, while the server says that it lives
    monkeypatch.setattr("runtime.connection.RECONNECT_SECONDS", 0.1)
    port = free_ports()
    with served(tmp_path, 1, SERVER_PORT=port) as running, Proxy(port), Proxy(port + 1, cuts=[0] * 100):
        running.address = f"{HOST}:{port}"
        with connected(running) as connection:
            connection.ready(wires_for(TaskEnvironment(), [DIGITS])[0], steps=1)
            with pytest.raises(PeerLost, match="the way to the server is broken: "):
                connection.pull(torch.empty(DIGITS))
