"""Any sequence of joins, pulls, pushes, duplicates, stale messages and losses keeps the promises of every mode."""

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contract.aggregation import Aggregation, Mode
from runtime.exchange import Answer, News, Phase, Snapshot, Ticket
from runtime.membership import AlreadyThere, InvalidMessage, TooEarly
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.state import ServerState, TrainingEnded

WORKERS, STEPS = 3, 4
LENGTH = WORKERS * STEPS
RANKS = st.integers(0, WORKERS - 1)

QUORUM = {Mode.SYNC: 3, Mode.BACKUP: 2, Mode.KSYNC: 2, Mode.KASYNC: 2}
"""Gradients of an update while all workers train; elsewhere 1."""
TOLD = Aggregation(backup_workers=1, staleness_bound=1, k=2, dc_lambda=1e-9)


class Protocol(RuleBasedStateMachine):
    """Drives the server's state as peers might, in one thread, and keeps a model of what must be true.

    The gradient of each (worker, step) is one in a place of its own, so that the parameters, with a learning
    rate of one, say which gradients were applied, how often, and with what weight.
    """

    mode = Mode.SYNC

    def __init__(self) -> None:
        super().__init__()
        self.parameters = torch.zeros(LENGTH)
        self.state = ServerState(
            workers=WORKERS,
            parameters=self.parameters,
            optimizer=MomentumSGD(self.parameters, learning_rate=1.0, momentum=0.0),
            policy=policy_for(self.mode, WORKERS, TOLD),
        )
        self.joined: set[int] = set()
        self.attending: set[int] = set()
        self.finished: set[int] = set()
        self.pushed = dict.fromkeys(range(WORKERS), 0)
        self.version = dict.fromkeys(range(WORKERS), 0)
        self.pulled: set[int] = set()
        self.waiting: dict[int, Ticket] = {}
        self.dropped: set[tuple[int, int]] = set()
        self.repeats = 0
        self.last_version = 0
        self.lost: int | None = None

    @property
    def training(self) -> bool:
        return len(self.attending) == WORKERS and self.lost is None

    @property
    def still_training(self) -> int:
        """Workers that were not yet released from their last step."""
        return sum(self.pushed[rank] < STEPS or rank in self.waiting for rank in range(WORKERS))

    @rule(rank=RANKS)
    def join(self, rank: int) -> None:
        if self.lost is not None:
            with pytest.raises(TrainingEnded):
                self.state.join(rank, LENGTH, STEPS)
        elif rank in self.attending:
            with pytest.raises(AlreadyThere):
                self.state.join(rank, LENGTH, STEPS)
        else:
            self.state.join(rank, LENGTH, STEPS)
            self.joined.add(rank)

    @precondition(lambda self: self.lost is None)
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

    @precondition(lambda self: self.lost is None and not self.training)
    @rule()
    def everybody_comes(self) -> None:
        for rank in sorted(set(range(WORKERS)) - self.attending):
            self.join(rank)
            self.attend(rank)
        for rank in range(WORKERS):
            self.pull(rank)

    @precondition(lambda self: self.training)
    @rule(rank=RANKS)
    def pull(self, rank: int) -> None:
        if rank not in self.waiting:
            self.version[rank] = self.state.pull(rank).version
            self.pulled.add(rank)
            assert self.version[rank] == self.state.version

    @precondition(lambda self: self.training and self.pulled)
    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.pulled)))
        step, version = self.pushed[rank], self.version[rank]
        if rank in self.waiting:
            return
        if step == STEPS:
            with pytest.raises(InvalidMessage):
                self.state.receive(rank, step, version)
            return
        slot = self.state.receive(rank, step, version)
        assert slot is not None
        slot.zero_()
        slot[rank * STEPS + step] = 1.0
        before, others = self.state.version, len(self.waiting)
        self.waiting[rank] = self.state.submit(rank, step, version)
        self.pushed[rank] += 1
        self.the_barrier_opened_exactly_at_quorum(rank, before, others, stale=version < before)
        self.collect_answers()

    def the_barrier_opened_exactly_at_quorum(self, rank: int, before: int, others: int, stale: bool) -> None:
        updates = self.state.version - before
        if self.mode in {Mode.SYNC, Mode.BACKUP, Mode.KSYNC} and stale:
            answer = self.waiting[rank].answer
            assert answer is not None
            assert answer.dropped
            # Its last step may have been the last that somebody's quorum waited for
            assert updates == 0 or self.pushed[rank] == STEPS
        elif self.mode in QUORUM:
            quorum = min(QUORUM[self.mode], self.still_training)
            assert (updates >= 1) == (others + 1 >= quorum)
        else:
            assert updates == 1

    def collect_answers(self) -> None:
        for rank, ticket in list(self.waiting.items()):
            if ticket.answer is not None:
                del self.waiting[rank]
                self.take(rank, ticket.push.step, ticket.answer)

    def take(self, rank: int, step: int, answer: Answer) -> None:
        assert answer.snapshot.version >= self.version[rank]
        self.version[rank] = answer.snapshot.version
        if answer.dropped:
            self.dropped.add((rank, step))

    @precondition(lambda self: self.training and any(self.pushed.values()))
    @rule(data=st.data())
    def push_again(self, data: st.DataObject) -> None:
        """An answer was lost, or a message came twice, or late."""
        rank = data.draw(st.sampled_from([rank for rank, pushed in self.pushed.items() if pushed]))
        step = data.draw(st.integers(0, self.pushed[rank] - 1))
        before = self.parameters.clone()
        assert self.state.receive(rank, step, 0) is None
        ticket = self.state.submit(rank, step, 0)
        self.repeats += 1
        assert torch.equal(self.parameters, before)
        waits = rank in self.waiting and step == self.pushed[rank] - 1
        if waits:
            assert ticket is self.waiting[rank]
        else:
            assert ticket.answer == Answer(Snapshot(self.state.version, self.parameters.numpy().tobytes()))
            if step == self.pushed[rank] - 1:
                self.take(rank, step, ticket.answer)

    @precondition(lambda self: self.training)
    @rule(rank=RANKS, ahead=st.integers(1, 3))
    def push_what_cannot_be(self, rank: int, ahead: int) -> None:
        with pytest.raises(InvalidMessage):
            self.state.receive(rank, self.pushed[rank] + ahead, self.version[rank])
        if self.pushed[rank] < STEPS:
            with pytest.raises(InvalidMessage):
                self.state.receive(rank, self.pushed[rank], self.state.version + ahead)

    @precondition(lambda self: self.training)
    @rule(rank=RANKS)
    def finish(self, rank: int) -> None:
        if self.pushed[rank] < STEPS:
            with pytest.raises(TooEarly):
                self.state.finish(rank, self.version[rank])
        elif rank not in self.waiting:
            self.state.finish(rank, self.version[rank])
            self.finished.add(rank)

    # A crash ends the run: mostly not before there is something to lose.
    @precondition(lambda self: self.attending and (not self.training or sum(self.pushed.values()) > STEPS))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.attending)))
        self.state.leave(rank)
        if rank not in self.finished and self.lost is None:
            self.lost = rank

    @precondition(lambda self: self.lost is not None)
    @rule(rank=RANKS)
    def go_on_after_the_end(self, rank: int) -> None:
        reason = f"worker {self.lost} vanished"
        with pytest.raises(TrainingEnded, match=reason):
            self.state.receive(rank, self.pushed[rank], self.version[rank])
        news = self.state.watch(rank, News(Phase.TRAINING), 0) if rank in self.joined else None
        assert news is None or news.phase is Phase.ENDED

    @invariant()
    def every_gradient_counts_once_or_is_dropped_or_waits(self) -> None:
        weights = (-self.parameters).reshape(WORKERS, STEPS).tolist()
        for rank, of_steps in enumerate(weights):
            for step, weight in enumerate(of_steps):
                held = rank in self.waiting and step == self.pushed[rank] - 1
                if step >= self.pushed[rank] or (rank, step) in self.dropped:
                    assert weight == 0
                elif not held:
                    self.assert_counted(weight)

    def assert_counted(self, weight: float) -> None:
        if self.mode is Mode.STALENESS_AWARE:
            assert 1 / (WORKERS * STEPS) <= weight <= 1
        else:
            assert weight == pytest.approx(1 / round(1 / weight), rel=1e-5)
            assert 1 / QUORUM.get(self.mode, 1) * (1 - 1e-5) <= weight <= 1

    @invariant()
    def the_version_only_grows(self) -> None:
        assert self.state.version >= self.last_version
        self.last_version = self.state.version

    @invariant()
    def somebody_can_go_on(self) -> None:
        """Nobody waits forever: while somebody waits, somebody else computes, and the slowest never waits in ssp."""
        if not self.training or not self.waiting:
            return
        computing = [r for r in range(WORKERS) if r not in self.waiting and self.pushed[r] < STEPS]
        assert computing
        if self.mode is Mode.SSP:
            clocks = [self.pushed[rank] for rank in range(WORKERS)]
            assert max(clocks) - min(clocks) <= (TOLD.staleness_bound or 0) + 1

    @invariant()
    def the_figures_are_exact(self) -> None:
        summary = self.state.summary()
        assert summary["dropped_gradients"] == len(self.dropped)
        assert summary["repeated_pushes"] == self.repeats
        assert summary["global_steps_completed"] == self.state.version
        if self.mode is not Mode.SSP:
            taken = sum(self.pushed.values()) - len(self.waiting) - len(self.dropped)
            assert summary["gradients_processed"] == taken

    @invariant()
    def the_first_loss_is_the_reason(self) -> None:
        ending = self.state.ending
        expected = None if self.lost is None else f"worker {self.lost}"
        assert (ending.lost_peer if ending else None) == expected


def machine_of(mode: Mode) -> Any:
    test = type(f"Protocol_{mode.name}", (Protocol,), {"mode": mode}).TestCase
    test.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
    return test


for _mode in Mode:
    globals()[f"Test_{_mode.name}"] = machine_of(_mode)


@pytest.mark.parametrize("mode", Mode)
def test_every_worker_comes_to_the_end_in_whatever_order_they_push(mode: Mode) -> None:
    """Round robin with one worker that is always last: all steps are done, everybody is answered."""
    machine = type("Whole", (Protocol,), {"mode": mode})()
    machine.everybody_comes()
    for turn in range(10 * WORKERS * STEPS):
        rank = turn % (WORKERS - 1) if turn % 5 else WORKERS - 1
        if rank in machine.waiting or machine.pushed[rank] == STEPS:
            continue
        slot = machine.state.receive(rank, machine.pushed[rank], machine.version[rank])
        assert slot is not None
        slot.fill_(1.0)
        machine.waiting[rank] = machine.state.submit(rank, machine.pushed[rank], machine.version[rank])
        machine.pushed[rank] += 1
        machine.collect_answers()
    assert not machine.waiting
    assert set(machine.pushed.values()) == {STEPS}
    for rank in range(WORKERS):
        machine.state.finish(rank, 0)
    assert machine.state.wait_over(timeout=0)
    assert machine.state.ending is None
