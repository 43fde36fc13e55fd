"""Servers that listen, and workers' connections to them, in one process."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Barrier
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from contract.aggregation import Mode
from contract.errors import LockstepError, TrainingFailed
from runtime.compression import codec_for
from runtime.connection import Connection
from runtime.data_connection import Exchanged
from runtime.listening import Listening
from runtime.optimizer import MomentumSGD
from runtime.parameters import count_non_finite
from runtime.policy import policy_for
from runtime.sharded_connection import ShardedConnection
from runtime.state import ServerState
from runtime.trust import Identity
from tests.unit.data_plane import EXPERIMENT, PATIENCE, STUDY, sender, wire_of
from tests.unit.local_worker import blocks_of_length

LENGTH, BLOCK_LENGTH = 20, 8
"""Two blocks, and a shorter one."""
STEPS = 3


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with blocks_of_length(BLOCK_LENGTH):
        yield


@contextmanager
def listening(
    workers: int,
    *,
    length: int = LENGTH,
    keep: Callable[[], None] = lambda: None,
    survives_loss: bool = False,
) -> Iterator[tuple[ServerState, Callable[[int], Connection]]]:
    """A server on loopback; and how a rank joins it."""
    state = ServerState(
        workers=workers,
        parameters=torch.zeros(length),
        optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
        policy=policy_for(Mode.ASYNC, workers),
        survives_loss=survives_loss,
    )
    identity = Identity.make("127.0.0.1", tls=False)
    server = Listening.on(
        "127.0.0.1",
        0,
        state,
        codec_for("none", 0.0),
        identity,
        study=STUDY,
        experiment=EXPERIMENT,
        workers=workers,
        keep=keep,
    )

    def abandon(error: LockstepError) -> None:
        raise error

    def join(rank: int) -> Connection:
        return Connection(
            f"127.0.0.1:{server.port}",
            sender(rank),
            trust=identity.trust,
            timeout_seconds=PATIENCE,
            abandon=abandon,
        )

    try:
        yield state, join
    finally:
        server.stop()


def all_ready(connections: Sequence[Connection], next_step: int = 0) -> None:
    with ThreadPoolExecutor(len(connections)) as pool:
        ready = [pool.submit(each.ready, wire_of(LENGTH), STEPS, next_step) for each in connections]
        assert [future.result(PATIENCE) for future in ready] == [next_step] * len(connections)


def test_all_workers_may_finish_at_once_however_long_that_takes_to_keep() -> None:
    """Each holds a call to attend and one to finish, until a checkpoint is written: none waits for another's."""
    workers = 12
    all_wait = Barrier(workers - 1, timeout=25)  # less than a call may take

    def keep() -> None:
        all_wait.wait()

    with (
        listening(workers, keep=keep) as (_, join),
        ExitStack() as opened,
        ThreadPoolExecutor(workers) as pool,
    ):
        *others, last = connections = [opened.enter_context(join(rank)) for rank in range(workers)]
        all_ready(connections, next_step=STEPS)
        replies = [pool.submit(each.finish, 0) for each in others]
        assert [reply.result(PATIENCE).test_final for reply in replies] == [False] * (workers - 1)
        assert not last.finish(0).test_final


@contextmanager
def pushing(servers: int) -> Iterator[tuple[list[ServerState], Callable[[Tensor], Exchanged]]]:
    """A worker at so many servers; and how it pushes a gradient: by one connection, or by one to each."""
    part = LENGTH // servers
    with ExitStack() as opened:
        serving = [
            opened.enter_context(listening(1, length=part, survives_loss=True)) for _ in range(servers)
        ]
        states = [state for state, _ in serving]
        connections = [join(0) for _, join in serving]
        parameters = torch.empty(LENGTH)
        if servers == 1:
            (connection,) = connections
            opened.enter_context(connection)
            all_ready(connections)
            yield states, lambda gradient: connection.push_pull(gradient, 0, 0, into=parameters)
        else:
            sharded = opened.enter_context(ShardedConnection(connections))
            sharded.ready([wire_of(part)] * servers, STEPS, 0)
            yield states, lambda gradient: sharded.push_pull(gradient, 0, into=parameters)


@pytest.mark.parametrize("servers", [1, 2])
def test_a_gradient_that_cannot_be_applied_is_not_pushed_in_part(servers: int) -> None:
    """Though nothing is wrong with it but its last block, or its last server's part."""
    gradient = torch.ones(LENGTH)
    gradient[-2:] = torch.tensor([float("nan"), float("-inf")])
    reason = "worker 0, step 0: gradient refused: 2 of 20 values are NaN or infinite; lower the learning rate"
    with pushing(servers) as (states, push), patch.object(ServerState, "withdraw") as withdraw:
        with pytest.raises(TrainingFailed, match=f"^{reason}$"):
            push(gradient)
        for state in states:
            assert (state.version, state.next_step(0)) == (0, 0)
            assert not state.aggregator.parameters.any()
            assert state.ending is None, "the others go on"
        assert [call.args for call in withdraw.call_args_list] == [(0, reason)] * servers


@pytest.mark.parametrize("servers", [1, 2])
def test_a_gradient_is_looked_at_once_and_that_is_part_of_preparing_it(servers: int) -> None:
    looks: list[int] = []

    def look(values: Tensor) -> int:
        looks.append(values.numel())
        time.sleep(0.2)
        return count_non_finite(values)

    with pushing(servers) as (states, push), patch("runtime.data_connection.count_non_finite", look):
        exchanged = push(torch.ones(LENGTH))
    assert looks == [LENGTH]
    assert exchanged.serialize_seconds >= 0.2
    assert all((state.aggregator.parameters == -1).all() for state in states)
