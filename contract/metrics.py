"""MetricRecord ⇄ METRICS_JSON line: what tasks say about their training.

Printed by the runtime, read by ingestion and by the report. Records are told apart by what the emitter
says of itself (study, experiment, role, rank, attempt, seq), never by a log event's id.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from contract.aggregation import Mode
from contract.document import MAX_WORKERS
from contract.errors import MetricLineRefused
from contract.problems import path_of

MARKER = "METRICS_JSON"
"""First word of a metric line, and the term that the subscription filter looks for."""

FILTER_PATTERN = f'"{MARKER}"'
"""CloudWatch Logs filter pattern that lets metric lines through."""

MAX_LINE_BYTES = 64 * 1024
"""Longest line that is parsed; far above any record, far below a log event's limit."""

LARGEST = 1e100
"""No measurement comes near it, and the table (up to 1e126) can hold it: one absurd number in a line must
not keep the records beside it from being stored."""

INTERVAL_SECONDS = 2.0
"""How often the server says what it did."""

MAX_ATTEMPTS = 1000
"""More often than this no task is started."""

Role = Literal["server", "worker"]
Seconds = Annotated[float, Field(ge=0, le=LARGEST)]
Rate = Annotated[float, Field(ge=0, le=LARGEST)]
Staleness = Annotated[float, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Rank = Annotated[int, Field(ge=0, lt=MAX_WORKERS)]


class Record(BaseModel):
    """What every record says: whose it is and which one. Unknown keys are kept out, NaN is never written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    study: str = Field(min_length=1, max_length=128)
    experiment: str = Field(min_length=1, max_length=128)
    role: Role
    rank: Rank
    """Of a server the index of its shard, 0 where there is one server."""
    attempt: int = Field(default=0, ge=0, lt=MAX_ATTEMPTS)
    """How many times this emitter was started before."""
    seq: int = Field(ge=0, lt=10**9)
    """0, 1, 2 … per emitter and attempt, without a gap."""
    timestamp: AwareDatetime
    """Wall clock of the emitter (UTC): for people. Durations come from a monotonic clock."""


class TaskStarted(Record):
    """First record of every task: where it runs."""

    kind: Literal["task_started"] = "task_started"
    task_arn: str = ""
    hostname: str
    cpu_model: str
    cpu_count: Count
    threads: Count
    """torch's intra-op threads."""
    device: str = ""
    """What gradients are computed on: cpu, or cuda and the GPU's name. The server's is cpu."""
    python_version: str
    torch_version: str
    grpc_version: str
    parameters: Count
    """Number of model parameters (fp32)."""
    train_samples: Count
    """Of this worker's shard; 0 for the server."""
    test_samples: Count


class WorkerEpoch(Record):
    """One epoch of one worker. The parts of the time add up to `epoch_seconds` to within loop overhead."""

    kind: Literal["worker_epoch"] = "worker_epoch"
    epoch: int = Field(ge=1)
    epoch_seconds: Seconds
    """Training only; testing is `evaluation_seconds`, beside it."""
    steps: Count
    samples: Count
    samples_per_second: Rate
    compute_seconds: Seconds
    push_pull_seconds: Seconds
    """Round trips, less the time that the server held the gradient back: serialize and transfer."""
    serialize_seconds: Seconds = 0.0
    """Looking at gradients before they are pushed; encoding, decoding and copying gradients and parameters."""
    transfer_seconds: Seconds = 0.0
    """The rest of the round trips: on the way, and being applied."""
    waiting_seconds: Seconds
    """Waiting for other workers' gradients: at the barrier of sync, backup and ksync, at the bound of ssp. From when
    all of the own one was at the server until all of the others' was there, and while the server did not take it."""
    evaluation_seconds: Seconds
    loss: Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None
    """Mean training loss; null where it is not finite."""
    test_correct: Count
    test_samples: Count
    """This worker's share of the test set: the shares of all ranks make up the whole set."""
    version: Count
    """Version of the global parameters that were tested."""


class WorkerSummary(Record):
    """Last record of a worker that finished."""

    kind: Literal["worker_summary"] = "worker_summary"
    training_seconds: Seconds
    epochs: Count
    steps: Count
    samples: Count
    compute_seconds: Seconds
    emulated_seconds: Seconds
    """Sum of the draws that emulated compute asked for, of cancelled steps what passed; 0 with real compute."""
    push_pull_seconds: Seconds
    serialize_seconds: Seconds = 0.0
    transfer_seconds: Seconds = 0.0
    waiting_seconds: Seconds
    evaluation_seconds: Seconds
    injected_network_seconds: Seconds = 0.0
    """Delays that the study's network asked for; part of the transfer."""
    transport: str = Field(default="", max_length=100)
    """What gradients and parameters went through: tcp, tls or shared-memory."""
    sent_bytes: Count
    received_bytes: Count
    repeated_pushes: Count = 0
    """Pushes that were made again because their answer was lost."""
    dropped_gradients: Count = 0
    """Steps whose gradient came too late to count."""
    cancelled_steps: Count = 0
    """Those of them whose emulated computation was cut short, because it was known."""
    final_test_correct: Count | None = None
    """Whole test set on the final parameters, by the worker that finished last, where they had moved on
    since the shares of the last epoch were tested."""
    final_test_samples: Count | None = None


class ServerInterval(Record):
    """What the server did since the previous interval."""

    kind: Literal["server_interval"] = "server_interval"
    interval_seconds: Seconds
    version: Count
    updates: Count
    updates_per_second: Rate
    gradients: Count
    mean_staleness: Staleness | None
    """Null where no gradient came."""
    max_staleness: Count | None
    sent_bytes: Count = 0
    received_bytes: Count = 0
    workers_away: Count = 0
    """Workers that were lost and not back, at the end of the interval."""


class ServerSummary(Record):
    """Last record of a server whose experiment finished."""

    kind: Literal["server_summary"] = "server_summary"
    mode: Mode
    total_workers: int = Field(ge=1)
    total_training_time_seconds: Seconds
    """From the release of the first parameters, with all workers there, to the last worker's finish."""
    global_steps_completed: Count
    """Versions of the parameters: updates applied."""
    gradients_processed: Count
    """Those that are part of an update."""
    dropped_gradients: Count = 0
    """Those that came too late to count (backup, ksync)."""
    repeated_pushes: Count = 0
    """Pushes of a step that had been pushed before: answered, not applied."""
    updates_per_second: Rate
    mean_step_seconds: Seconds
    """Mean time between updates over the whole run; in sync mode the duration of a step."""
    average_gradient_staleness: Staleness
    """Over the whole run."""
    average_gradient_staleness_all_training: Staleness | None
    """Over the gradients that came while all workers were training, each with a push behind it and another
    ahead; null where there were none."""
    gradients_all_training: Count
    updates_all_training: Count | None = None
    """Updates while all workers were training; null in records from before they were counted."""
    all_training_seconds: Seconds | None = None
    """What those updates took: from when every worker had pushed once until one pushed its last."""
    staleness_histogram: dict[Count, Count]
    """Staleness → number of gradients."""
    apply_seconds: Seconds
    """Time spent adding gradients up and in the optimizer, summed over threads."""
    lock_seconds: Seconds = 0.0
    """Time that threads waited for the locks of the state and of blocks, summed over them."""
    sent_bytes: Count = 0
    received_bytes: Count = 0
    barrier_wait_histogram: dict[Seconds, Count] = {}
    """Upper bound of a bin in seconds (0.001, 0.002, 0.004 …) → number of gradients whose workers waited so long."""
    lost_workers: list[Rank] = []
    """Ranks in the order of their loss; one that was lost twice stands there twice."""
    rejoined_workers: list[Rank] = []
    """Ranks in the order in which they came back."""
    lost_steps: Count = 0
    """Steps that were never pushed, because their worker was away."""
    checkpoints_written: Count = 0
    checkpoint_seconds: Seconds = 0.0
    """Time spent writing them."""
    resumed_from_version: Count | None = None
    """Version of the checkpoint that this server began with; null where it began anew."""
    parameters_sha256: str = ""
    """SHA-256 of the final parameters (fp32, little-endian): equal where training was equal, bit for bit."""


class TaskFailed(Record):
    """Last record of a task that gave up."""

    kind: Literal["task_failed"] = "task_failed"
    reason: str = Field(min_length=1, max_length=4000)
    lost_peer: str = ""
    """The peer whose loss or decision ended it ("server", "worker 2"), where that was the reason."""


MetricRecord = Annotated[
    TaskStarted | WorkerEpoch | WorkerSummary | ServerInterval | ServerSummary | TaskFailed,
    Field(discriminator="kind"),
]

FINAL_KINDS = frozenset({"worker_summary", "server_summary", "task_failed"})
"""Kinds that end an attempt's records: with the final one's seq, their number is known."""

_ADAPTER: TypeAdapter[MetricRecord] = TypeAdapter(MetricRecord)


def utc_now() -> datetime:
    """The time that records carry."""
    return datetime.now(UTC)


def to_line(record: MetricRecord) -> str:
    """One line without its end: the marker, a space, one JSON object, all ASCII.

    Log forwarders split text at more than newlines (U+2028, U+0085 …): none of those may stand in a record.
    """
    return f"{MARKER} {record.model_dump_json(ensure_ascii=True)}"


def is_metric_line(text: str) -> bool:
    """Whether `text` claims to be a metric record. Other lines that mention the marker are not."""
    return text.startswith(f"{MARKER} ")


def from_line(text: str) -> MetricRecord:
    """The record of a line that `to_line` made. Raises MetricLineRefused for anything else."""
    if not is_metric_line(text):
        raise MetricLineRefused([f"the line does not begin with '{MARKER} '"])
    if len(text) > MAX_LINE_BYTES:
        raise MetricLineRefused([f"{len(text)} characters; at most {MAX_LINE_BYTES} are read"])
    try:
        return _ADAPTER.validate_json(text[len(MARKER) + 1 :])
    except ValidationError as error:
        raise MetricLineRefused(_problems(error)) from error


def from_mapping(document: dict[str, Any]) -> MetricRecord:
    """The record that a stored row or a JSON file holds. Raises MetricLineRefused."""
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise MetricLineRefused(_problems(error)) from error


def to_mapping(record: MetricRecord) -> dict[str, Any]:
    """The record as plain JSON values."""
    mapping: dict[str, Any] = json.loads(record.model_dump_json())
    return mapping


def _problems(error: ValidationError) -> list[str]:
    return [f"{path_of(detail['loc'])}: {detail['msg']}" for detail in error.errors(include_url=False)]
