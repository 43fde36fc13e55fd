"""Which samples a worker trains on and tests.

Pure; runs in the worker. Every rank computes the same permutation and takes its own part of it, so that
shards never overlap and nobody has to hand them out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from contract.errors import TrainingFailed
from contract.seeding import derive_seed
from contract.training import samples_per_step, steps_per_epoch


@dataclass(frozen=True)
class Sharding:
    """`samples` training samples over `workers` workers, in batches of at most `batch_size`."""

    samples: int
    workers: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < self.workers:
            raise TrainingFailed(f"{self.samples} training samples are too few for {self.workers} workers")

    @property
    def batch(self) -> int:
        """Samples per step."""
        return samples_per_step(self.samples, self.workers, self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every rank."""
        return steps_per_epoch(self.samples, self.workers, self.batch_size)

    def shard(self, rank: int, epoch: int) -> Tensor:
        """Indices of a rank's samples in an epoch (1, 2 …): the ranks' shards make up all samples.

        Shuffled anew, over all ranks, every epoch.
        """
        generator = torch.Generator().manual_seed(derive_seed("shuffle", self.seed, epoch))
        return torch.randperm(self.samples, generator=generator)[rank :: self.workers]

    def batches(self, rank: int, epoch: int) -> list[Tensor]:
        """The shard as `steps_per_epoch` batches of equal size; the rest sits out this epoch."""
        shard = self.shard(rank, epoch)
        return list(torch.split(shard[: self.steps_per_epoch * self.batch], self.batch))


def share_of_tests(samples: int, workers: int, rank: int) -> Tensor:
    """Indices of the test samples that a rank tests: the ranks' shares make up the whole test set."""
    return torch.arange(samples)[rank::workers]
