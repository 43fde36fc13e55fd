"""PyTorch DistributedDataParallel over Gloo, on the same batches as Lockstep's workers, with the same optimizer.

Runs in the children of a round, one per rank.
"""

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from bench.substitution import set_synthetic_samples
from bench.workload import Epoch, Workload
from contract.catalogue import images_of
from runtime.dataset import load_dataset
from runtime.model import build_model
from runtime.sharding import Sharding, share_of_tests
from runtime.split import Split


def train(pipe: "Connection[Any, Any]", workload: Workload, rank: int, rendezvous: Path) -> None:
    """Train one rank; sends its list of epochs."""
    if workload.samples:
        set_synthetic_samples(workload.samples)
    images = images_of(workload.dataset, workload.model)
    data = load_dataset(workload.dataset, images, "")
    sharding = Sharding(len(data.train), workload.workers, workload.batch_size, workload.seed)
    store = dist.FileStore(  # type: ignore[attr-defined]  # torch exports it all the same
        str(rendezvous), workload.workers
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workload.workers)
    # Without the view, each gradient would be copied to its bucket and back.
    model = DistributedDataParallel(
        build_model(workload.model, images, workload.seed), gradient_as_bucket_view=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate, momentum=workload.momentum)
    share = share_of_tests(len(data.test), workload.workers, rank)
    epochs = []
    for epoch in range(1, workload.epochs + 1):
        loss, steps = 0.0, 0
        began = time.monotonic()
        for indices in sharding.batches(rank, epoch):
            loss += _step(model, optimizer, data.train, indices)
            steps += 1
        epochs.append(Epoch(time.monotonic() - began, loss / steps, steps))
        # Lockstep's workers test between epochs, beside the clock: who comes late to the next one waits on it.
        _test(model, data.test, share)
    pipe.send(epochs)
    pipe.recv()


def _step(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, split: Split, indices: Tensor
) -> float:
    images, labels = split.batch(indices)
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _test(model: nn.Module, split: Split, share: Tensor) -> int:
    images, labels = split.batch(share)
    return int((model(images).argmax(dim=1) == labels).sum())
