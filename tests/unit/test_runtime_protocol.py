"""Any sequence of joins, pushes, duplicates and losses keeps the protocol's promises."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contract.study import Mode
from runtime.membership import AlreadyThere, InvalidMessage, Rejection, TooEarly
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.state import ServerState, TrainingEnded

WORKERS, STEPS, LENGTH = 3, 4, 2
RANKS = st.integers(0, WORKERS - 1)


class AsyncProtocol(RuleBasedStateMachine):
    """Drives the server's state as peers might, and keeps a model of what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters = torch.zeros(LENGTH)
        self.state = ServerState(
            workers=WORKERS,
            parameters=self.parameters,
            optimizer=MomentumSGD(self.parameters, learning_rate=1.0, momentum=0.0),
            policy=policy_for(Mode.ASYNC, WORKERS),
        )
        self.joined: set[int] = set()
        self.attending: set[int] = set()
        self.finished: set[int] = set()
        self.pushed = dict.fromkeys(range(WORKERS), 0)
        self.held_version = dict.fromkeys(range(WORKERS), 0)
        self.stalenesses: list[int] = []
        self.lost: int | None = None

    @property
    def training(self) -> bool:
        return len(self.attending) == WORKERS and self.lost is None

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

    @precondition(lambda self: self.training)
    @rule(rank=RANKS)
    def push(self, rank: int) -> None:
        step, version = self.pushed[rank], self.held_version[rank]
        if step == STEPS:
            with pytest.raises(InvalidMessage):
                self.state.receive(rank, step, version)
            return
        self.stalenesses.append(len(self.stalenesses) - version)
        self.state.receive(rank, step, version).fill_(1.0)
        self.held_version[rank] = self.state.push(rank, step, version)[0].version
        self.pushed[rank] += 1

    @precondition(lambda self: self.training)
    @rule(rank=RANKS, step=st.integers(0, STEPS), ahead=st.integers(0, 2))
    def push_what_is_not_next(self, rank: int, step: int, ahead: int) -> None:
        if step == self.pushed[rank] and step < STEPS and not ahead:
            return
        with pytest.raises(Rejection):
            self.state.receive(rank, step, len(self.stalenesses) + ahead)

    @precondition(lambda self: self.training)
    @rule(rank=RANKS)
    def finish(self, rank: int) -> None:
        if self.pushed[rank] < STEPS:
            with pytest.raises(TooEarly):
                self.state.finish(rank, self.held_version[rank])
        else:
            self.state.finish(rank, self.held_version[rank])
            self.finished.add(rank)

    @precondition(lambda self: self.attending)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.attending)))
        self.state.leave(rank)
        if rank not in self.finished and self.lost is None:
            self.lost = rank

    @precondition(lambda self: self.lost is not None)
    @rule(rank=RANKS)
    def go_on_after_the_end(self, rank: int) -> None:
        with pytest.raises(TrainingEnded, match=f"worker {self.lost} vanished"):
            self.state.receive(rank, self.pushed[rank], self.held_version[rank])

    @invariant()
    def every_gradient_was_applied_once(self) -> None:
        assert self.state.version == len(self.stalenesses) == sum(self.pushed.values())
        assert self.parameters.tolist() == [-len(self.stalenesses)] * LENGTH

    @invariant()
    def staleness_is_exact(self) -> None:
        histogram = self.state.summary()["staleness_histogram"]
        assert sum(value * times for value, times in histogram.items()) == sum(self.stalenesses)

    @invariant()
    def the_first_loss_is_the_reason(self) -> None:
        ending = self.state.ending
        assert (ending.lost_peer if ending else None) == (
            None if self.lost is None else f"worker {self.lost}"
        )


AsyncProtocol.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAsyncProtocol = AsyncProtocol.TestCase
