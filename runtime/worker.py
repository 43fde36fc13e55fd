"""The worker: join, train epoch after epoch, test, say how it went.

Runs as a task of its own, one per rank; knows nothing of how gradients are aggregated.
"""

import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from contract.catalogue import catalogue_problems, images_of
from contract.errors import LockstepError, TrainingFailed
from contract.metrics import TaskStarted, WorkerEpoch, WorkerSummary
from contract.task import TaskEnvironment
from runtime import liveness
from runtime.attendance import SERVER
from runtime.connection import Connection, Traffic
from runtime.data_connection import Wire, wires_for
from runtime.dataset import load_dataset
from runtime.device import choose_device, describe
from runtime.emitter import Emitter
from runtime.ending import NotLetIn, VanishedPeer
from runtime.last_words import LastWords, reason_of
from runtime.model import build_model
from runtime.parameters import FlatModel
from runtime.process import host_facts
from runtime.rendezvous import Announced, ServerLookup
from runtime.sharded_connection import ShardedConnection, shard_slices
from runtime.sharding import Sharding, share_of_tests
from runtime.split import Data
from runtime.task_metadata import TaskMetadata
from runtime.training import Training, count_correct
from runtime.wire.parameter_server_pb2 import Sender


def run_worker(environment: TaskEnvironment, emitter: Emitter, last_words: LastWords) -> None:
    """Train one rank's share of an experiment. Raises LockstepError if training did not finish."""
    lookup = ServerLookup(environment)
    worker: _Worker | None = None
    before, return_by = Traffic(), math.inf
    while True:
        try:
            patience = liveness.JOIN_RETRY_SECONDS if worker is None else liveness.LOOK_AGAIN_SECONDS
            with _join(environment, lookup.current(), last_words, patience) as connection:
                worker = worker or _prepare(environment, connection, emitter)
                return_by = math.inf
                try:
                    return _train(worker, connection, before, emitter, last_words)
                finally:
                    before += connection.traffic
        except (VanishedPeer, NotLetIn) as lost:
            if worker is None or not _another_may_come(environment, lost):
                raise
            return_by = min(return_by, time.monotonic() + liveness.RETURN_SECONDS)
            if time.monotonic() > return_by:
                raise
            emitter.note(f"waiting for another server: {lost}")
            time.sleep(liveness.RETURN_PAUSE_SECONDS)


def _another_may_come(environment: TaskEnvironment, lost: LockstepError) -> bool:
    """Whether a server that is gone may be started again: one with checkpoints that did not give up.

    Perhaps elsewhere, and it lets in others: until it has announced that, its workers are strangers to it.
    """
    if environment.checkpoint_seconds is None:
        return False
    return isinstance(lost, NotLetIn) or (
        isinstance(lost, VanishedPeer) and lost.peer == SERVER and not lost.told
    )


def _abandon(environment: TaskEnvironment, last_words: LastWords, lost: LockstepError) -> None:
    """End a process that computes for so long that it does not see that training ended; unless it may go on."""
    if not _another_may_come(environment, lost):
        last_words.abandon(lost)


@dataclass(frozen=True)
class _Worker:
    """What a worker has before it trains, and keeps over all its connections."""

    data: Data
    model: FlatModel
    wires: list[Wire]
    training: Training
    tests: Tensor
    """Indices of the test samples that this worker tests after each epoch."""


def _join(
    environment: TaskEnvironment, servers: Sequence[Announced], last_words: LastWords, patience_seconds: float
) -> ShardedConnection:
    sender = Sender(
        study=environment.study_id, experiment=environment.experiment_name, rank=environment.worker_rank
    )
    with ExitStack() as joined:
        # Where one of several refuses, the others must not take this worker for one of theirs.
        connections = [
            joined.enter_context(
                Connection(
                    server.address,
                    sender,
                    trust=server.trust,
                    timeout_seconds=environment.experiment_timeout_seconds,
                    abandon=partial(_abandon, environment, last_words),
                    join_seconds=patience_seconds,
                )
            )
            for server in servers
        ]
        joined.pop_all()
    return ShardedConnection(connections)


def _prepare(environment: TaskEnvironment, connection: ShardedConnection, emitter: Emitter) -> _Worker:
    """Load data and model. Whatever fails, the server is told: it waits for all workers."""
    rank, workers = environment.worker_rank, environment.total_workers_expected
    try:
        data = _load(environment)
        images, device = images_of(environment.dataset, environment.model), choose_device()
        model = FlatModel(build_model(environment.model, images, environment.seed).to(device))
        sharding = Sharding(len(data.train), workers, environment.batch_size, environment.seed)
        tests = share_of_tests(len(data.test), workers, rank)
        parts = shard_slices(model.length, environment.shards)
        wires = wires_for(environment, [part.stop - part.start for part in parts])
        vectors = wires[0].vectors if len(wires) == 1 else None
        training = Training(environment, sharding, data.train, model, vectors)
    except Exception as error:
        connection.withdraw(reason_of(error))
        raise
    emitter.emit(
        TaskStarted,
        **host_facts(),
        device=describe(device),
        task_arn=TaskMetadata(os.environ).task_arn,
        parameters=model.length,
        train_samples=len(sharding.shard(rank, epoch=1)),
        test_samples=len(tests),
    )
    return _Worker(data, model, wires, training, tests)


def _train(
    worker: _Worker, connection: ShardedConnection, before: Traffic, emitter: Emitter, last_words: LastWords
) -> None:
    """Train from where the server says to the end. `before`: what passed on connections before this one."""
    training = worker.training
    training.begin(connection, connection.ready(worker.wires, training.steps, training.next_step))
    for record in training.epochs():
        emitter.emit(WorkerEpoch, **record, **training.test(worker.data.test, worker.tests))
    tests_final = training.finish()
    transport, traffic = connection.transport, before + connection.traffic
    connection.leave()
    # The parameters are here: the server need not wait while they are tested.
    test = worker.data.test
    final = count_correct(worker.model, test, torch.arange(len(test))) if tests_final else None
    last_words.done(
        WorkerSummary,
        **training.totals(),
        transport=transport,
        **asdict(traffic),
        injected_network_seconds=worker.wires[0].up.delayed_seconds + worker.wires[0].down.delayed_seconds,
        final_test_correct=final,
        final_test_samples=len(test) if tests_final else None,
    )


def _load(environment: TaskEnvironment) -> Data:
    """The data set. Raises TrainingFailed if it is not there, or its model is none for it."""
    dataset, model = environment.dataset, environment.model
    problems = catalogue_problems(
        dataset, model, data=environment.data_directory, augment=environment.augment
    )
    if problems:
        variables = {"data": "DATA_DIRECTORY", "model": "MODEL", "augment": "AUGMENT"}
        raise TrainingFailed("; ".join(f"{variables[field]}: {says}" for field, says in problems.items()))
    return load_dataset(dataset, images_of(dataset, model), environment.data_directory)
