"""The parameter server: listen, announce, wait for the workers, let them train, say how it went.

Runs as a task of its own; knows nothing of data sets or of how gradients are made.
"""

import os
import time
from functools import partial

from contract.catalogue import images_of
from contract.errors import LockstepError, TrainingFailed
from contract.metrics import INTERVAL_SECONDS, ServerInterval, ServerSummary, TaskStarted
from contract.task import TaskEnvironment
from runtime import liveness
from runtime.checkpoint_store import CheckpointStore, store_for
from runtime.checkpoint_writer import CheckpointWriter
from runtime.compression import codec_for
from runtime.device import CPU
from runtime.emitter import Emitter
from runtime.ending import Ending
from runtime.last_words import LastWords
from runtime.listening import Listening
from runtime.model import build_model
from runtime.optimizer import optimizer_for
from runtime.parameters import FlatModel
from runtime.policy import policy_for
from runtime.process import Stop, host_facts
from runtime.rendezvous import Rendezvous
from runtime.resumption import ATTEMPT, checkpoint_of, resume
from runtime.schedule import Schedule
from runtime.sharded_connection import shard_slices
from runtime.state import ServerState
from runtime.task_metadata import TaskMetadata
from runtime.trust import Identity, Trust, token_by_hand


def run_server(environment: TaskEnvironment, emitter: Emitter, last_words: LastWords) -> None:
    """Serve one experiment to its end. Raises LockstepError if training did not finish."""
    deadline = time.monotonic() + environment.experiment_timeout_seconds
    state = _initial_state(environment)
    store = _checkpoint_store(environment, emitter)
    if store is not None:
        _go_on(state, store, emitter)
    writer = _checkpoint_writer(environment, state, store, emitter)
    server = _announced_server(environment, state, writer, emitter, last_words)
    if writer is not None:
        writer.start()
    last_words.before_stop = lambda stop: _stop(stop, state, server, writer)
    try:
        _supervise(environment, state, server, deadline, emitter)
        if writer is not None:
            writer.stop(final=False)
        _conclude(environment, state, server, writer, last_words)
    except LockstepError as error:
        # Before workers are let go: who is told of their ends may stop this task, which is then not why it ended.
        last_words.failed(error)
        raise
    finally:
        _let_go(state, deadline)
        server.stop()


def _stop(stop: Stop, state: ServerState, server: Listening, writer: CheckpointWriter | None) -> None:
    """End in the middle of training, which the main thread supervises until the process ends."""
    if writer is None:
        state.end(Ending(f"the server was {stop.reason}"))
        state.wait_left(liveness.LEAVE_SECONDS)
    else:
        # Nothing comes after the last checkpoint. Nobody is told: workers wait for another server.
        server.data.close()
        writer.stop(final=True)
    server.stop()


def _let_go(state: ServerState, deadline: float) -> None:
    """Wait for the workers to hear the last words: why it ended, or the parameters that the last one must test.

    These may take longer than any step: they come whole, also where what is trained with is compressed. Whoever
    vanishes meanwhile has left.
    """
    if state.ending:
        state.wait_left(liveness.LEAVE_SECONDS)
    elif state.wait_over(0):
        state.wait_left(max(liveness.LAST_PULL_SECONDS, deadline - time.monotonic()))


def _checkpoint_store(environment: TaskEnvironment, emitter: Emitter) -> CheckpointStore | None:
    """Where this server's checkpoints are, if it keeps some. Raises TrainingFailed if nobody said where."""
    if environment.checkpoint_seconds is None:
        return None
    if not environment.checkpoint_location:
        raise TrainingFailed("CHECKPOINT_LOCATION is not set; expected a folder or s3://bucket/prefix")
    return store_for(
        environment.checkpoint_location, environment.study_id, environment.experiment_name, emitter.note
    )


def _go_on(state: ServerState, store: CheckpointStore, emitter: Emitter) -> None:
    """Take up what a server before this one left, if there was one."""
    newest = store.newest()
    if newest is not None:
        resume(state, newest)
        emitter.attempt = store.attempt = newest.facts[ATTEMPT] + 1
        emitter.note(f"going on from a checkpoint of version {state.version}")


def _checkpoint_writer(
    environment: TaskEnvironment, state: ServerState, store: CheckpointStore | None, emitter: Emitter
) -> CheckpointWriter | None:
    if store is None or environment.checkpoint_seconds is None:
        return None
    return CheckpointWriter(
        store,
        lambda: checkpoint_of(state, emitter.attempt),
        environment.checkpoint_seconds,
        warn=emitter.note,
        give_up=lambda error: state.end(Ending(str(error))),
    )


def _initial_state(environment: TaskEnvironment) -> ServerState:
    workers = environment.total_workers_expected
    images = images_of(environment.dataset, environment.model)
    whole = FlatModel(build_model(environment.model, images, environment.seed)).parameters
    parameters = whole[shard_slices(len(whole), environment.shards)[environment.shard_index]].clone()
    return ServerState(
        workers=workers,
        parameters=parameters,
        optimizer=partial(
            optimizer_for,
            environment.optimizer,
            learning_rate=environment.learning_rate,
            momentum=environment.momentum,
            weight_decay=environment.weight_decay,
        ),
        policy=policy_for(environment.server_mode, workers, environment.aggregation),
        survives_loss=environment.on_worker_loss == "continue",
        codec=codec_for(environment.compression, environment.topk_ratio),
        schedule=Schedule(
            epochs=environment.epochs,
            name=environment.schedule,
            decay_epochs=environment.decay_epochs,
            decay_factor=environment.decay_factor,
            warmup_epochs=environment.warmup_epochs,
        ),
    )


def _announced_server(
    environment: TaskEnvironment,
    state: ServerState,
    writer: CheckpointWriter | None,
    emitter: Emitter,
    last_words: LastWords,
) -> Listening:
    """A server that listens and whose address is known to who waits for it. Raises TrainingFailed."""
    metadata = TaskMetadata(os.environ)
    rendezvous = Rendezvous(environment) if environment.table_name else None
    if rendezvous:
        last_words.before_stop = lambda stop: rendezvous.give_up(stop.reason)
    try:
        host = metadata.address if rendezvous else _interface(environment)
        identity = _identity(environment, host)
        server = _listen(environment, state, writer, identity)
        emitter.emit(
            TaskStarted,
            **host_facts(),
            device=CPU.type,
            task_arn=metadata.task_arn,
            parameters=state.length,
            train_samples=0,
            test_samples=0,
        )
        emitter.note(f"parameter server listening on {host}:{server.port}")
        if rendezvous:
            rendezvous.announce(f"{host}:{server.port}", identity.trust)
    except Exception as error:
        last_words.failed(error)
        if rendezvous:
            rendezvous.give_up(str(error))
        raise
    return server


def _identity(environment: TaskEnvironment, host: str) -> Identity:
    """Who is let in: made anew where workers are told by the rendezvous, else what both were started with."""
    if environment.table_name:
        return Identity.make(host, tls=environment.tls)
    if environment.tls:
        raise TrainingFailed("TLS is on, but without TABLE_NAME no worker can learn of the certificate")
    return Identity(Trust(token=token_by_hand(os.environ)))


def _listen(
    environment: TaskEnvironment, state: ServerState, writer: CheckpointWriter | None, identity: Identity
) -> Listening:
    return Listening.on(
        _interface(environment),
        environment.server_port,
        state,
        codec_for(environment.compression, environment.topk_ratio),
        identity,
        study=environment.study_id,
        experiment=environment.experiment_name,
        workers=environment.total_workers_expected,
        keep=writer.write_now if writer else lambda: None,
    )


def _interface(environment: TaskEnvironment) -> str:
    """Where to listen: a task that announces itself on all interfaces, any other on loopback only."""
    if given := os.environ.get("TASK_ADDRESS"):
        return given
    return "0.0.0.0" if environment.table_name else "127.0.0.1"  # noqa: S104 - its security group guards it


def _supervise(
    environment: TaskEnvironment, state: ServerState, server: Listening, deadline: float, emitter: Emitter
) -> None:
    """Wait for the workers, then for the end of training. Raises LockstepError if that is not a good one."""
    way = liveness.RETURN_SECONDS if state.resumed else liveness.JOIN_SECONDS
    patience = min(way, deadline - time.monotonic())
    if missing := state.wait_started(patience):
        ranks = ", ".join(map(str, missing))
        waited = f"not all workers joined within {patience:.0f} s: missing ranks {ranks}"
        if state.start_without_the_missing():
            emitter.note(f"{waited}; the others go on without them")
        else:
            state.end(Ending(waited))
    deserted_at: float | None = None
    while not state.wait_over(min(INTERVAL_SECONDS, max(deadline - time.monotonic(), 0))):
        if time.monotonic() >= deadline:
            seconds = environment.experiment_timeout_seconds
            state.end(Ending(f"training did not end within EXPERIMENT_TIMEOUT_SECONDS={seconds}"))
        else:
            deserted_at = (deserted_at or time.monotonic()) if state.deserted else None
            if deserted_at and time.monotonic() - deserted_at > liveness.REJOIN_SECONDS:
                state.end(
                    Ending(f"every worker is lost, and none came back within {liveness.REJOIN_SECONDS:.0f} s")
                )
            emitter.emit(ServerInterval, **state.interval(), **server.traffic)
    if state.ending:
        raise state.ending.error()
    emitter.emit(ServerInterval, **state.interval(), **server.traffic)


def _conclude(
    environment: TaskEnvironment,
    state: ServerState,
    server: Listening,
    writer: CheckpointWriter | None,
    last_words: LastWords,
) -> None:
    """Say how it went."""
    last_words.done(
        ServerSummary,
        mode=environment.server_mode,
        total_workers=environment.total_workers_expected,
        checkpoints_written=writer.written if writer else 0,
        checkpoint_seconds=writer.seconds if writer else 0.0,
        **state.summary(),
        **server.traffic,
    )
