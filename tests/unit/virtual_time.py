"""Training in virtual time: the server's real state, policies and accounting, and workers that only draw durations.

A discrete-event simulation: no gRPC, no threads, no sleeping. A worker computes for as long as its draw says,
pushes, and goes on when it is answered; when it hears that its work is in vain it pushes at once, as real ones do.
"""

import heapq
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch

from contract.aggregation import Aggregation, Mode
from contract.compute import Compute
from contract.draws import draw_seconds
from runtime.exchange import News, Phase, Ticket
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.state import ServerState


@dataclass
class Worker:
    """Where a simulated worker is."""

    version: int = 0
    step: int = 0
    """Pushed so far; also the step that it computes."""
    attempt: int = -1
    """Which of the planned arrivals is its present one; a cancelled step gets a new one."""
    ticket: Ticket | None = None
    news: News = field(default=News(Phase.TRAINING))


class Simulation:
    """One experiment; afterwards `state.summary()` says what the server measured."""

    def __init__(self, mode: Mode, workers: int, steps: int, compute: Compute, **told: Any) -> None:
        """`steps`: of each worker; `told`: fields of the study's `aggregation`."""
        self.now = 0.0
        self.seed = 0
        self.steps = steps
        self.compute = compute
        self.largest_gap = 0
        """Between the clocks (steps done) of any two workers, at any time."""
        self.workers = [Worker() for _ in range(workers)]
        self._arrivals: list[tuple[float, int, int]] = []
        self._attempts = count()
        parameters = torch.zeros(1)
        self.state = ServerState(
            workers=workers,
            parameters=parameters,
            optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
            policy=policy_for(mode, workers, Aggregation(**told)),
            clock=lambda: self.now,
        )
        for rank in range(workers):
            self.state.join(rank)
            self.state.attend(rank)
            self.state.ready(rank, 1, steps)
        for rank in range(workers):
            self._compute(rank)

    def run(self, until: float = float("inf")) -> dict[str, Any]:
        """Train to the end, or to a time (seconds); returns the fields of a ServerSummary."""
        while self._arrivals and self._arrivals[0][0] <= until:
            when, attempt, rank = heapq.heappop(self._arrivals)
            if attempt == self.workers[rank].attempt:
                self.now = when
                self._push(rank)
        if until == float("inf"):
            assert all(worker.step == self.steps and not worker.ticket for worker in self.workers)
        return self.state.summary()

    def _compute(self, rank: int) -> None:
        worker = self.workers[rank]
        if worker.step < self.steps:
            self._arrive(rank, self.now + draw_seconds(self.seed, rank, worker.step, self.compute))

    def _arrive(self, rank: int, when: float) -> None:
        self.workers[rank].attempt = attempt = next(self._attempts)
        heapq.heappush(self._arrivals, (when, attempt, rank))

    def _push(self, rank: int) -> None:
        worker, before = self.workers[rank], self.state.version
        worker.ticket = self.state.push(rank, worker.step, worker.version, torch.zeros(1))
        worker.step += 1
        clocks = [other.step for other in self.workers]
        self.largest_gap = max(self.largest_gap, max(clocks) - min(clocks))
        # Where no update was made, there is news at most for who pushed.
        for other in range(len(self.workers)) if self.state.version > before else [rank]:
            self._hear(other)

    def _hear(self, rank: int) -> None:
        """Go on with an answer that has come; stop computing what will be dropped."""
        worker = self.workers[rank]
        if worker.ticket is not None and (answer := worker.ticket.answer) is not None:
            worker.version, worker.ticket = answer.version, None
            self._compute(rank)
        news = self.state.watch(rank, worker.news, timeout=0)
        assert news is not None
        if news.superseded > worker.news.superseded and worker.ticket is None:
            worker.news = news
            if news.superseded > worker.version and worker.step < self.steps:
                self._arrive(rank, self.now)
