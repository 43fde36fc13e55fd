"""Exact replay: a run of threads, whose order nobody planned, is repeated by one thread to the last bit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contract.aggregation import Aggregation, Mode
from contract.catalogue import Dataset, ModelName, images_of
from runtime.codec import fill
from runtime.dataset import load_dataset
from runtime.model import build_model
from runtime.optimizer import MomentumSGD
from runtime.parameters import FlatModel
from runtime.policy import Policy, Push, Verdict, policy_for
from runtime.sharding import Sharding
from runtime.split import Data
from runtime.state import ServerState

WORKERS, STEPS, SEED, PATIENCE = 4, 12, 5, 30.0
DIGITS = images_of(Dataset.DIGITS, ModelName.DIGITS_CNN)
TOLD = Aggregation(staleness_bound=2, dc_lambda=0.5)


class Recorded:
    """A policy that notes what arrives, in the order in which the server took it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.delay_compensation = policy.delay_compensation
        self.arrivals: list[Push] = []

    def push(self, push: Push, version: int) -> Verdict:
        self.arrivals.append(push)
        return self._policy.push(push, version)

    def finish(self, rank: int) -> Verdict:
        return self._policy.finish(rank)


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


def train_in_threads(mode: Mode, data: Data) -> tuple[Tensor, list[Push]]:
    """The parameters that came out, and the order that made them."""
    server = initial_model().parameters
    policy = Recorded(policy_for(mode, WORKERS, TOLD))
    optimizer = MomentumSGD(server, learning_rate=0.02, momentum=0.9)
    state = ServerState(workers=WORKERS, parameters=server, optimizer=optimizer, policy=policy)
    for rank in range(WORKERS):
        state.join(rank, server.numel(), STEPS)
        state.attend(rank)
    models = [initial_model() for _ in range(WORKERS)]
    pulled = [state.pull(rank) for rank in range(WORKERS)]

    def work(rank: int) -> None:
        model, given = models[rank], pulled[rank]
        for step in range(STEPS):
            fill(model.parameters, [given.data])
            gradient = gradient_of(model, data, rank, step)
            slot = state.receive(rank, step, given.version)
            assert slot is not None
            slot.copy_(gradient)
            given = state.push(rank, step, given.version).snapshot

    with ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(work, rank) for rank in range(WORKERS)]:
            future.result(PATIENCE)
    return server, policy.arrivals


def applied(mode: Mode, gradient: Tensor, now: Tensor, then: Tensor, staleness: int) -> Tensor:
    """What a mode makes of a gradient that was computed on the parameters `then` and meets those of `now`."""
    match mode:
        case Mode.STALENESS_AWARE:
            return gradient * (1 / max(staleness, 1))
        case Mode.DC_ASGD:
            return torch.add(gradient, gradient * gradient * (now - then), alpha=0.5)
        case _:
            return gradient.clone()


def replay(mode: Mode, arrivals: list[Push], data: Data) -> Tensor:
    """Serially, without the server: torch's own SGD, one recorded gradient after the other."""
    reference = initial_model().parameters.requires_grad_()
    optimizer = torch.optim.SGD([reference], lr=0.02, momentum=0.9)
    versions = [reference.detach().clone()]
    model = initial_model()
    for push in arrivals:
        then, now = versions[push.version], versions[-1]
        model.parameters.copy_(then)
        gradient = gradient_of(model, data, push.rank, push.step)
        reference.grad = applied(mode, gradient, now, then, len(versions) - 1 - push.version)
        optimizer.step()
        versions.append(reference.detach().clone())
    return reference.detach()


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.SSP, Mode.STALENESS_AWARE, Mode.DC_ASGD])
def test_the_recorded_order_gives_the_same_parameters_bit_for_bit(mode: Mode, data: Data) -> None:
    threads = torch.get_num_threads()
    try:
        trained, arrivals = train_in_threads(mode, data)
        replayed = replay(mode, arrivals, data)
        # As if nothing had been stale: each gradient on the version that it met
        fresh = replay(mode, [replace(push, version=i) for i, push in enumerate(arrivals)], data)
    finally:
        torch.set_num_threads(threads)
    assert len(arrivals) == WORKERS * STEPS
    assert torch.equal(replayed, trained)
    assert not torch.equal(fresh, trained)
