"""Whole training runs that are compared, and what one of them took.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from contract.catalogue import Dataset, ModelName
from contract.task import TaskEnvironment


@dataclass(frozen=True)
class Workload:
    """What is trained: the same for both."""

    dataset: Dataset
    model: ModelName
    batch_size: int
    epochs: int
    workers: int = 4
    learning_rate: float = 0.02
    momentum: float = 0.75
    seed: int = 0
    samples: int | None = None
    """Synthetic images to learn from, where fewer will do than the runtime makes."""
    rounds: int | None = None
    """Runs of each system, where fewer must do than of other workloads."""

    def environment(self) -> TaskEnvironment:
        """The settings as a task has them."""
        return TaskEnvironment(
            study_id="bench",
            experiment_name=f"{self.model}-{self.dataset}",
            seed=self.seed,
            total_workers_expected=self.workers,
            server_port=0,
            dataset=self.dataset,
            model=self.model,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
        )


WORKLOADS = {
    "digits-cnn": Workload(Dataset.DIGITS, ModelName.DIGITS_CNN, batch_size=16, epochs=6),
    "cifar-cnn": Workload(Dataset.SYNTHETIC, ModelName.CIFAR_CNN, batch_size=32, epochs=4),
    "resnet18": Workload(
        Dataset.SYNTHETIC,
        ModelName.RESNET18,
        batch_size=4,
        epochs=3,
        # With more, four images a worker would drive the last bits of a sum apart.
        learning_rate=0.002,
        samples=128,
        rounds=2,
    ),
}


@dataclass(frozen=True)
class Epoch:
    """One rank's epoch."""

    seconds: float
    """Training only."""
    loss: float
    """Mean over the rank's steps."""
    steps: int


@dataclass(frozen=True)
class Run:
    """One training run."""

    epoch_seconds: float
    """Median over the epochs but the first, each as long as its slowest rank took."""
    losses: tuple[float, ...]
    """Mean training loss of each epoch: equal for both, or they did not do the same."""
    steps: int
    """Of one rank in one epoch."""


def run_of(ranks: Sequence[Sequence[Epoch]]) -> Run:
    """A run from its ranks' epochs. Raises ValueError unless there are two or more, of all ranks and steps alike."""
    by_epoch = list(zip(*ranks, strict=True))
    if len(by_epoch) < 2:
        raise ValueError("one epoch is none: the first meets cold memory and is not counted")
    steps = {epoch.steps for epochs in by_epoch for epoch in epochs}
    if len(steps) > 1:
        raise ValueError(f"epochs of {sorted(steps)} steps: expected as many in each")
    slowest = [max(epoch.seconds for epoch in epochs) for epochs in by_epoch]
    losses = tuple(sum(epoch.loss for epoch in epochs) / len(epochs) for epochs in by_epoch)
    return Run(median(slowest[1:]), losses, *steps)


def same_training(one: Run, other: Run, tolerance: float = 0.02) -> bool:
    """Whether two runs learned alike: as many steps, and every epoch's loss within `tolerance` of the first epoch's.

    Sums of gradients in another order differ in the last bits, and training makes more of it from epoch to epoch.
    """
    if one.steps != other.steps:
        return False
    scale = abs(one.losses[0])
    pairs = zip(one.losses, other.losses, strict=True)
    return all(abs(left - right) <= tolerance * scale for left, right in pairs)
