"""Exact replay: a run of threads, whose order nobody planned, is repeated by one thread to the last bit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName, images_of
from runtime.blocks import blocks_of
from runtime.dataset import load_dataset
from runtime.model import build_model
from runtime.optimizer import MomentumSGD
from runtime.parameters import FlatModel
from runtime.policy import Policy, Push, Verdict, policy_for
from runtime.sharding import Sharding
from runtime.split import Data
from runtime.state import ServerState
from tests.unit.local_worker import LocalWorker, blocks_of_length, enter

WORKERS, STEPS, SEED, PATIENCE, RATE = 4, 8, 5, 30.0, 0.02
DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)
TOLD = Aggregation(staleness_bound=2, dc_lambda=0.5)


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    """Ten or so, of which the last is shorter."""
    with blocks_of_length(1000):
        yield


@dataclass
class Record:
    """What a run did, as it did it."""

    arrivals: list[Push] = field(default_factory=list)
    """In the order in which the server decided on them."""
    given: dict[tuple[int, int], Tensor] = field(default_factory=dict)
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


class Numbered(MomentumSGD):
    """An optimizer of one block that notes what it applies, under that block's lock."""

    def __init__(self, parameters: Tensor, seen: list[Tensor]) -> None:
        super().__init__(parameters, learning_rate=RATE, momentum=0.9)
        self._seen = seen

    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        self._seen.append(gradient.clone())
        super().step(gradient, factor)


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


def train_in_threads(mode: Mode, data: Data) -> tuple[Tensor, Record, list[list[Tensor]]]:
    """The parameters that came out, what was done, and what each block was changed by, in its order."""
    server, record, applied = initial_model().parameters, Record(), []

    def optimizer(parameters: Tensor) -> MomentumSGD:
        applied.append([])
        return Numbered(parameters, applied[-1])

    policy: Any = Recorded(policy_for(mode, WORKERS, TOLD), record)
    state = ServerState(workers=WORKERS, parameters=server, optimizer=optimizer, policy=policy)
    for rank in range(WORKERS):
        enter(state, rank, STEPS)
    models = [initial_model() for _ in range(WORKERS)]

    def work(rank: int) -> None:
        model, worker = models[rank], LocalWorker(state, rank)
        for step in range(STEPS):
            record.given[rank, step] = worker.parameters.clone()
            model.parameters.copy_(worker.parameters)
            worker.push_pull(gradient_of(model, data, rank, step))

    with ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(work, rank) for rank in range(WORKERS)]:
            future.result(PATIENCE)
    return server, record, applied


def replayed(mode: Mode, record: Record, applied: list[list[Tensor]], data: Data) -> Tensor:
    """Serially, without the server: torch's own SGD, block by block, in the order that each block saw.

    The gradients are computed anew on what each worker was given; a block says by what it was changed which of
    them came when.
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
        left = dict(gradients)
        for change in seen:
            now = part.detach().clone()
            made = {
                key: made_of(mode, gradient[block], now, record.given[key][block], staleness[key])
                for key, gradient in left.items()
            }
            came = [key for key, gradient in made.items() if torch.equal(gradient, change)]
            assert came, "a block was changed by what no worker sent"
            del left[came[0]]
            part.grad = made[came[0]]
            optimizer.step()
        assert not left, "each gradient reached each block once"
        reference[block] = part.detach()
    return reference


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
        _, record, applied = train_in_threads(Mode.ASYNC, data)
        applied[1][3], applied[1][4] = applied[1][4], applied[1][3]
        swapped = replayed(Mode.ASYNC, record, applied, data)
        applied[1][3], applied[1][4] = applied[1][4], applied[1][3]
        exact = replayed(Mode.ASYNC, record, applied, data)
        applied[2][5] = applied[2][5] * 2
        with pytest.raises(AssertionError, match="what no worker sent"):
            replayed(Mode.ASYNC, record, applied, data)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(swapped, exact)
