"""Pushes from their first block to their answer: which gradients make an update, and who may go on.

Runs in the parameter server, under the lock of its state; knows nothing of who is there or how training ends.
"""

from collections.abc import Callable

from runtime.accounting import Accounting
from runtime.aggregation import Aggregator
from runtime.exchange import Ready, Ticket
from runtime.membership import InvalidMessage, Member, Membership
from runtime.policy import Policy, Push, Verdict
from runtime.schedule import Progress, Schedule
from runtime.update import Update, follow_all


class Rounds:
    """What the policy decided so far, and what it has yet to decide on."""

    def __init__(
        self,
        policy: Policy,
        aggregator: Aggregator,
        membership: Membership,
        accounting: Accounting,
        *,
        schedule: Schedule | None,
        clock: Callable[[], float],
        notify: Callable[[], None],
    ) -> None:
        """`notify` is called when a worker's gradients have been superseded."""
        self.version = 0
        """Number of updates that were decided on so far."""
        self.progress = Progress(schedule.epochs if schedule else 0.0)
        """By gradients that made updates, or were dropped."""
        self.superseded: dict[int, int] = {}
        """Rank → the version below which its gradients will be dropped."""
        self._policy = policy
        self._aggregator = aggregator
        self._membership = membership
        self._accounting = accounting
        self._schedule = schedule
        self._clock = clock
        self._notify = notify
        self._collecting = self._new_update()
        self._latest: Update | None = None
        self._tickets: dict[int, Ticket] = {}
        self._waiting: dict[int, Ticket] = {}
        self._came_or_went = True
        """Whether all train may have changed."""

    @property
    def undecided(self) -> dict[int, int]:
        """Rank → the step whose gradient is held, and part of no update yet."""
        return {
            rank: ticket.step for rank, ticket in self._waiting.items() if ticket.update is self._collecting
        }

    def pull(self, rank: int, ready: Ready) -> Ticket:
        """A ticket that is answered, all of whose blocks may leave."""
        return self._answered(Ticket(rank, -1, self.version, ready))

    def begin(self, member: Member, step: int, version: int, ready: Ready) -> Ticket:
        """A push begins, or begins again. Raises Rejection where it is not this worker's next one."""
        member.check_push(step, version, self.version)
        present = self._tickets.get(member.rank)
        if present is not None and present.step == step:
            self._accounting.repeat()
            self._renew(present, ready)
            return present
        ticket = Ticket(member.rank, step, version, ready)
        if present is not None and step > present.step and not self._is_over(present):
            raise InvalidMessage(f"{member.name}: step {step} begins before step {present.step} was answered")
        if member.is_repeat(step):
            self._accounting.repeat()
            ticket.next_block = len(self._aggregator.blocks)
            return self._answered(ticket)
        if present is not None:
            self._count_wait(present)
        self._tickets[member.rank] = ticket
        return ticket

    def admit(self, ticket: Ticket) -> None:
        """The first block of a gradient is there: let the policy decide."""
        now = self._clock()
        if ticket.next_block == len(self._aggregator.blocks):
            ticket.received_at = now
        member = self._membership.member(ticket.rank)
        member.pushed = ticket.step + 1
        if not member.has_pushed or member.pushed_all:
            member.has_pushed = self._came_or_went = True
        self._waiting[ticket.rank] = ticket
        verdict = self._policy.push(Push(ticket.rank, ticket.step, ticket.version), self.version)
        if ticket.rank not in verdict.dropped:
            ticket.update = self._collecting
            ticket.update.members.add(ticket.rank)
        self._carry_out(verdict, now)

    def enter(self, member: Member) -> None:
        """A worker will push, `member.pushed` next."""
        self._came_or_went = True
        if not member.pushed_all:
            self._aggregator.away -= {member.rank}
            self._policy.enter(member.rank, member.pushed)
        self._expect()

    def leave(self, rank: int) -> None:
        """A worker pushes no more: nobody waits for it."""
        self._came_or_went = True
        before = self._latest
        self._aggregator.away |= {rank}
        self._carry_out(self._policy.leave(rank), self._clock())
        if self._latest is not before and self._latest is not None:
            self._aggregator.settle(self._latest)
        self._aggregator.settle(self._collecting)

    def lose(self, rank: int) -> None:
        """A worker is gone. What its gradient has reached stays; nothing waits for the rest of it."""
        self._waiting.pop(rank, None)
        ticket = self._tickets.pop(rank, None)
        if ticket is not None:
            if ticket.released_at is not None:
                self._count_wait(ticket)
            ticket.void = True
            ticket.ready.put(None)
            if ticket.update is not None:
                self._aggregator.lose(ticket.update, rank)
        self._expect()
        # Before the update that it held up is counted: how long that took is no law's.
        self._accounting.all_training = False
        self.leave(rank)

    def stop(self) -> None:
        """Training is over: let go whoever waits for an answer, or for a turn."""
        for ticket in self._tickets.values():
            ticket.ready.put(None)
        self._aggregator.stop()

    def _carry_out(self, verdict: Verdict, now: float) -> None:
        if verdict.update:
            self._decide(verdict, now)
        self.progress.gradients += len(verdict.update) + len(verdict.dropped)
        for rank in verdict.cancelled:
            self.superseded[rank] = self.version
        if verdict.cancelled:
            self._notify()
        for rank in sorted(verdict.release):
            self._release(self._waiting.pop(rank), now, dropped=rank in verdict.dropped)
        for rank in sorted(verdict.release):
            if self._membership.member(rank).pushed_all:
                self.leave(rank)

    def _decide(self, verdict: Verdict, now: float) -> None:
        """No more gradients are added to the update that was collected; a new one begins."""
        update, self._collecting = self._collecting, self._new_update()
        if update.members != verdict.update:
            raise AssertionError(f"the policy decides on {verdict.update}, collected are {update.members}")
        update.weight, update.learning_factor = verdict.weight, self._learning_factor(len(verdict.update))
        update.decided = True
        self._latest = update
        stalenesses = [self.version - self._waiting[rank].version for rank in verdict.update]
        self.version += 1
        self._accounting.update(now, stalenesses)
        if self._came_or_went:
            # From the next gradient on: the first ones began all at once, on the same version, and are younger than
            # the law.
            self._accounting.all_training = self._membership.all_training
            self._came_or_went = False

    def _release(self, ticket: Ticket, now: float, *, dropped: bool) -> None:
        """The worker may go on, block by block, with what its gradient has become part of."""
        ticket.released_at, ticket.released_version, ticket.dropped = now, self.version, dropped
        if dropped:
            self._accounting.drop()
        promised = self._promised(ticket)
        if not self._policy.answers_at_once:
            ticket.awaited = promised
        follow_all(promised, len(self._aggregator.blocks), ticket.ready.put)

    def count_waits(self) -> None:
        """Count how long workers waited for answers that have left since it was last counted.

        The others are counted when their next push begins: until all of an answer may leave, it is not known.
        """
        for ticket in self._tickets.values():
            if ticket.released_at is not None and all(update.is_complete for update in ticket.awaited):
                self._count_wait(ticket)

    def _count_wait(self, ticket: Ticket) -> None:
        if not ticket.counted:
            ticket.counted = True
            self._accounting.wait(ticket.waited_seconds)

    def _renew(self, ticket: Ticket, ready: Ready) -> None:
        """The answer goes elsewhere: begin again with its blocks."""
        ticket.ready.put(None)
        ticket.ready = ready
        if ticket.released_at is not None:
            follow_all(self._promised(ticket), len(self._aggregator.blocks), ready.put)

    def _answered(self, ticket: Ticket) -> Ticket:
        """A ticket that waits for nothing."""
        ticket.received_at = ticket.released_at = self._clock()
        ticket.released_version = self.version
        follow_all(self._promised(ticket), len(self._aggregator.blocks), ticket.ready.put)
        return ticket

    def _promised(self, ticket: Ticket) -> list[Update]:
        """What its worker is to see: the update that its gradient is part of, or else the latest; and the bound's.

        Whoever's gradient is still on its way into some blocks has begun no other push: its ticket is the last one.
        """
        update = ticket.update or self._latest
        promised = [] if update is None else [update]
        bound = self._policy.staleness_bound
        if bound is not None:
            seen = self._membership.member(ticket.rank).pushed - bound
            promised += [
                other.update
                for other in self._tickets.values()
                if other.step < seen and other.update is not None and other.update is not update
            ]
        return promised

    def _is_over(self, ticket: Ticket) -> bool:
        """All of it was taken, and its worker may go on."""
        return ticket.released_at is not None and ticket.next_block == len(self._aggregator.blocks)

    def _new_update(self) -> Update:
        return Update(len(self._aggregator.blocks))

    def _learning_factor(self, gradients: int) -> float:
        """What the learning rate of an update of so many gradients is multiplied by."""
        if self._schedule is None:
            return 1.0
        return self._schedule.factor(self.progress.epoch(), self.progress.epoch(gradients))

    def _expect(self) -> None:
        """Who came or went: another number of gradients may be to come, those among them that are held."""
        self.progress.expect(self._membership.steps_to_come + len(self.undecided))
