"""A server that listens, and workers' connections to it, in one process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Barrier

import torch

from contract.aggregation import Mode
from contract.errors import LockstepError
from runtime.compression import codec_for
from runtime.connection import Connection
from runtime.listening import Listening
from runtime.optimizer import MomentumSGD
from runtime.policy import policy_for
from runtime.state import ServerState
from runtime.trust import Identity
from tests.unit.data_plane import EXPERIMENT, PATIENCE, STUDY, sender, wire_of

LENGTH, STEPS = 4, 3


@contextmanager
def workers_of(workers: int, *, keep: Callable[[], None]) -> Iterator[list[Connection]]:
    """Workers that are ready, and have pushed all their steps, at a server that listens on loopback."""
    state = ServerState(
        workers=workers,
        parameters=torch.zeros(LENGTH),
        optimizer=partial(MomentumSGD, learning_rate=1.0, momentum=0.0),
        policy=policy_for(Mode.ASYNC, workers),
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

    def enter(rank: int) -> Connection:
        return Connection(
            f"127.0.0.1:{server.port}",
            sender(rank),
            trust=identity.trust,
            timeout_seconds=PATIENCE,
            abandon=abandon,
        )

    with ExitStack() as opened, ThreadPoolExecutor(workers) as pool:
        opened.callback(server.stop)
        connections = [opened.enter_context(enter(rank)) for rank in range(workers)]
        ready = [pool.submit(each.ready, wire_of(LENGTH), STEPS, STEPS) for each in connections]
        assert [future.result(PATIENCE) for future in ready] == [STEPS] * workers
        yield connections


def test_all_workers_may_finish_at_once_however_long_that_takes_to_keep() -> None:
    """Each holds a call to attend and one to finish, until a checkpoint is written: none waits for another's."""
    workers = 12
    all_wait = Barrier(workers - 1, timeout=10)
    with workers_of(workers, keep=all_wait.wait) as connections, ThreadPoolExecutor(workers) as pool:  # type: ignore[arg-type]  # what it returns is nobody's
        *others, last = connections
        replies = [pool.submit(each.finish, 0) for each in others]
        assert [reply.result(PATIENCE).test_final for reply in replies] == [False] * (workers - 1)
        assert not last.finish(0).test_final
