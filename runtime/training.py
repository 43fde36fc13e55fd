"""A worker's steps: gradient, push-pull, and where the time of each goes.

Runs in the worker; knows nothing of how records are printed or how the server is found.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor
from torch.nn import functional

from contract.draws import draw_seconds
from contract.task import TaskEnvironment
from runtime.augmentation import randomness
from runtime.device import CPU, Mirror
from runtime.faults import crash_if_due
from runtime.parameters import FlatModel
from runtime.sharded_connection import ShardedConnection
from runtime.sharding import Sharding
from runtime.shared_memory import SharedVectors
from runtime.split import Split

TEST_BATCH = 512
"""Samples that are tested at once: bounds memory, changes no result."""


@dataclass(slots=True)
class Figures:
    """Sums over steps; times in seconds, on a monotonic clock."""

    training: float = 0.0
    compute: float = 0.0
    """Computing the gradient and, with emulated compute, the rest of the draw."""
    emulated: float = 0.0
    """The draws; of a cancelled step, what passed of its own."""
    push_pull: float = 0.0
    """Round trips, without what the gradient was held back."""
    serialize: float = 0.0
    """Looking at gradients, encoding, decoding and copying: part of push_pull, at most all of it."""
    waiting: float = 0.0
    evaluation: float = 0.0
    steps: int = 0
    samples: int = 0
    dropped: int = 0
    cancelled: int = 0
    loss: float = 0.0

    @property
    def transfer(self) -> float:
        """The rest of push_pull."""
        return self.push_pull - self.serialize

    def __iadd__(self, other: Self) -> Self:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Training:
    """One worker's training: the model as the server has it, and how far it has come.

    It outlives a connection: after `begin` with another one it goes on at the step that this one says.
    """

    def __init__(
        self,
        environment: TaskEnvironment,
        sharding: Sharding,
        split: Split,
        model: FlatModel,
        vectors: SharedVectors | None = None,
    ) -> None:
        """`vectors`: memory that may be shared with the server; it becomes the model's own."""
        self.next_step = 0
        """The step to push next."""
        self._environment = environment
        self._compute = environment.compute
        self._sharding = sharding
        self._split = split
        self._model = model
        if vectors is not None and model.device == CPU:
            model.move_to(vectors.parameters, vectors.gradient)
        self._parameters, self._gradient = Mirror.of(model.parameters), Mirror.of(model.gradient)
        self._epoch = 1
        self._figures = Figures()
        self._totals = Figures()
        self._version = 0

    @property
    def steps(self) -> int:
        """Gradients of the whole training."""
        return self._environment.epochs * self._sharding.steps_per_epoch

    def begin(self, connection: ShardedConnection, next_step: int) -> None:
        """Begin at a step with the server's parameters, not with those that the model has."""
        self._connection = connection
        self.next_step = next_step
        self._version = connection.pull(into=self._parameters.on_host)
        self._parameters.to_device()

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train epoch by epoch, from the next step on.

        Yields the fields of a WorkerEpoch that are about training, of epochs in which this worker trained at all.
        """
        per_epoch = self._sharding.steps_per_epoch
        while self._epoch <= self._environment.epochs:
            ends = self._epoch * per_epoch
            if self.next_step < ends:
                self._train_to(ends)
            if self._figures.steps:
                yield self._epoch_record()
            self._totals += self._figures
            self._figures = Figures()
            self._epoch += 1

    def _train_to(self, ends: int) -> None:
        rank, epoch, seed = self._environment.worker_rank, self._epoch, self._environment.seed
        augment = randomness(seed, rank, epoch) if self._environment.augment else None
        began = time.monotonic()
        batches = self._sharding.batches(rank, epoch)
        try:
            for indices in batches[self.next_step - (ends - len(batches)) :]:
                self._figures += self._step(indices, augment)
                self.next_step += 1
        finally:
            self._figures.training += time.monotonic() - began

    def _epoch_record(self) -> dict[str, Any]:
        figures = self._figures
        loss = figures.loss / figures.steps
        return {
            "epoch": self._epoch,
            "epoch_seconds": figures.training,
            "steps": figures.steps,
            "samples": figures.samples,
            "samples_per_second": figures.samples / figures.training,
            "compute_seconds": figures.compute,
            "push_pull_seconds": figures.push_pull,
            "serialize_seconds": figures.serialize,
            "transfer_seconds": figures.transfer,
            "waiting_seconds": figures.waiting,
            "loss": loss if math.isfinite(loss) else None,
        }

    def test(self, split: Split, share: Tensor) -> dict[str, Any]:
        """Test the parameters of the last push-pull; returns the other fields of a WorkerEpoch."""
        began = time.monotonic()
        correct = count_correct(self._model, split, share)
        seconds = time.monotonic() - began
        self._totals.evaluation += seconds
        return {
            "evaluation_seconds": seconds,
            "test_correct": correct,
            "test_samples": len(share),
            "version": self._version,
        }

    def finish(self) -> bool:
        """Tell the server that all is done; returns whether this worker must test the final parameters.

        They are then in the model.
        """
        test_final = self._connection.finish()
        if test_final:
            self._version = self._connection.pull(into=self._parameters.on_host)
            self._parameters.to_device()
        return test_final

    def totals(self) -> dict[str, Any]:
        """Fields of a WorkerSummary that are about training."""
        return {
            "training_seconds": self._totals.training,
            "epochs": self._epoch - 1,
            "steps": self._totals.steps,
            "samples": self._totals.samples,
            "compute_seconds": self._totals.compute,
            "emulated_seconds": self._totals.emulated,
            "push_pull_seconds": self._totals.push_pull,
            "serialize_seconds": self._totals.serialize,
            "transfer_seconds": self._totals.transfer,
            "waiting_seconds": self._totals.waiting,
            "evaluation_seconds": self._totals.evaluation,
            "dropped_gradients": self._totals.dropped,
            "cancelled_steps": self._totals.cancelled,
        }

    def _step(self, indices: Tensor, augment: Generator | None) -> Figures:
        """Figures of one step, once it was answered: one that is cut short is done again, and counts once."""
        step, figures = self.next_step, Figures(steps=1, samples=len(indices))
        began = time.monotonic()
        figures.loss = self._compute_gradient(indices, augment)
        if self._compute.mode == "emulated":
            self._emulate(step, began, figures)
        crash_if_due(self._environment, step)
        computed = time.monotonic()
        answer = self._connection.push_pull(self._gradient.on_host, step, into=self._parameters.on_host)
        self._parameters.to_device()
        self._version = answer.version
        round_trip = time.monotonic() - computed - answer.waited_seconds
        figures.compute = computed - began
        figures.push_pull = round_trip
        # Blocks are encoded while others travel: what overlaps is not counted twice.
        figures.serialize = min(answer.serialize_seconds, round_trip)
        figures.waiting = answer.waited_seconds
        figures.dropped = int(answer.dropped)
        return figures

    def _compute_gradient(self, indices: Tensor, augment: Generator | None) -> float:
        """Leave the mean gradient of a batch in host memory; returns the loss."""
        images, labels = self._split.batch(indices, augment)
        device = self._model.device
        self._model.gradient.zero_()
        loss = functional.cross_entropy(self._model.module(images.to(device)), labels.to(device))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._gradient.to_host()
        return loss.item()

    def _emulate(self, step: int, began: float, figures: Figures) -> None:
        """Let the step last as long as its draw says, or until its gradient cannot count any more.

        A cancelled step pushes its gradient all the same: each step is one push and one answer in every mode.
        What is cut short is the emulated rest; a real computation, once begun, is not interrupted.
        """
        draw = draw_seconds(self._environment.seed, self._environment.worker_rank, step, self._compute)
        if self._connection.sleep(began + draw - time.monotonic(), self._version):
            figures.emulated = draw
        else:
            figures.emulated = min(draw, time.monotonic() - began)
            figures.cancelled = 1


@torch.no_grad()
def count_correct(model: FlatModel, split: Split, indices: Tensor) -> int:
    """How many of the images at `indices` the model names rightly."""
    correct = 0
    for part in torch.split(indices, TEST_BATCH):
        images, labels = split.batch(part)
        correct += int((model.module(images.to(model.device)).argmax(dim=1).cpu() == labels).sum())
    return correct
