"""The worker: join, train epoch after epoch, test, say how it went.

Runs as a task of its own, one per rank; knows nothing of how gradients are aggregated.
"""

import os
from functools import partial
from typing import NamedTuple

import torch

from contract.catalogue import catalogue_problems, images_of
from contract.errors import TrainingFailed
from contract.metrics import TaskStarted, WorkerEpoch, WorkerSummary
from contract.task import TaskEnvironment
from runtime.connection import Connection, withdraw
from runtime.dataset import load_dataset
from runtime.device import choose_device, describe
from runtime.emitter import Emitter
from runtime.last_words import abandon, reason_of
from runtime.model import build_model
from runtime.parameters import FlatModel
from runtime.process import host_facts
from runtime.sharding import Sharding, share_of_tests
from runtime.split import Data
from runtime.task_metadata import TaskMetadata
from runtime.training import Training, count_correct
from runtime.wire.parameter_server_pb2 import Sender


def run_worker(environment: TaskEnvironment, emitter: Emitter) -> None:
    """Train one rank's share of an experiment. Raises LockstepError if training did not finish."""
    sender = Sender(
        study=environment.study_id, experiment=environment.experiment_name, rank=environment.worker_rank
    )
    if not environment.parameter_server_address:
        raise TrainingFailed("PARAMETER_SERVER_ADDRESS is not set; expected the server's host:port")
    try:
        data, model, device, sharding = _prepare(environment)
    except Exception as error:
        # Whatever it is: nobody else would tell the server, which waits for all workers.
        withdraw(environment.parameter_server_address, sender, reason_of(error))
        raise
    rank = environment.worker_rank
    share = share_of_tests(len(data.test), environment.total_workers_expected, rank)
    emitter.emit(
        TaskStarted,
        **host_facts(),
        device=describe(device),
        task_arn=TaskMetadata(os.environ).task_arn,
        parameters=model.length,
        train_samples=len(sharding.shard(rank, epoch=1)),
        test_samples=len(share),
    )
    with Connection(
        environment.parameter_server_address,
        sender,
        parameters=model.length,
        steps=environment.epochs * sharding.steps_per_epoch,
        timeout_seconds=environment.experiment_timeout_seconds,
        abandon=partial(abandon, emitter),
    ) as connection:
        training = Training(environment, sharding, data.train, model, connection)
        for epoch in range(1, environment.epochs + 1):
            record = training.run_epoch(epoch)
            record |= training.test(data.test, share)
            emitter.emit(WorkerEpoch, **record)
        tests_final = training.finish()
    # The parameters are here: the server need not wait while they are tested.
    final = count_correct(model, data.test, torch.arange(len(data.test))) if tests_final else None
    emitter.emit(
        WorkerSummary,
        **training.totals(),
        sent_bytes=connection.sent_bytes,
        received_bytes=connection.received_bytes,
        final_test_correct=final,
        final_test_samples=len(data.test) if tests_final else None,
    )


class _Prepared(NamedTuple):
    """What a worker must have before it can join."""

    data: Data
    model: FlatModel
    device: torch.device
    sharding: Sharding


def _prepare(environment: TaskEnvironment) -> _Prepared:
    data = _load(environment)
    images, device = images_of(environment.dataset, environment.model), choose_device()
    model = FlatModel(build_model(environment.model, images, environment.seed).to(device))
    workers = environment.total_workers_expected
    sharding = Sharding(len(data.train), workers, environment.batch_size, environment.seed)
    return _Prepared(data, model, device, sharding)


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
