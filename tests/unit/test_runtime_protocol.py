"""Any sequence of joins, pulls, pushes, duplicates, losses, returns and restarts keeps the promises of every mode."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from contract.aggregation import BARRIER_MODES, Aggregation, Mode
from runtime.checkpoint import Checkpoint, Owner, dump, load
from runtime.exchange import News, Phase, Ready, Ticket
from runtime.membership import AlreadyThere, InvalidMessage, TooEarly
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.resumption import checkpoint_of, resume
from runtime.state import ServerState, TrainingEnded
from tests.unit.local_worker import blocks_of_length

WORKERS, STEPS, BLOCKS = 3, 3, 2
PLACES = WORKERS * STEPS
RANKS = st.integers(0, WORKERS - 1)
TURNS = st.lists(RANKS, max_size=12)
OWNER = Owner("study", "experiment")

QUORUM = {Mode.SYNC: 3, Mode.BACKUP: 2, Mode.KSYNC: 2, Mode.KASYNC: 2}
"""Gradients of an update while all workers train; elsewhere 1."""
TOLD = Aggregation(backup_workers=1, staleness_bound=1, k=2, dc_lambda=1e-9)


@dataclass
class Pushed:
    """A push as its worker knows it."""

    step: int
    ticket: Ticket
    ready: Ready
    sent: int = 0
    """Blocks that the server has had."""
    received: set[int] = field(default_factory=set)


class Protocol(RuleBasedStateMachine):
    """Drives the server's state as peers might, in one thread, and keeps a model of what must be true.

    The gradient of each (worker, step) is one in a place of its own in every block, so that the parameters, with a
    learning rate of one, say which gradients a block got, how often, and with what weight.
    """

    mode = Mode.SYNC

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.stack.enter_context(blocks_of_length(PLACES))
        self.survives = False
        self.state = self.new_state()
        self.joined: set[int] = set()
        self.attending: set[int] = set()
        self.ready: set[int] = set()
        self.away: set[int] = set()
        """Lost after training began."""
        self.excused: set[int] = set()
        """Lost after training began, and not ready again: a restarted server does not wait for them."""
        self.finished: set[int] = set()
        self.started = self.over = False
        self.next_step = dict.fromkeys(range(WORKERS), 0)
        """What each worker computes, or pushes now."""
        self.version = dict.fromkeys(range(WORKERS), 0)
        self.pushing: dict[int, Pushed] = {}
        self.last: dict[int, Pushed] = {}
        """The step before, of which a duplicate may come."""
        self.dropped: set[tuple[int, int]] = set()
        self.repeats = 0
        self.last_version = 0
        self.seen = torch.zeros(BLOCKS * PLACES)
        """The parameters after the previous rule."""
        self.checkpoints: list[tuple[Checkpoint, set[int]]] = []
        self.lost: int | None = None
        """Whose loss ended training."""
        self.calm = True
        """Nobody was lost, and there was one server."""

    @initialize(survives=st.sampled_from([True, True, False]), at_once=st.sampled_from([True, True, False]))
    def study(self, survives: bool, at_once: bool) -> None:
        self.survives = survives
        self.state = self.new_state()
        if at_once:
            self.everybody_comes()

    def new_state(self) -> ServerState:
        return ServerState(
            workers=WORKERS,
            parameters=torch.zeros(BLOCKS * PLACES),
            optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
            policy=policy_for(self.mode, WORKERS, TOLD),
            survives_loss=self.survives,
        )

    @property
    def training(self) -> bool:
        return self.started and self.lost is None

    @property
    def active(self) -> set[int]:
        """Workers that the others wait for: not yet released from their last step."""
        return {rank for rank in self.ready if self.released(rank) < STEPS}

    def released(self, rank: int) -> int:
        """The step that a worker may begin: the server decides on that when it has the first block of one before."""
        pushed = self.pushing.get(rank)
        return self.next_step[rank] + (pushed is not None and pushed.ticket.answer is not None)

    @property
    def held(self) -> set[int]:
        """Those whose gradients are at the server, at least the first block, without an answer."""
        return {r for r, pushed in self.pushing.items() if pushed.sent and pushed.ticket.answer is None}

    def gradient(self, rank: int, step: int) -> Tensor:
        gradient = torch.zeros(PLACES)
        gradient[rank * STEPS + step] = 1.0
        return gradient

    # Coming and going.

    @property
    def everybody_is_there(self) -> bool:
        return len(self.ready | self.finished) == WORKERS

    @property
    def nobody_is_missing(self) -> bool:
        return len(self.ready | self.finished | self.excused) == WORKERS

    @precondition(lambda self: not self.everybody_is_there)
    @rule(rank=RANKS)
    def join(self, rank: int) -> None:
        if self.lost is not None or self.over:
            with pytest.raises(TrainingEnded):
                self.state.join(rank)
        elif rank in self.attending:
            with pytest.raises(AlreadyThere):
                self.state.join(rank)
        else:
            self.state.join(rank)
            self.joined.add(rank)

    @precondition(lambda self: self.lost is None and not self.over and not self.everybody_is_there)
    @rule(rank=RANKS)
    def attend(self, rank: int) -> None:
        if rank not in self.joined:
            with pytest.raises(TooEarly):
                self.state.attend(rank)
        elif rank in self.attending:
            with pytest.raises(AlreadyThere):
                self.state.attend(rank)
        else:
            self.state.attend(rank)
            self.attending.add(rank)
            self.away.discard(rank)
            self.knows_nothing(rank)

    def knows_nothing(self, rank: int) -> None:
        """Whoever is not ready is not told to start, and can do nothing."""
        news = self.state.watch(rank, News(Phase.TRAINING), timeout=0)
        assert news is not None
        assert news.phase is Phase.JOINING
        with pytest.raises(TooEarly):
            self.state.pull(rank, SimpleQueue())

    @precondition(lambda self: self.lost is None and not self.over and not self.everybody_is_there)
    @rule(rank=RANKS)
    def get_ready(self, rank: int) -> None:
        if rank not in self.attending:
            with pytest.raises(TooEarly):
                self.state.ready(rank, BLOCKS * PLACES, STEPS, self.next_step[rank])
        elif rank in self.ready:
            with pytest.raises(AlreadyThere):
                self.state.ready(rank, BLOCKS * PLACES, STEPS, self.next_step[rank])
        else:
            self.state.ready(rank, BLOCKS * PLACES, STEPS, self.next_step[rank])
            self.ready.add(rank)
            self.excused.discard(rank)
            if self.started:
                self.go_on(rank)
            elif self.nobody_is_missing:
                self.started = True
                for each in self.ready:
                    self.go_on(each)

    def go_on(self, rank: int) -> None:
        """A worker is told to start, and pulls."""
        step = self.state.next_step(rank)
        assert step >= self.next_step[rank]
        if self.mode in BARRIER_MODES and self.calm:
            assert step == 0
        self.next_step[rank] = step
        self.pull(rank)

    @precondition(lambda self: self.lost is None and not self.over and not self.everybody_is_there)
    @rule()
    def everybody_comes(self) -> None:
        for rank in sorted(set(range(WORKERS)) - self.ready - self.finished):
            if rank not in self.attending:
                self.join(rank)
                self.attend(rank)
            self.get_ready(rank)

    @precondition(lambda self: self.training)
    @rule(rank=RANKS)
    def pull(self, rank: int) -> None:
        if rank not in self.ready or rank in self.pushing:
            return
        ready: Ready = SimpleQueue()
        ticket = self.state.pull(rank, ready)
        assert ticket.answer is not None
        assert ticket.answer.version == self.state.version
        self.version[rank] = ticket.answer.version

    # Pushes, block by block.

    @precondition(lambda self: self.training and self.active)
    @rule(ranks=TURNS, lasting=st.booleans())
    def work(self, ranks: list[int], lasting: bool) -> None:
        """In this order, each begins its next push, or sends the next block of the one that it has begun."""
        for rank in ranks:
            if rank in self.undelivered:
                self.deliver_block(rank, lasting)
            elif rank in self.active and rank not in self.pushing:
                self.begin_push(rank)

    def begin_push(self, rank: int) -> None:
        step, ready = self.next_step[rank], SimpleQueue[int | None]()
        ticket = self.state.begin(rank, step, self.version[rank], ready)
        assert ticket.answer is None
        self.pushing[rank] = Pushed(step, ticket, ready)

    @property
    def undelivered(self) -> set[int]:
        return {rank for rank, pushed in self.pushing.items() if pushed.sent < BLOCKS}

    def deliver_block(self, rank: int, lasting: bool = True) -> None:
        pushed = self.pushing[rank]
        before, held, active = self.state.version, self.held, self.active
        self.state.take(pushed.ticket, pushed.sent, self.gradient(rank, pushed.step), lasting=lasting)
        pushed.sent += 1
        if pushed.sent == 1:
            self.the_barrier_opened_exactly_at_quorum(rank, before, held, active)
        else:
            assert self.state.version == before, "blocks after the first decide nothing"
        self.collect_answers()

    def the_barrier_opened_exactly_at_quorum(
        self, rank: int, before: int, held: set[int], active: set[int]
    ) -> None:
        updates = self.state.version - before
        ticket = self.pushing[rank].ticket
        if self.mode in BARRIER_MODES and self.version[rank] < before:
            assert ticket.answer is not None
            assert ticket.answer.dropped
            # Its last step may have been the last that somebody's quorum waited for
            assert updates == 0 or self.next_step[rank] == STEPS - 1
        elif self.mode in QUORUM:
            quorum = min(QUORUM[self.mode], len(active))
            assert (updates >= 1) == (len(held) + 1 >= quorum)
            assert (ticket.answer is not None) == (updates >= 1)
        else:
            assert updates == 1

    def collect_answers(self) -> None:
        """Workers take what may leave, and go on once they have all of an answer."""
        for rank, pushed in list(self.pushing.items()):
            for index in drained(pushed.ready):
                assert index is not None
                assert index not in pushed.received, "a block leaves once"
                pushed.received.add(index)
                self.was_applied(rank, pushed, index)
            if len(pushed.received) < BLOCKS:
                continue
            assert pushed.ticket.answer is not None
            if pushed.sent == BLOCKS:
                self.take_answer(rank, pushed)

    def was_applied(self, rank: int, pushed: Pushed, index: int) -> None:
        """No block leaves before the update that its gradient is part of has been applied to it."""
        assert pushed.ticket.answer is not None
        place = index * PLACES + rank * STEPS + pushed.step
        applied = float(self.state.aggregator.parameters[place]) != 0
        dropped = pushed.ticket.answer.dropped
        # From a restarted server's checkpoint a block may have what is then dropped.
        assert applied != dropped or (dropped and not self.calm)
        if self.mode is Mode.SSP and self.calm:
            self.has_what_the_bound_promises(index, pushed.step + 1)

    def has_what_the_bound_promises(self, index: int, clock: int) -> None:
        """Everybody's gradients of the first steps, but for the last ones that the bound allows for."""
        block = self.state.aggregator.parameters[index * PLACES : (index + 1) * PLACES]
        assert block.view(WORKERS, STEPS)[:, : max(clock - (TOLD.staleness_bound or 0), 0)].all()

    def take_answer(self, rank: int, pushed: Pushed) -> None:
        answer = pushed.ticket.answer
        assert answer is not None
        assert answer.version >= self.version[rank]
        if answer.dropped:
            self.dropped.add((rank, pushed.step))
        self.version[rank], self.next_step[rank] = answer.version, pushed.step + 1
        self.last[rank] = self.pushing.pop(rank)

    # What networks do.

    @precondition(lambda self: self.training and self.pushing)
    @rule(data=st.data())
    def lose_the_connection(self, data: st.DataObject) -> None:
        """The present push is made again; what had come of it does not count twice, whichever way it comes."""
        rank = data.draw(st.sampled_from(sorted(self.pushing)))
        old = self.pushing[rank]
        ready = SimpleQueue[int | None]()
        ticket = self.state.begin(rank, old.step, self.version[rank], ready)
        assert ticket is old.ticket
        assert drained(old.ready)[-1:] == [None], "the old connection is given up"
        self.repeats += 1
        before = self.state.aggregator.parameters.clone()
        for index in range(old.sent):
            assert not self.state.take(ticket, index, self.gradient(rank, old.step))
        assert torch.equal(self.state.aggregator.parameters, before)
        self.pushing[rank] = Pushed(old.step, ticket, ready, old.sent)
        self.collect_answers()

    @precondition(lambda self: self.training and any(rank in self.ready for rank in self.last))
    @rule(data=st.data())
    def push_an_old_step_again(self, data: st.DataObject) -> None:
        """A message came twice, or late; or an answer was lost."""
        rank = data.draw(st.sampled_from(sorted(self.last.keys() & self.ready)))
        step = data.draw(st.integers(0, self.next_step[rank] - 1))
        before, ready = self.state.aggregator.parameters.clone(), SimpleQueue[int | None]()
        ticket = self.state.begin(rank, step, 0, ready)
        self.repeats += 1
        for index in range(BLOCKS):
            assert not self.state.take(ticket, index, self.gradient(rank, step))
        assert torch.equal(self.state.aggregator.parameters, before)
        assert ticket.answer is not None
        assert ticket.answer.version <= self.state.version

    @precondition(lambda self: self.training)
    @rule(rank=RANKS, ahead=st.integers(1, 3))
    def push_what_cannot_be(self, rank: int, ahead: int) -> None:
        if rank not in self.ready:
            with pytest.raises(TooEarly):
                self.state.begin(rank, self.next_step[rank], 0, SimpleQueue())
            return
        # Whether a worker that was answered received all of it, the server cannot know.
        over = self.released(rank) if rank not in self.undelivered else self.next_step[rank]
        with pytest.raises(InvalidMessage):
            self.state.begin(rank, over + ahead, self.version[rank], SimpleQueue())
        if rank in self.active and rank not in self.pushing:
            with pytest.raises(InvalidMessage):
                self.state.begin(rank, self.next_step[rank], self.state.version + ahead, SimpleQueue())

    # Losses and returns.

    # Mostly not before there is something to lose.
    @precondition(lambda self: self.attending and (not self.started or sum(self.next_step.values()) > 2))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.attending)))
        self.state.leave(rank)
        self.attending.discard(rank)
        self.ready.discard(rank)
        late = self.pushing.pop(rank, None)
        self.last.pop(rank, None)
        if rank in self.finished or self.lost is not None:
            return
        self.calm = self.calm and not self.started
        if not self.survives:
            self.lost = rank
            return
        # What a new process does not know, the server does.
        self.next_step[rank] = self.version[rank] = 0
        if self.started or rank in self.excused:
            self.away.add(rank)
        if self.started:
            self.excused.add(rank)
            self.the_others_finished()
        if late is not None and late.sent < BLOCKS:
            before = self.state.aggregator.parameters.clone()
            assert not self.state.take(late.ticket, late.sent, self.gradient(rank, late.step))
            assert torch.equal(self.state.aggregator.parameters, before)
            assert None in drained(late.ready)
        self.collect_answers()

    @precondition(lambda self: self.training)
    @rule(rank=RANKS)
    def finish(self, rank: int) -> None:
        if rank not in self.ready or self.next_step[rank] < STEPS:
            pushed_all = (
                rank in self.pushing and self.pushing[rank].sent and self.next_step[rank] == STEPS - 1
            )
            if not pushed_all:
                with pytest.raises(TooEarly):
                    self.state.finish(rank, 0)
            return
        self.state.finish(rank, self.version[rank])
        self.finished.add(rank)
        self.the_others_finished()

    def the_others_finished(self) -> None:
        there = set(range(WORKERS)) - self.away
        self.over = self.over or (bool(self.finished) and there <= self.finished)
        assert self.state.wait_over(timeout=0) == self.over

    # Restarts.

    @precondition(lambda self: self.lost is None and not self.over)
    @rule(meanwhile=TURNS)
    def take_a_checkpoint(self, meanwhile: list[int]) -> None:
        """As the server writes it, and as another one reads it. Blocks are copied after the facts were."""
        facts = checkpoint_of(self.state, 0).facts
        if self.training:
            self.work(meanwhile, lasting=True)
        written = b"".join(dump(Checkpoint(checkpoint_of(self.state, 0).tensors, facts), OWNER))
        self.checkpoints.append((load(bytearray(written), OWNER), set(self.finished)))

    @precondition(lambda self: self.lost is None and not self.over and self.usable_checkpoints)
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """The server is gone; another one goes on from any moment before, and waits for who was there then."""
        usable = self.usable_checkpoints
        checkpoint = usable[data.draw(st.integers(0, len(usable) - 1))]
        self.calm = False
        self.state = self.new_state()
        resume(self.state, checkpoint)
        # A worker that was away may be started again, and knows nothing.
        self.joined = {member["rank"] for member in checkpoint.facts["members"]}
        self.excused = {member["rank"] for member in checkpoint.facts["members"] if member["excused"]}
        self.attending, self.ready, self.away = set(), set(), set(self.excused)
        self.started = False
        self.pushing, self.last, self.dropped = {}, {}, set()
        self.last_version, self.seen = self.state.version, self.state.aggregator.parameters.clone()
        self.version = dict.fromkeys(range(WORKERS), 0)

    @property
    def usable_checkpoints(self) -> list[Checkpoint]:
        """Who has finished does not come again: the checkpoint must know it."""
        return [checkpoint for checkpoint, finished in self.checkpoints if finished == self.finished]

    @precondition(lambda self: self.lost is not None)
    @rule(rank=RANKS)
    def go_on_after_the_end(self, rank: int) -> None:
        reason = f"worker {self.lost} vanished"
        with pytest.raises(TrainingEnded, match=reason):
            self.state.begin(rank, self.next_step[rank], self.version[rank], SimpleQueue())
        news = self.state.watch(rank, News(Phase.TRAINING), 0) if rank in self.joined else None
        assert news is None or news.phase is Phase.ENDED
        ending = self.state.ending
        assert ending is not None
        assert ending.lost_peer == f"worker {self.lost}"

    # What is always true.

    @invariant()
    def no_gradient_is_applied_twice_to_a_block(self) -> None:
        """Once in, its weight stays what it was; and it is one that the mode gives."""
        parameters = self.state.aggregator.parameters
        before, self.seen = self.seen, parameters.clone()
        assert torch.equal(parameters[before != 0], before[before != 0])
        for weight in (-parameters[parameters != 0]).tolist():
            if self.mode is Mode.STALENESS_AWARE:
                assert 1 / (WORKERS * STEPS) <= weight <= 1
            else:
                assert weight == pytest.approx(1 / round(1 / weight), rel=1e-5)
                # A worker that was lost and is back may have two gradients in one update.
                assert weight >= 1 / (WORKERS if self.calm else 2 * WORKERS) * (1 - 1e-5)

    @invariant()
    def every_answered_gradient_is_in_every_block_unless_it_was_dropped(self) -> None:
        weights = (-self.state.aggregator.parameters).reshape(BLOCKS, WORKERS, STEPS)
        if self.calm:
            for rank, step in self.dropped:
                assert not weights[:, rank, step].any()
            for rank, steps in self.next_step.items():
                for step in set(range(steps)) - {step for who, step in self.dropped if who == rank}:
                    assert weights[:, rank, step].all()

    @invariant()
    def the_version_only_grows(self) -> None:
        assert self.state.version >= self.last_version
        self.last_version = self.state.version

    @invariant()
    def nobody_is_held_who_might_go_on(self) -> None:
        """While somebody waits, somebody else computes, or sends; and the slowest never waits in ssp."""
        if not self.training or not self.held:
            return
        assert self.active - self.held
        if self.mode in QUORUM:
            assert len(self.held) < min(QUORUM[self.mode], len(self.active))
        if self.mode is Mode.SSP and self.calm:
            clocks = [self.released(r) + (r in self.held) for r in range(WORKERS)]
            assert max(clocks) - min(clocks) <= (TOLD.staleness_bound or 0) + 1

    @invariant()
    def blocks_of_an_answer_wait_only_for_blocks_that_are_not_there(self) -> None:
        """Where all that was begun is there, all that is answered has left."""
        if self.training and not self.undelivered:
            for rank, pushed in self.pushing.items():
                assert rank in self.held or len(pushed.received) == BLOCKS

    @invariant()
    def the_figures_are_exact(self) -> None:
        summary = self.state.summary()
        if self.calm:
            assert summary["repeated_pushes"] == self.repeats
            assert summary["global_steps_completed"] == self.state.version
            answered = {r: p for r, p in self.pushing.items() if p.ticket.answer is not None}
            late = sum(p.ticket.dropped for p in answered.values())
            assert summary["dropped_gradients"] == len(self.dropped) + late
            if self.mode is not Mode.SSP:
                taken = sum(self.next_step.values()) + len(answered) - len(self.dropped) - late
                assert summary["gradients_processed"] == taken

    def teardown(self) -> None:
        """However it came here: who is still there comes to the end."""
        try:
            if self.training and not self.over and self.ready:
                self.everybody_left_finishes()
        finally:
            self.stack.close()

    def everybody_left_finishes(self) -> None:
        for rank in self.attending - self.ready:
            self.state.leave(rank)
            self.state.leave(rank)
        if not self.survives and self.attending != self.ready:
            return
        for _ in range(WORKERS * STEPS + 1):
            for rank in sorted(self.active - self.pushing.keys()):
                self.begin_push(rank)
            for rank in sorted(self.undelivered, reverse=True):
                while rank in self.undelivered:
                    self.deliver_block(rank)
            self.collect_answers()
        assert not self.active
        for rank in self.ready - self.finished:
            self.state.finish(rank, self.version[rank])
        assert self.state.wait_over(timeout=0)
        assert self.state.ending is None


def drained(ready: Ready) -> list[int | None]:
    return list(_drain(ready))


def _drain(ready: Ready) -> Iterator[int | None]:
    while not ready.empty():
        yield ready.get_nowait()


def machine_of(mode: Mode) -> Any:
    test = type(f"Protocol_{mode.name}", (Protocol,), {"mode": mode}).TestCase
    test.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
    return test


for _mode in Mode:
    globals()[f"Test_{_mode.name}"] = machine_of(_mode)


@pytest.mark.parametrize("mode", Mode)
def test_every_worker_comes_to_the_end_in_whatever_order_they_push(mode: Mode) -> None:
    machine = type("Whole", (Protocol,), {"mode": mode})()
    machine.everybody_comes()
    machine.teardown()
    assert set(machine.next_step.values()) == {STEPS}
