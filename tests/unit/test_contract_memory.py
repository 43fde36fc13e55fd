"""The least memory of a server: as many vectors as the runtime keeps, and one clear refusal where they do not fit."""

from functools import partial
from itertools import product
from typing import get_args

import pytest
import torch

from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName
from contract.errors import StudyRefused
from contract.exchange import Compression, Exchange
from contract.memory import server_memory_problem, vectors_of_server
from contract.study import parse_study
from contract.training import OptimizerName, Training
from runtime.compression import codec_for
from runtime.optimizer import optimizer_for
from runtime.policy import policy_for
from runtime.state import ServerState

LENGTH, WORKERS = 40, 4
AGGREGATION = Aggregation(backup_workers=1, staleness_bound=1, k=2, dc_lambda=0.5)
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)


@pytest.mark.parametrize(("mode", "compression", "name"), [*product(Mode, COMPRESSIONS, OPTIMIZERS)])
def test_it_counts_the_vectors_that_the_server_keeps(
    mode: Mode, compression: Compression, name: OptimizerName
) -> None:
    training = Training(optimizer=name, learning_rate=0.1)
    optimizer = partial(optimizer_for, name, learning_rate=0.1, momentum=training.momentum, weight_decay=0.0)
    state = ServerState(
        workers=WORKERS,
        parameters=torch.zeros(LENGTH),
        optimizer=optimizer,
        policy=policy_for(mode, WORKERS, AGGREGATION),
        codec=codec_for(compression, 0.1),
    )
    used = optimizer(torch.zeros(LENGTH))
    used.step(torch.ones(LENGTH), 1.0)
    kept = [state.aggregator.parameters, *used.state().values(), *state.copies.held.values()]
    storages = {vector.data_ptr() for vector in kept if vector.numel() == LENGTH}
    assert vectors_of_server(training, Exchange(compression=compression), mode, WORKERS) == len(storages)


def problem(memory_mib: int, *, compression: Compression = "int8", shards: int = 1) -> str:
    return server_memory_problem(
        Training(dataset=Dataset.SYNTHETIC, model=ModelName.RESNET34),
        Exchange(compression=compression),
        Mode.ASYNC,
        workers=32,
        shards=shards,
        memory_mib=memory_mib,
    )


def test_a_server_that_cannot_hold_what_it_keeps_is_told_how_much_that_is() -> None:
    # 34 vectors of 21.3 million parameters, 81.2 MiB each
    told = problem(2048)
    assert told.startswith("server.memory: 2,048 MiB are too few for resnet34 in mode async with 32 workers")
    assert "keeps 34 vectors" in told
    assert "at least 2,918 MiB" in told


@pytest.mark.parametrize(
    ("memory", "compression", "shards"), [(4096, "int8", 1), (2048, "none", 1), (2048, "int8", 2)]
)
def test_one_that_can_is_not(memory: int, compression: Compression, shards: int) -> None:
    assert problem(memory, compression=compression, shards=shards) == ""


def test_a_study_is_refused_for_it_once() -> None:
    training = {"dataset": "synthetic", "model": "resnet34"}
    document = {
        "matrix": {"mode": ["sync", "async"], "workers": [4, 32]},
        "training": training,
        "exchange": {"compression": "fp16"},
    }
    with pytest.raises(StudyRefused) as refused:
        parse_study(document)
    assert [p.split(" in mode ")[1].split(":")[0] for p in refused.value.problems] == [
        "async with 32 workers and exchange.compression fp16"
    ]
    parse_study({**document, "server": {"cpu": 1024, "memory": 4096}})


def test_a_model_that_does_not_fit_its_data_is_refused_for_that_alone() -> None:
    with pytest.raises(StudyRefused) as refused:
        parse_study({"training": {"dataset": "digits", "model": "resnet18"}})
    assert len(refused.value.problems) == 1
