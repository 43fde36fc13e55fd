"""The parameter server's core: the parameters, their version, and who waits for what.

Runs in the server, called by many threads at once; knows nothing of gRPC, metric records or AWS.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.accounting import Accounting
from runtime.compensation import Backups, compensate
from runtime.ending import Ending
from runtime.exchange import OVER, Answer, News, Phase, Snapshot, Ticket
from runtime.membership import InvalidMessage, Member, Membership, TooEarly
from runtime.optimizer import Optimizer, weighted_sum
from runtime.policy import Policy, Push, Verdict
from runtime.schedule import Schedule


class TrainingEnded(Exception):
    """Training ended early; `ending` says why."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class ServerState:
    """Parameters, membership and ending of one experiment. Any thread may call any method."""

    def __init__(
        self,
        *,
        workers: int,
        parameters: Tensor,
        optimizer: Optimizer,
        policy: Policy,
        schedule: Schedule | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parameters`: flat fp32, changed in place by `optimizer`; `clock`: seconds, monotonic.

        `schedule`: of the learning rate, which is constant without one.
        """
        self._parameters = parameters
        self._optimizer = optimizer
        self._policy = policy
        self._schedule = schedule
        self._clock = clock
        self._changed = threading.Condition()
        self._membership = Membership(workers)
        self._accounting = Accounting()
        self._phase = Phase.JOINING
        self._ending = Ending("")
        # One gradient of each worker, and their sum: all the memory that training takes, whoever sends what.
        self._slots = {rank: torch.empty_like(parameters) for rank in range(workers)}
        self._sum = torch.empty_like(parameters)
        self._receiving: set[int] = set()
        self._waiting: dict[int, Ticket] = {}
        self._superseded = dict.fromkeys(range(workers), 0)
        self._backups = Backups() if policy.delay_compensation else None
        self._consumed = 0
        self._snapshot = Snapshot(0, parameters.numpy().tobytes())

    @property
    def length(self) -> int:
        """Number of parameters."""
        return self._parameters.numel()

    @property
    def version(self) -> int:
        """Number of updates so far."""
        with self._changed:
            return self._snapshot.version

    # Workers come and go.

    def join(self, rank: int, parameters: int, steps: int) -> None:
        """Enter a worker whose model has `parameters` parameters and that will push `steps` gradients."""
        with self._changed:
            self._raise_ending()
            if parameters != self.length:
                raise InvalidMessage(
                    f"worker {rank}: a model of {parameters} parameters; expected {self.length}"
                )
            self._membership.join(rank, steps)

    def attend(self, rank: int) -> None:
        """A worker's stream is open; the last one starts the training."""
        with self._changed:
            self._raise_ending()
            self._membership.attend(rank)
            if not self._membership.missing:
                self._phase = Phase.TRAINING
                self._accounting.start(self._clock())
                self._changed.notify_all()

    def leave(self, rank: int) -> None:
        """A worker's stream closed. Before the worker had finished, that ends the training."""
        with self._changed:
            member = self._membership.member(rank)
            member.left = True
            if not member.finished:
                self._end(
                    Ending(
                        f"worker {rank} vanished: its connection closed after {member.pushed} of"
                        f" {member.steps} steps",
                        lost_peer=member.name,
                    )
                )
            self._changed.notify_all()

    def watch(self, rank: int, known: News, timeout: float) -> News | None:
        """Wait, at most `timeout` seconds, for other news than `known`; None once the worker has left."""
        with self._changed:
            member = self._membership.member(rank)
            self._changed.wait_for(lambda: self._news(rank) != known or member.left, timeout)
            return None if member.left else self._news(rank)

    # Parameters and gradients.

    def pull(self, rank: int) -> Snapshot:
        """The current parameters."""
        with self._changed:
            self._training_member(rank)
            return self._given(rank)

    def receive(self, rank: int, step: int, version: int) -> Tensor | None:
        """Where to write the gradient of a worker's step, computed on `version`; `push` must follow.

        None where the step was pushed before: the gradient counts once, and `push` answers again.
        """
        with self._changed:
            member = self._training_member(rank)
            member.check_push(step, version, self._snapshot.version)
            if member.is_repeat(step):
                return None
            if rank in self._receiving:
                raise InvalidMessage(f"worker {rank}, step {step}: another push of this step is under way")
            if self._backups and version not in (given := self._backups.versions(rank)):
                raise InvalidMessage(
                    f"worker {rank}, step {step}: was not given version {version}, but {given}"
                )
            self._receiving.add(rank)
            return self._slots[rank]

    def push(self, rank: int, step: int, version: int) -> Answer:
        """Take the gradient that `receive` made room for; wait until the policy lets the worker go on."""
        ticket = self.submit(rank, step, version)
        with self._changed:
            while ticket.answer is None:
                self._raise_ending()
                self._changed.wait()
            return ticket.answer

    def submit(self, rank: int, step: int, version: int) -> Ticket:
        """As `push`, without waiting: the answer stands in the ticket as soon as there is one.

        A repeated push is not applied: it shares the ticket that waits, or is answered the current parameters.
        """
        with self._changed:
            member = self._training_member(rank)
            push, now = Push(rank, step, version), self._clock()
            if member.is_repeat(step):
                self._accounting.repeat()
                waiting = self._waiting.get(rank)
                if waiting is not None and waiting.push.step == step:
                    return waiting
                return Ticket(push, now, Answer(self._given(rank)))
            self._receiving.discard(rank)
            member.pushed += 1
            if self._backups:
                backup = self._backups.take(rank, version)
                compensate(self._slots[rank], self._parameters, backup, self._policy.delay_compensation)
            self._waiting[rank] = ticket = Ticket(push, now)
            self._carry_out(self._policy.push(push, self._snapshot.version))
            return ticket

    def finish(self, rank: int, tested_version: int) -> tuple[int, bool]:
        """A worker has done all its steps. Returns the version, and whether it must test that version.

        The last worker must, unless all workers tested that very version.
        """
        with self._changed:
            member = self._training_member(rank)
            if not member.pushed_all:
                raise TooEarly(f"worker {rank}: finished at step {member.pushed}; expected {member.steps}")
            member.tested_version = tested_version
            self._accounting.finish(self._clock())
            version = self._snapshot.version
            if not self._membership.all_finished:
                return version, False
            self._phase = Phase.FINISHED
            self._changed.notify_all()
            return version, self._membership.tested_versions != {version}

    # Endings, and what the server's main thread asks.

    def end(self, ending: Ending) -> None:
        """Give up, unless training is over: everyone who waits is told why. The first reason stays."""
        with self._changed:
            self._end(ending)

    def wait_started(self, timeout: float) -> list[int]:
        """Wait, at most `timeout` seconds, for all workers; returns the ranks that are missing."""
        with self._changed:
            self._changed.wait_for(lambda: self._phase is not Phase.JOINING, timeout)
            return self._membership.missing if self._phase is Phase.JOINING else []

    def wait_over(self, timeout: float) -> bool:
        """Wait, at most `timeout` seconds, until training is over; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._phase in OVER, timeout)

    def wait_left(self, timeout: float) -> None:
        """Wait, at most `timeout` seconds, until every worker has hung up."""
        with self._changed:
            self._changed.wait_for(lambda: self._membership.all_left, timeout)

    @property
    def ending(self) -> Ending | None:
        """Why training ended early, or None while it did not."""
        with self._changed:
            return self._ending if self._phase is Phase.ENDED else None

    def interval(self) -> dict[str, Any]:
        """Fields of a ServerInterval: what was done since the previous call."""
        with self._changed:
            return {"version": self._snapshot.version, **self._accounting.interval(self._clock())}

    def summary(self) -> dict[str, Any]:
        """Fields of a ServerSummary, but for mode and workers."""
        with self._changed:
            digest = hashlib.sha256(self._snapshot.data).hexdigest()
            return {**self._accounting.summary(), "parameters_sha256": digest}

    # The lock is held below.

    def _training_member(self, rank: int) -> Member:
        self._raise_ending()
        if self._phase is Phase.JOINING:
            raise TooEarly(f"workers {self._membership.missing} are not there; expected `started` first")
        return self._membership.member(rank)

    def _carry_out(self, verdict: Verdict) -> None:
        decided_at = self._clock()
        if verdict.update:
            self._update(verdict)
        self._consumed += len(verdict.update) + len(verdict.dropped)
        for rank in verdict.cancelled:
            self._superseded[rank] = self._snapshot.version
        for rank in verdict.release:
            ticket = self._waiting.pop(rank)
            dropped = rank in verdict.dropped
            if dropped:
                self._accounting.drop()
            ticket.answer = Answer(self._given(rank), decided_at - ticket.arrived_at, dropped)
        if verdict.release:
            self._changed.notify_all()
        for rank in sorted(verdict.release):
            if self._membership.member(rank).pushed_all:
                self._carry_out(self._policy.finish(rank))

    def _update(self, verdict: Verdict) -> None:
        version = self._snapshot.version
        began = self._clock()
        gradient = weighted_sum(self._slots, verdict.update, out=self._sum)
        self._optimizer.step(gradient, self._learning_factor(len(verdict.update)))
        self._snapshot = Snapshot(version + 1, self._parameters.numpy().tobytes())
        now = self._clock()
        stalenesses = [version - self._waiting[rank].push.version for rank in verdict.update]
        self._accounting.update(now, stalenesses, apply_seconds=now - began)
        # From the next gradient on: the first ones began on version 0, all at once, and are younger than the law.
        self._accounting.all_training = self._membership.all_training

    def _learning_factor(self, gradients: int) -> float:
        """What the learning rate of an update of so many gradients is multiplied by."""
        if self._schedule is None:
            return 1.0
        epochs_per_gradient = self._schedule.epochs / self._membership.total_steps
        return self._schedule.factor(
            self._consumed * epochs_per_gradient, (self._consumed + gradients) * epochs_per_gradient
        )

    def _given(self, rank: int) -> Snapshot:
        """The current parameters, on their way to a worker."""
        if self._backups:
            self._backups.give(rank, self._snapshot)
        return self._snapshot

    def _news(self, rank: int) -> News:
        return News(self._phase, self._superseded[rank])

    def _end(self, ending: Ending) -> None:
        if self._phase not in OVER:
            self._phase, self._ending = Phase.ENDED, ending
            self._changed.notify_all()

    def _raise_ending(self) -> None:
        if self._phase is Phase.ENDED:
            raise TrainingEnded(self._ending)
