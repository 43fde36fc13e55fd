"""The parameter server's core: who trains, what they push and are given, and how it ends.

Runs in the server, called by many threads at once; knows nothing of connections, metric records or AWS. Which
gradients make an update is decided in rounds; the numbers are added up in the aggregator, block by block.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from runtime.accounting import Accounting
from runtime.aggregation import Aggregator, OptimizerFactory
from runtime.compression import Codec, Plain
from runtime.copies import Copies
from runtime.ending import Ending
from runtime.exchange import OVER, News, Phase, Ready, Ticket
from runtime.membership import InvalidMessage, Member, Membership, TooEarly
from runtime.parameters import memory_of
from runtime.policy import Policy
from runtime.pool import BlockPool
from runtime.rounds import Rounds
from runtime.schedule import Schedule
from runtime.timed_condition import TimedCondition


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
        optimizer: OptimizerFactory,
        policy: Policy,
        schedule: Schedule | None = None,
        survives_loss: bool = False,
        codec: Codec | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parameters`: flat fp32, changed in place; `clock`: seconds, monotonic.

        `schedule`: of the learning rate, which is constant without one. `survives_loss`: the others go on without
        a worker that is lost, and it may come back. `codec`: how parameters leave.
        """
        pool = BlockPool()
        self.copies = Copies(
            parameters,
            workers,
            codec or Plain(),
            alike=policy.in_rank_order,
            kept=bool(policy.delay_compensation),
            pool=pool,
        )
        self.aggregator = Aggregator(
            parameters,
            optimizer,
            workers=workers,
            in_rank_order=policy.in_rank_order,
            delay_compensation=policy.delay_compensation,
            held=self.copies.held,
            pool=pool,
            clock=clock,
        )
        self.length = parameters.numel()
        """Number of parameters."""
        self._in_step = policy.in_step
        self.answers_at_once = policy.answers_at_once
        """Whether no push ever waits for another."""
        self._survives_loss = survives_loss
        self._clock = clock
        self._changed = TimedCondition(clock)
        self._membership = Membership(workers)
        self._accounting = Accounting()
        self._phase = Phase.JOINING
        self._ending = Ending("")
        self._resumed_from: int | None = None
        self._rounds = Rounds(
            policy,
            self.aggregator,
            self._membership,
            self._accounting,
            schedule=schedule,
            clock=clock,
            notify=self._changed.notify_all,
        )

    @property
    def version(self) -> int:
        """Number of updates that were decided on so far."""
        with self._changed:
            return self._rounds.version

    # Workers come and go.

    def join(self, rank: int) -> None:
        """Enter a worker, or let one in again that was lost, or to which the answer was lost that it had finished."""
        with self._changed:
            self._raise_over()
            if self._phase is Phase.FINISHED and not self._membership.has_finished(rank):
                raise TrainingEnded(Ending(f"worker {rank} comes too late: all others have finished"))
            self._membership.join(rank)

    def attend(self, rank: int) -> None:
        """A worker's stream is open: from now on its loss is noticed."""
        with self._changed:
            self._raise_over()
            self._membership.attend(rank)

    def ready(self, rank: int, parameters: int, steps: int, next_step: int = 0) -> None:
        """A worker has its model, of `parameters` parameters, and will push `steps` gradients, `next_step` next.

        The last one starts the training; one that comes back joins it.
        """
        with self._changed:
            self._raise_over()
            if parameters != self.length:
                raise InvalidMessage(
                    f"worker {rank}: a model of {parameters} parameters; expected {self.length}"
                )
            member = self._membership.ready(rank, steps, next_step)
            if self._phase is Phase.TRAINING:
                self._reenter(member)
            elif self._phase is Phase.JOINING and not self._membership.missing:
                self._start()
            self._changed.notify_all()

    def next_step(self, rank: int) -> int:
        """The step that a worker pushes next."""
        with self._changed:
            return self._membership.member(rank).pushed

    def leave(self, rank: int) -> None:
        """A worker's stream closed. Before the worker had finished, it is lost."""
        with self._changed:
            member = self._membership.leave(rank)
            if not member.finished and self._phase not in OVER:
                self._lose(member)
            self._changed.notify_all()

    def watch(self, rank: int, known: News, timeout: float) -> News | None:
        """Wait, at most `timeout` seconds, for other news than `known`; None once the worker has left."""
        with self._changed:
            member = self._membership.member(rank)
            self._changed.wait_for(lambda: self._news(rank) != known or member.left, timeout)
            return None if member.left else self._news(rank)

    # Parameters and gradients.

    def check_training(self, rank: int) -> None:
        """Raise Rejection where a rank is none that trains, or TrainingEnded."""
        with self._changed:
            self._training_member(rank)

    def pull(self, rank: int, ready: Ready) -> Ticket:
        """The current parameters: a ticket that is answered, all of whose blocks may leave."""
        with self._changed:
            self._training_member(rank)
            return self._rounds.pull(rank, ready)

    def begin(self, rank: int, step: int, version: int, ready: Ready) -> Ticket:
        """A worker pushes the gradient of `step`, computed on `version`; its blocks follow, by `take`.

        `ready` is told which blocks of the answer may leave. A step that is pushed again goes on where it stopped:
        what came before counts once, and is answered to the new `ready`.
        """
        with self._changed:
            return self._rounds.begin(self._training_member(rank), step, version, ready)

    def take(self, ticket: Ticket, index: int, gradient: Tensor, *, lasting: bool = False) -> bool:
        """Take one block (flat, fp32) of the gradient of a push that was begun; blocks come in order.

        With the first one the policy is asked. May wait, and returns whether `gradient` was kept: see Aggregator.add.
        """
        with ticket.lock:
            if index != ticket.next_block:
                return False
            ticket.next_block += 1
            if index == 0:
                # Under the lock: the next block may come by another connection, and needs the verdict.
                self._admit(ticket)
            elif ticket.next_block == len(self.aggregator.blocks):
                ticket.received_at = self._clock()
        if ticket.void or ticket.update is None:
            return False
        return self.aggregator.add(ticket.update, ticket.rank, ticket.step, index, gradient, lasting=lasting)

    def push(self, rank: int, step: int, version: int, gradient: Tensor) -> Ticket:
        """Push a whole gradient (flat, fp32), which must not change until the ticket is answered."""
        ticket = self.begin(rank, step, version, SimpleQueue())
        for index, block in enumerate(self.aggregator.blocks):
            self.take(ticket, index, gradient[block], lasting=True)
        return ticket

    def finish(self, rank: int, tested_version: int) -> tuple[int, bool]:
        """A worker has done all its steps. Returns the version, and whether it must test that version.

        The last worker must, unless all workers tested that very version. Whoever finishes again, since it heard no
        answer, is told the same.
        """
        with self._changed:
            member = self._training_member(rank)
            if not member.pushed_all:
                raise TooEarly(f"worker {rank}: finished at step {member.pushed}; expected {member.steps}")
            if not member.finished:
                member.tested_version = tested_version
                self._accounting.finish(self._clock())
                if self._membership.all_finished:
                    self._phase = Phase.FINISHED
                    member.tests_final = self._membership.tested_versions != {self._rounds.version}
                    self._changed.notify_all()
            return self._rounds.version, member.tests_final

    # Endings, and what the server's main thread asks.

    def give_up(self, problem: str) -> None:
        """A worker's gradient is refused: without it the worker cannot go on, nor can those who wait for it."""
        if not self._survives_loss:
            self.end(Ending(problem))

    def end(self, ending: Ending) -> None:
        """Give up, unless training is over: everyone who waits is told why. The first reason stays."""
        with self._changed:
            self._end(ending)

    def withdraw(self, rank: int, reason: str) -> None:
        """A worker cannot take part, or not any more, and hangs up: the end, where the others cannot go on either."""
        with self._changed:
            began = self._phase is Phase.TRAINING or self._resumed_from is not None
            if not (self._survives_loss and began):
                name = f"worker {rank}"
                self._end(Ending(f"{name} withdrew: {reason}", lost_peer=name))

    def wait_started(self, timeout: float) -> list[int]:
        """Wait, at most `timeout` seconds, for training to start; returns who is not there if it did not."""
        with self._changed:
            self._changed.wait_for(lambda: self._phase is not Phase.JOINING, timeout)
            return self._membership.absent if self._phase is Phase.JOINING else []

    def start_without_the_missing(self) -> list[int]:
        """Take those who did not come back to a server that was restarted for lost, where others go on without them.

        Returns the ranks that are left; where there are none, training has not started.
        """
        with self._changed:
            there = [member.rank for member in self._membership if member.ready]
            may = self._survives_loss and self._resumed_from is not None and self._phase is Phase.JOINING
            if not (may and there and self._membership.all_known):
                return []
            for rank in self._membership.missing:
                self._membership.excuse(rank)
                self._accounting.lose(rank)
            self._start()
            self._changed.notify_all()
            return there

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

    @property
    def resumed(self) -> bool:
        """It goes on from the facts of another server, to which every worker had come."""
        with self._changed:
            return self._resumed_from is not None and self._membership.all_known

    @property
    def deserted(self) -> bool:
        """Training goes on, but every worker is lost."""
        with self._changed:
            return self._phase is Phase.TRAINING and self._membership.all_left

    def facts(self) -> dict[str, Any]:
        """What a server that takes this one's place must know beside the parameters, as JSON values."""
        with self._changed:
            self._rounds.count_waits()
            return {
                "version": self._rounds.version,
                "progress": self._rounds.progress.facts(),
                "members": self._membership.facts(self._rounds.undecided),
                "accounting": self._accounting.facts(self._clock()),
            }

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on from another server's facts, before anybody joins."""
        with self._changed:
            self._resumed_from = self._rounds.version = facts["version"]
            self._rounds.progress.resume(facts["progress"])
            self.copies.renew(self.aggregator.parameters)
            self._membership.resume(facts["members"])
            self._accounting.resume(facts["accounting"])
            if self._membership.all_finished:
                self._phase = Phase.FINISHED

    def interval(self) -> dict[str, Any]:
        """Fields of a ServerInterval: what was done since the previous call."""
        with self._changed:
            away = len(self._membership.away)
            return {
                "version": self._rounds.version,
                "workers_away": away,
                **self._accounting.interval(self._clock()),
            }

    def summary(self) -> dict[str, Any]:
        """Fields of a ServerSummary, but for mode and workers."""
        with self._changed:
            self._rounds.count_waits()
            return {
                **self._accounting.summary(),
                "apply_seconds": self.aggregator.apply_seconds,
                "lock_seconds": self.aggregator.lock_seconds + self._changed.waited_seconds,
                "lost_steps": sum(member.lost_steps for member in self._membership),
                "resumed_from_version": self._resumed_from,
                "parameters_sha256": hashlib.sha256(memory_of(self.aggregator.parameters)).hexdigest(),
            }

    # The lock is held below, but in _admit.

    def _admit(self, ticket: Ticket) -> None:
        """The first block of a gradient is there: let the policy decide."""
        with self._changed:
            if ticket.void:
                return
            self._training_member(ticket.rank)
            self._rounds.admit(ticket)

    def _training_member(self, rank: int) -> Member:
        self._raise_over()
        if self._phase is Phase.JOINING:
            raise TooEarly(f"workers {self._membership.missing} are not there; expected `started` first")
        member = self._membership.member(rank)
        if not member.ready:
            raise TooEarly(f"{member.name} is not ready; expected Ready first")
        return member

    def _start(self) -> None:
        """All who are waited for are ready: those of a server that was restarted go on where they were."""
        self._phase = Phase.TRAINING
        together = max(member.pushed for member in self._membership)
        for member in self._membership:
            if member.excused:
                continue
            if self._in_step:
                member.go_on_at(together)
            self._rounds.enter(member)
        for member in self._membership:
            if member.pushed_all or member.excused:
                self._rounds.leave(member.rank)
        self._accounting.start(self._clock())

    def _lose(self, member: Member) -> None:
        when = "before training began"
        if self._phase is Phase.TRAINING:
            when = f"after {member.pushed} of {member.steps} steps"
        ending = Ending(f"{member.name} vanished: its connection closed {when}", lost_peer=member.name)
        if not self._survives_loss:
            self._end(ending)
        elif self._phase is Phase.TRAINING:
            self._go_on_without(member)

    def _go_on_without(self, member: Member) -> None:
        """What the lost worker's gradient has reached stays; nothing waits for the rest of it."""
        self._accounting.lose(member.rank)
        self._membership.excuse(member.rank)
        # A step that made no update yet counts as lost; who comes back pushes it again, to the blocks that lack it.
        member.pushed = self._rounds.undecided.get(member.rank, member.pushed)
        self._rounds.lose(member.rank)
        if self._membership.all_finished:
            self._phase = Phase.FINISHED

    def _reenter(self, member: Member) -> None:
        """A lost worker is back: where all go in step, it goes on at the step of the others."""
        if member.finished:
            return  # it was not lost: it asks again what it was told then
        others = [other.pushed for other in self._membership if other.ready and other is not member]
        if self._in_step and others:
            member.go_on_at(min(others))
        self._accounting.rejoin(member.rank)
        self._rounds.enter(member)

    def _news(self, rank: int) -> News:
        phase = self._phase
        if phase is not Phase.ENDED and not self._membership.member(rank).ready:
            phase = Phase.JOINING
        return News(phase, self._rounds.superseded.get(rank, 0))

    def _end(self, ending: Ending) -> None:
        if self._phase in OVER:
            return
        self._phase, self._ending = Phase.ENDED, ending
        self._rounds.stop()
        self._changed.notify_all()

    def _raise_over(self) -> None:
        if self._phase is Phase.ENDED:
            raise TrainingEnded(self._ending)
