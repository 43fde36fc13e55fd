"""How a server lets its workers go."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from contract.aggregation import Mode
from runtime import liveness
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.server import _let_go
from runtime.state import ServerState
from tests.unit.local_worker import PATIENCE, LocalWorker, enter


@pytest.mark.parametrize(
    ("last_pull_seconds", "deadline_in"), [(0.0, PATIENCE), (PATIENCE, 0.0)], ids=["slow link", "deadline"]
)
def test_a_server_that_is_done_waits_for_who_has_yet_to_pull(
    last_pull_seconds: float, deadline_in: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "LAST_PULL_SECONDS", last_pull_seconds)
    state = ServerState(
        workers=1,
        parameters=torch.zeros(4),
        optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
        policy=policy_for(Mode.ASYNC, 1),
    )
    enter(state, 0, steps=1)
    worker = LocalWorker(state, 0)
    worker.push_pull(torch.ones(4))
    # Given a worker that must test the final parameters
    assert state.finish(0, tested_version=0) == (1, True)
    with ThreadPoolExecutor(1) as pool:
        let_go = pool.submit(_let_go, state, time.monotonic() + deadline_in)
        # When it takes its time, on however slow a link or short before the experiment's deadline
        with pytest.raises(TimeoutError):
            let_go.result(0.3)
        # Then it is waited for until it has hung up
        state.leave(0)
        let_go.result(PATIENCE)
