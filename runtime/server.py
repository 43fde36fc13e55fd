"""The parameter server: listen, announce, wait for the workers, let them train, say how it went.

Runs as a task of its own; knows nothing of data sets or of how gradients are made.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from contract.catalogue import images_of
from contract.errors import TrainingFailed
from contract.metrics import ServerInterval, ServerSummary, TaskStarted
from contract.task import TaskEnvironment
from runtime import liveness
from runtime.device import CPU
from runtime.emitter import Emitter
from runtime.ending import Ending
from runtime.model import build_model
from runtime.optimizer import optimizer_for
from runtime.parameters import FlatModel
from runtime.policy import policy_for
from runtime.process import Stopped, host_facts
from runtime.rendezvous import Rendezvous
from runtime.schedule import Schedule
from runtime.servicer import Servicer
from runtime.state import ServerState
from runtime.task_metadata import TaskMetadata
from runtime.wire.parameter_server_pb2_grpc import add_ParameterServerServicer_to_server

INTERVAL_SECONDS = 2.0
"""How often the server says what it did."""


def run_server(environment: TaskEnvironment, emitter: Emitter) -> None:
    """Serve one experiment to its end. Raises LockstepError if training did not finish."""
    deadline = time.monotonic() + environment.experiment_timeout_seconds
    state = _initial_state(environment)
    server = _announced_server(environment, state, emitter)
    try:
        _supervise(environment, state, deadline, emitter)
    except Stopped as stop:
        state.end(Ending(f"the server was {stop}"))
        raise
    finally:
        # The last words to the workers: why it ended, or the parameters that the last of them must test.
        state.wait_left(liveness.LEAVE_SECONDS)
        server.stop(liveness.FAREWELL_SECONDS).wait()


def _initial_state(environment: TaskEnvironment) -> ServerState:
    workers = environment.total_workers_expected
    images = images_of(environment.dataset, environment.model)
    parameters = FlatModel(build_model(environment.model, images, environment.seed)).parameters
    return ServerState(
        workers=workers,
        parameters=parameters,
        optimizer=optimizer_for(
            environment.optimizer,
            parameters,
            learning_rate=environment.learning_rate,
            momentum=environment.momentum,
            weight_decay=environment.weight_decay,
        ),
        policy=policy_for(environment.server_mode, workers, environment.aggregation),
        schedule=Schedule(
            epochs=environment.epochs,
            name=environment.schedule,
            decay_epochs=environment.decay_epochs,
            decay_factor=environment.decay_factor,
            warmup_epochs=environment.warmup_epochs,
        ),
    )


def _announced_server(environment: TaskEnvironment, state: ServerState, emitter: Emitter) -> Any:
    """A server that listens and whose address is known to who waits for it. Raises TrainingFailed."""
    metadata = TaskMetadata(os.environ)
    rendezvous = Rendezvous(environment) if environment.table_name else None
    try:
        server, port = _listen(environment, state)
        address = metadata.address if rendezvous else _interface(environment)
        emitter.emit(
            TaskStarted,
            **host_facts(),
            device=CPU.type,
            task_arn=metadata.task_arn,
            parameters=state.length,
            train_samples=0,
            test_samples=0,
        )
        emitter.note(f"parameter server listening on {address}:{port}")
        if rendezvous:
            rendezvous.announce(f"{address}:{port}")
    except (Exception, Stopped) as error:
        if rendezvous:
            rendezvous.give_up(str(error))
        raise
    return server


def _listen(environment: TaskEnvironment, state: ServerState) -> tuple[Any, int]:
    """A started gRPC server and its port. Raises TrainingFailed if the port is taken."""
    workers = environment.total_workers_expected
    server = grpc.server(
        # A worker holds one thread to attend and one to push; the rest is for joins and strangers.
        ThreadPoolExecutor(max_workers=2 * workers + 8, thread_name_prefix="rpc"),
        options=liveness.server_options(state.length),
    )
    servicer = Servicer(
        state,
        study=environment.study_id,
        experiment=environment.experiment_name,
    )
    add_ParameterServerServicer_to_server(servicer, server)
    wanted = f"{_interface(environment)}:{environment.server_port}"
    try:
        port = server.add_insecure_port(wanted)
    except RuntimeError as error:
        raise TrainingFailed(f"the server cannot listen on {wanted}: is the port taken?") from error
    server.start()
    return server, port


def _interface(environment: TaskEnvironment) -> str:
    """Where to listen: a task that announces itself on all interfaces, any other on loopback only."""
    if given := os.environ.get("TASK_ADDRESS"):
        return given
    return "0.0.0.0" if environment.table_name else "127.0.0.1"  # noqa: S104 - its security group guards it


def _supervise(environment: TaskEnvironment, state: ServerState, deadline: float, emitter: Emitter) -> None:
    """Wait for the workers, then for the end of training. Raises LockstepError if that is not a good one."""
    patience = min(liveness.JOIN_SECONDS, deadline - time.monotonic())
    if missing := state.wait_started(patience):
        ranks = ", ".join(map(str, missing))
        state.end(Ending(f"not all workers joined within {patience:.0f} s: missing ranks {ranks}"))
    while not state.wait_over(min(INTERVAL_SECONDS, max(deadline - time.monotonic(), 0))):
        if time.monotonic() >= deadline:
            seconds = environment.experiment_timeout_seconds
            state.end(Ending(f"training did not end within EXPERIMENT_TIMEOUT_SECONDS={seconds}"))
        else:
            emitter.emit(ServerInterval, **state.interval())
    if state.ending:
        raise state.ending.error()
    emitter.emit(ServerInterval, **state.interval())
    emitter.emit(
        ServerSummary,
        mode=environment.server_mode,
        total_workers=environment.total_workers_expected,
        **state.summary(),
    )
