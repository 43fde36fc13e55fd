"""Exact replay: a run of threads, whose order nobody planned, is repeated by one thread to the last bit."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName, images_of
from runtime.aggregation import Aggregator
from runtime.blocks import blocks_of
from runtime.dataset import load_dataset
from runtime.model import build_model
from runtime.optimizer import MomentumSGD
from runtime.parameters import FlatModel
from runtime.policy import Policy, Push, Verdict, policy_for
from runtime.sharding import Sharding
from runtime.split import Data
from runtime.state import ServerState
from runtime.update import Update
from tests.unit.local_worker import LocalWorker, blocks_of_length, enter

WORKERS, STEPS, SEED, PATIENCE, RATE = 4, 8, 5, 60.0, 0.02
DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)
TOLD = Aggregation(staleness_bound=2, dc_lambda=0.5)


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    """39, of which the last is shorter."""
    with blocks_of_length(1000):
        yield


Key = tuple[int, int]
"""A gradient: rank, step."""

Changes = list[tuple[Key, Tensor]]
"""Of a block, in their order: whose gradient, and what was made of it."""


@dataclass
class Record:
    """What a run did, as it did it."""

    arrivals: list[Push] = field(default_factory=list)
    """In the order in which the server decided on them."""
    given: dict[Key, Tensor] = field(default_factory=dict)
    """(rank, step) → the parameters that the worker computed on: it got each block when that was ready."""


class Recorded:
    """A policy that notes what arrives."""

    def __init__(self, policy: Policy, record: Record) -> None:
        self._policy, self._record = policy, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def push(self, push: Push, version: int) -> Verdict:
        self._record.arrivals.append(push)
        return self._policy.push(push, version)


class Noting:
    """Notes what changes each block, under that block's lock: gradients are applied by the thread that adds them."""

    def __init__(self) -> None:
        self.changes: list[Changes] = []
        self._adding = threading.local()
        self._add = Aggregator.add

    def add(
        self, aggregator: Aggregator, update: Update, rank: int, step: int, *block: Any, **how: Any
    ) -> bool:
        self._adding.key = rank, step
        return self._add(aggregator, update, rank, step, *block, **how)

    def optimizer(self, parameters: Tensor) -> MomentumSGD:
        seen: Changes = []
        self.changes.append(seen)
        adding = self._adding

        class Optimizer(MomentumSGD):
            def step(self, gradient: Tensor, factor: float = 1.0) -> None:
                seen.append((adding.key, gradient.clone()))
                super().step(gradient, factor)

        return Optimizer(parameters, learning_rate=RATE, momentum=0.9)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_dataset(Dataset.DIGITS, DIGITS, "")


def initial_model() -> FlatModel:
    return FlatModel(build_model(ModelName.DIGITS_CNN, DIGITS, SEED))


def gradient_of(model: FlatModel, data: Data, rank: int, step: int) -> Tensor:
    torch.set_num_threads(1)
    sharding = Sharding(len(data.train), WORKERS, batch_size=16, seed=SEED)
    images, labels = data.train.batch(sharding.batches(rank, epoch=1)[step])
    model.gradient.zero_()
    torch.nn.functional.cross_entropy(model.module(images), labels).backward()
    return model.gradient


def train_in_threads(mode: Mode, data: Data) -> tuple[Tensor, Record, list[Changes]]:
    """The parameters that came out, what was done, and what each block was changed by, in its order."""
    server, record, noting = initial_model().parameters, Record(), Noting()
    policy: Any = Recorded(policy_for(mode, WORKERS, TOLD), record)
    state = ServerState(workers=WORKERS, parameters=server, optimizer=noting.optimizer, policy=policy)
    for rank in range(WORKERS):
        enter(state, rank, STEPS)
    models = [initial_model() for _ in range(WORKERS)]

    def work(rank: int) -> None:
        model, worker = models[rank], LocalWorker(state, rank)
        for step in range(STEPS):
            record.given[rank, step] = worker.parameters.clone()
            model.parameters.copy_(worker.parameters)
            worker.push_pull(gradient_of(model, data, rank, step))

    def add(aggregator: Aggregator, *gradient: Any, **how: Any) -> bool:
        return noting.add(aggregator, *gradient, **how)

    with patch.object(Aggregator, "add", add), ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(work, rank) for rank in range(WORKERS)]:
            future.result(PATIENCE)
    return server, record, noting.changes


def replayed(mode: Mode, record: Record, applied: list[Changes], data: Data) -> Tensor:
    """Serially, without the server: torch's own SGD, block by block, in the order that each block saw.

    The gradients are computed anew on what each worker was given, which must be what the replay had then; the order
    must be one that the recorded arrivals allow.
    """
    reference, model = initial_model().parameters, initial_model()
    versions = {(push.rank, push.step): version for version, push in enumerate(record.arrivals)}
    gradients = {}
    for push in record.arrivals:
        then = record.given[push.rank, push.step]
        model.parameters.copy_(then)
        gradients[push.rank, push.step] = gradient_of(model, data, push.rank, push.step).clone()
    staleness = {(p.rank, p.step): versions[p.rank, p.step] - p.version for p in record.arrivals}
    for block, seen in zip(blocks_of(len(reference)), applied, strict=True):
        part = reference[block].clone().requires_grad_()
        optimizer = torch.optim.SGD([part], lr=RATE, momentum=0.9)
        history, order = [part.detach().clone()], [key for key, _ in seen]
        assert sorted(order) == sorted(gradients), "each gradient reached each block once"
        for key, change in seen:
            then = record.given[key][block]
            part.grad = made_of(mode, gradients[key][block], history[-1], then, staleness[key])
            assert torch.equal(part.grad, change), "a block was changed by what no worker sent"
            optimizer.step()
            history.append(part.detach().clone())
        check_order(record, order)
        check_given(mode, record, block, history, order)
        reference[block] = part.detach()
    return reference


def check_order(record: Record, order: list[Key]) -> None:
    """Gradients that were under way together may reach a block in any order; no others."""
    arrived = {(push.rank, push.step): place for place, push in enumerate(record.arrivals)}
    reached = {key: place for place, key in enumerate(order)}
    for rank, step in order:
        # Its worker had pushed the next step, and so had its answer, before these came
        ended = arrived.get((rank, step + 1), len(arrived))
        later = [key for key, place in arrived.items() if place >= ended]
        assert all(reached[rank, step] < reached[key] for key in later), "a gradient came before its time"


def check_given(mode: Mode, record: Record, block: slice, history: list[Tensor], order: list[Key]) -> None:
    """Each worker computed on what the block was, some time since it had the worker's own last gradient.

    In ssp it had everybody's but for the last ones that the bound allows for, too.
    """
    bound = TOLD.staleness_bound or 0
    for applied, (rank, step) in enumerate(order):
        seen = [(rank, step - 1)] if step else []
        if mode is Mode.SSP:
            seen += [(other, early) for other in range(WORKERS) for early in range(step - bound)]
        since = max((order.index(key) + 1 for key in seen), default=0)
        given = record.given[rank, step][block]
        assert any(torch.equal(given, was) for was in history[since : applied + 1]), (
            "a worker was given what the block was not"
        )


def made_of(mode: Mode, gradient: Tensor, now: Tensor, then: Tensor, staleness: int) -> Tensor:
    """What a mode makes of a gradient that was computed on the parameters `then` and meets those of `now`."""
    match mode:
        case Mode.STALENESS_AWARE:
            return gradient * (1 / max(staleness, 1))
        case Mode.DC_ASGD:
            return torch.add(gradient, gradient.square() * (now - then), alpha=0.5)
        case _:
            return gradient.clone()


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.SSP, Mode.STALENESS_AWARE, Mode.DC_ASGD])
def test_the_recorded_order_gives_the_same_parameters_bit_for_bit(mode: Mode, data: Data) -> None:
    threads = torch.get_num_threads()
    try:
        trained, record, applied = train_in_threads(mode, data)
        again = replayed(mode, record, applied, data)
    finally:
        torch.set_num_threads(threads)
    assert len(record.arrivals) == WORKERS * STEPS
    assert all(len(seen) == WORKERS * STEPS for seen in applied)
    assert torch.equal(again, trained)
    assert not torch.allclose(again, initial_model().parameters, atol=1e-2), "it went somewhere"


def test_a_replay_with_one_gradient_missing_or_out_of_place_is_noticed(data: Data) -> None:
    threads = torch.get_num_threads()
    try:
        trained, record, applied = train_in_threads(Mode.ASYNC, data)
        applied[1][3], applied[1][4] = applied[1][4], applied[1][3]
        with pytest.raises(AssertionError):
            assert torch.equal(replayed(Mode.ASYNC, record, applied, data), trained)
        applied[1][3], applied[1][4] = applied[1][4], applied[1][3]
        assert torch.equal(replayed(Mode.ASYNC, record, applied, data), trained)
        key, change = applied[2][5]
        applied[2][5] = key, change * 2
        with pytest.raises(AssertionError, match="what no worker sent"):
            replayed(Mode.ASYNC, record, applied, data)
        applied[2][5] = applied[2][6]
        with pytest.raises(AssertionError, match="reached each block once"):
            replayed(Mode.ASYNC, record, applied, data)
    finally:
        torch.set_num_threads(threads)


def test_a_server_that_hands_out_what_it_had_long_before_is_noticed(data: Data) -> None:
    first = initial_model().parameters

    def read(self: Aggregator, index: int, out: Tensor) -> None:
        out.copy_(first[self.blocks[index]])

    threads = torch.get_num_threads()
    try:
        with patch.object(Aggregator, "read", read):
            _, record, applied = train_in_threads(Mode.ASYNC, data)
        with pytest.raises(AssertionError, match="given what the block was not"):
            replayed(Mode.ASYNC, record, applied, data)
    finally:
        torch.set_num_threads(threads)


def test_arrivals_that_are_not_those_of_the_run_are_noticed(data: Data) -> None:
    threads = torch.get_num_threads()
    try:
        _, record, applied = train_in_threads(Mode.ASYNC, data)
        record.arrivals.reverse()
        with pytest.raises(AssertionError, match="came before its time"):
            replayed(Mode.ASYNC, record, applied, data)
    finally:
        torch.set_num_threads(threads)
