"""Judge an experiment: from how its tasks ended and what they said, COMPLETED or FAILED with the root cause.

Used by judge_experiment (at once) and reconcile_metrics (when every record is there). Pure.
"""

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from pydantic import BaseModel, ConfigDict

from contract.metrics import MetricRecord, ServerSummary, TaskFailed
from contract.plan import Experiment
from contract.table import Status

SUMMARIES = frozenset({"server_summary", "worker_summary"})
"""Kinds of records that a task ends with that did all it had to do."""

CLOCKS_DIFFER = timedelta(seconds=5)
"""By how much the clocks of Step Functions and ECS may differ."""

_NEVER_RAN = "TaskFailedToStart"
"""ECS's stop code of a task of which nothing has run; the state machine starts another one in its place."""

Emitter = tuple[str, int]
"""(role, rank) of a task."""

_Said = Mapping[Emitter, TaskFailed]
"""The last words of the tasks that gave up."""


class TaskOutcome(BaseModel):
    """How one ECS task ended, as ECS describes it."""

    model_config = ConfigDict(frozen=True)

    role: str
    rank: int = 0
    task_arn: str = ""
    exit_code: int | None = None
    """None where no process ever ended: the task did not start."""
    stop_code: str = ""
    stopped_reason: str = ""
    started_at: str = ""
    """From when AWS bills it: the pull of its image; empty where it did not come so far."""
    stopped_at: str = ""
    last_lines: tuple[str, ...] = ()
    """What it wrote last: of tasks that did not succeed, those nearest to the root."""

    @property
    def succeeded(self) -> bool:
        """Ended by itself, with exit code 0."""
        return self.exit_code == 0 and self._by_itself

    @property
    def says_why(self) -> bool:
        """Ended by itself, with the exit code of a task that says why."""
        return self.exit_code == 1 and self._by_itself

    @property
    def _by_itself(self) -> bool:
        return self.stop_code in {"", "EssentialContainerExited"}

    @property
    def label(self) -> str:
        """How the report calls it: "server", "worker 2"."""
        return names_of([(self.role, self.rank)])


@dataclass(frozen=True)
class Verdict:
    """A status and its cause; of a COMPLETED experiment, which workers were lost on the way, if any."""

    status: Status
    cause: str = ""


class _Guilt(IntEnum):
    """How near a failed task is to the root: lower is nearer."""

    STRUCK = 0
    """Killed by a signal, out of memory, taken away by AWS, or never started: nothing of ours came before."""
    GAVE_UP = 1
    """Ended by itself, for a reason of its own."""
    LOST_PEER = 2
    """Ended because another one was gone or had given up."""
    STOPPED = 3
    """Stopped by the controller."""


def judge(
    experiment: Experiment,
    outcomes: Sequence[TaskOutcome],
    records: Iterable[MetricRecord],
    error: Mapping[str, str] | None,
) -> Verdict:
    """COMPLETED where every planned task ended with exit code 0, else FAILED with the root cause first.

    An experiment that may go on without workers is COMPLETED where its server and one worker finished.

    `error` is what the state machine caught, if anything; it tells of tasks that ECS never accepted. ECS forgets
    an ended task after an hour: one without an outcome ended well where its summary is among the records.
    """
    records = list(records)
    said = _last_words(records)
    if (lost := went_on_without(experiment, outcomes, records)) is not None:
        return Verdict(Status.COMPLETED, _losses(lost, outcomes, said, records))
    failed = failed_in_order(outcomes, records)
    told = [f"{o.label} {_reason(o, said)}" for o in failed if _guilt(o, said) < _Guilt.STOPPED]
    if told:
        root, *others = told
        return Verdict(Status.FAILED, f"{root.rstrip('.')}. Then: {'; '.join(others)}" if others else root)
    there = emitters_of(experiment) & ({(o.role, o.rank) for o in outcomes} | summarized(records))
    if error:
        return Verdict(Status.FAILED, _caught(error, emitters_of(experiment) - there))
    if failed:
        return Verdict(Status.FAILED, f"{failed[0].label} {_reason(failed[0], said)}")
    if len(there) != experiment.task_count:
        return Verdict(
            Status.FAILED,
            f"{len(there)} of {experiment.task_count} tasks were started ({names_of(there) or 'none'})",
        )
    return Verdict(Status.COMPLETED)


def failed_in_order(outcomes: Iterable[TaskOutcome], records: Iterable[MetricRecord]) -> list[TaskOutcome]:
    """The tasks that did not succeed, the root of the failure first, those that were merely stopped last.

    A start that came to nothing is none of them where a later one took its place.
    """
    said = _last_words(records)
    return sorted(
        (outcome for outcome in without_vain_starts(outcomes) if not outcome.succeeded),
        key=lambda outcome: (_guilt(outcome, said), outcome.stopped_at, outcome.label),
    )


def without_vain_starts(outcomes: Iterable[TaskOutcome]) -> list[TaskOutcome]:
    """The tasks in the order of their ends, but for those that never ran and that a later one took the place of."""
    in_order = sorted(outcomes, key=lambda outcome: outcome.stopped_at)
    last = {(outcome.role, outcome.rank): outcome for outcome in in_order}
    return [o for o in in_order if o.stop_code != _NEVER_RAN or o is last[o.role, o.rank]]


def first_to_fail(outcomes: Iterable[TaskOutcome], records: Iterable[MetricRecord]) -> TaskOutcome | None:
    """The task whose failure the others followed from; None where all of them succeeded or were stopped."""
    records = list(records)
    said = _last_words(records)
    failed = failed_in_order(outcomes, records)
    return failed[0] if failed and _guilt(failed[0], said) < _Guilt.STOPPED else None


def emitters_of(experiment: Experiment) -> set[Emitter]:
    """The tasks that an experiment consists of."""
    servers = {("server", shard) for shard in range(experiment.shards)}
    return servers | {("worker", rank) for rank in range(experiment.workers)}


def names_of(emitters: Iterable[Emitter]) -> str:
    """What the report calls them: "server, worker 0, worker 2"; of several servers, "server shard 1"."""
    return ", ".join(_name(role, rank) for role, rank in sorted(emitters))


def summarized(records: Iterable[MetricRecord]) -> set[Emitter]:
    """The tasks that did all they had to do, as they say themselves."""
    return {(record.role, record.rank) for record in records if record.kind in SUMMARIES}


def went_on_without(
    experiment: Experiment, outcomes: Iterable[TaskOutcome], records: Iterable[MetricRecord]
) -> set[Emitter] | None:
    """The workers that an experiment went on without to its end; None where it did not, or must not.

    A task that ended badly and was started again counts as what became of it in the end.
    """
    if experiment.on_worker_loss == "fail":
        return None
    finished = {(o.role, o.rank) for o in outcomes if o.succeeded} | summarized(records)
    lost = emitters_of(experiment) - finished
    servers_finished = all(role == "worker" for role, _ in lost)
    return lost if servers_finished and len(lost) < experiment.workers else None


def _losses(
    lost: Iterable[Emitter], outcomes: Iterable[TaskOutcome], said: _Said, records: Iterable[MetricRecord]
) -> str:
    """Which workers were lost, how those ended that stayed away, and which came back; empty if there were none."""
    last = {(o.role, o.rank): o for o in sorted(outcomes, key=lambda outcome: outcome.stopped_at)}
    notes = [
        f"went on without {names_of([emitter])}, which "
        + (_reason(last[emitter], said) if emitter in last else "left no trace in ECS")
        for emitter in sorted(lost)
    ]
    summaries = [record for record in records if isinstance(record, ServerSummary)]
    back = {("worker", rank) for summary in summaries for rank in summary.rejoined_workers} - set(lost)
    if back:
        notes.append(f"{names_of(back)} came back after a loss")
    return "; ".join(notes)


def _name(role: str, rank: int) -> str:
    if role == "server":
        return f"server shard {rank}" if rank else "server"
    return f"worker {rank}"


def _caught(error: Mapping[str, str], missing: Iterable[Emitter]) -> str:
    """What the state machine caught; of a state that waited for too long, which says no more, what did not come."""
    name, cause = error.get("Error", "error"), error.get("Cause", "")
    if name == "States.Timeout" and not cause:
        cause = f"a state has waited for too long; never started: {names_of(missing) or 'none'}"
    return f"{name}: {cause}"[:2000]


def _last_words(records: Iterable[MetricRecord]) -> _Said:
    """What each task that gave up said last, in whichever of its lives."""
    return {
        (record.role, record.rank): record
        for record in sorted(records, key=lambda record: record.attempt)
        if isinstance(record, TaskFailed)
    }


def _guilt(outcome: TaskOutcome, said: _Said) -> _Guilt:
    if outcome.stop_code == "UserInitiated":
        return _Guilt.STOPPED
    # Before its own last word: told to stop, a task can only say that it was.
    if _was_taken_away(outcome):
        return _Guilt.STRUCK
    if record := said.get((outcome.role, outcome.rank)):
        return _Guilt.LOST_PEER if record.lost_peer else _Guilt.GAVE_UP
    if outcome.exit_code is None or outcome.exit_code > 128:
        return _Guilt.STRUCK
    return _Guilt.GAVE_UP


def _reason(outcome: TaskOutcome, said: _Said) -> str:
    if outcome.stop_code == "UserInitiated":
        return f"was stopped: {outcome.stopped_reason}"
    if _was_taken_away(outcome):
        return f"was taken away ({outcome.stop_code}): {outcome.stopped_reason or 'ECS gives no reason'}"
    if record := said.get((outcome.role, outcome.rank)):
        return f"failed: {record.reason}"
    if outcome.exit_code is None:
        return f"never ran: {outcome.stopped_reason or outcome.stop_code or 'ECS gives no reason'}"
    if outcome.exit_code > 128:
        return f"was killed (exit code {outcome.exit_code}: {_signal_name(outcome.exit_code - 128)})"
    return f"exited with code {outcome.exit_code}; its log stream may say why"


def _was_taken_away(outcome: TaskOutcome) -> bool:
    """AWS itself ended it, for example to have Spot capacity back; then the exit code says little."""
    return outcome.stop_code not in {"", "EssentialContainerExited", "UserInitiated", _NEVER_RAN}


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "SIGKILL, from outside or for lack of memory"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def of_this_run(outcomes: Iterable[TaskOutcome], started_at: str) -> list[TaskOutcome]:
    """Without the tasks of an earlier run: ECS remembers those for an hour, and a redriven experiment has had some.

    `started_at`: when this run began, as the experiment's row says; empty where it never did. Clocks may differ a
    little: so it is the start of a task that counts, which lies further back than its end.
    """
    if not started_at:
        return list(outcomes)
    begin = datetime.fromisoformat(started_at) - CLOCKS_DIFFER
    first_known = ((outcome, outcome.started_at or outcome.stopped_at) for outcome in outcomes)
    return [outcome for outcome, known in first_known if not known or datetime.fromisoformat(known) >= begin]
