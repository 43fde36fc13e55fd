"""Keys of the one DynamoDB table: every row's place follows from what it is about.

    pk                          sk                                    row
    STUDY#<study>               STUDY                                 the study: document, status, execution
    STUDY#<study>               EXPERIMENT#<name>                     an experiment: plan, status, cause
    STUDY#<study>               RENDEZVOUS#<name>#<shard>             the task token that a server answers
    SERVER#<study>/<name>       SERVER#<shard>                        a server's address, and what lets a worker in
    DATASET#<study>             DATASET                               whether the study's data set is ready
    EXPERIMENT#<study>/<name>   METRIC#<role>#<rank>#<attempt>#<seq>  one METRICS_JSON record
    OPEN                        STUDY#<study>                         a study that clean-up has not seen the end of
    MEASURED#<fingerprint>      LAST                                  what the last experiment with such settings took

Used by functions, state machine (as text), runtime and command line; knows no AWS SDK.
"""

from enum import StrEnum
from typing import Final

from contract.metrics import MetricRecord

PARTITION_KEY: Final = "pk"
SORT_KEY: Final = "sk"
EXPIRY: Final = "expires_at"
"""Time to live attribute of every row, seconds since the epoch."""

STUDY_SORT: Final = "STUDY"
EXPERIMENT_PREFIX: Final = "EXPERIMENT#"
METRIC_PREFIX: Final = "METRIC#"
STUDY_PREFIX: Final = "STUDY#"
OPEN_PARTITION: Final = "OPEN"
"""What clean-up looks through, for studies whose execution has ended without a word."""
SERVER_PREFIX: Final = "SERVER#"
MEASURED_SORT: Final = "LAST"

TASK_TOKEN: Final = "task_token"  # noqa: S105 - a name
"""Attribute of a rendezvous row."""

SERVER_ADDRESS: Final = "address"
SERVER_CERTIFICATE: Final = "certificate"
"""PEM; absent where the server speaks no TLS."""

SERVER_TOKEN: Final = "experiment_token"  # noqa: S105 - a name
"""What workers show the server; a secret."""


DATASET_SORT: Final = "DATASET"
DATASET_STATUS: Final = "status"
"""Attribute of the row on a study's data set: DATASET_READY, or anything else."""
DATASET_READY: Final = "READY"
DATASET_CAUSE: Final = "cause"
"""Why it is not ready, and what to do; absent where it is."""


class Status(StrEnum):
    """How far an experiment, or a study, has come."""

    PLANNED = "PLANNED"
    """Written by plan_study; no task was started."""

    RUNNING = "RUNNING"
    """Its tasks are being started or are training."""

    STOPPING = "STOPPING"
    """Its execution has ended before it did: it starts no further task, and those that it has are being stopped."""

    COMPLETED = "COMPLETED"
    """Every task that it needs ended with exit code 0 and its records are there."""

    FAILED = "FAILED"
    """Its cause stands beside it; its tasks are gone."""

    ABORTED = "ABORTED"
    """The execution had ended before it did, as its cause says; its tasks are gone."""


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.ABORTED})


def study_partition(study_id: str) -> str:
    """Partition of a study's own rows."""
    return f"{STUDY_PREFIX}{study_id}"


def experiment_sort(experiment: str) -> str:
    """Sort key of an experiment's row in its study's partition."""
    return f"{EXPERIMENT_PREFIX}{experiment}"


def rendezvous_prefix(experiment: str) -> str:
    """What the sort keys of an experiment's task tokens begin with."""
    return f"RENDEZVOUS#{experiment}#"


def rendezvous_sort(experiment: str, shard: int) -> str:
    """Sort key of the row with the task token that waits for the server's address."""
    return f"{rendezvous_prefix(experiment)}{shard}"


def server_sort(shard: int) -> str:
    """Sort key of what the server of a shard announces."""
    return f"{SERVER_PREFIX}{shard}"


def server_partition(study_id: str, experiment: str) -> str:
    """Partition of the row with the server's address, certificate and token, and of nothing else.

    IAM tells rows apart by partition alone: so a worker may read this one and no task token. And the state
    machine, whose history keeps every row that it reads, has no reason to read it.
    """
    return f"{SERVER_PREFIX}{study_id}/{experiment}"


def dataset_partition(study_id: str) -> str:
    """Partition of the row that says whether a study's data set is ready, and of nothing else.

    Its own, so that the task that writes it may write no other row.
    """
    return f"DATASET#{study_id}"


def metrics_partition(study_id: str, experiment: str) -> str:
    """Partition of an experiment's metric rows: writes of many experiments spread over partitions."""
    return f"EXPERIMENT#{study_id}/{experiment}"


def measured_partition(fingerprint: str) -> str:
    """Partition of the row that says what the last experiment with these settings took, whatever its study."""
    return f"MEASURED#{fingerprint}"


def emitter_prefix(role: str, rank: int) -> str:
    """What the sort keys of one emitter's records begin with."""
    return f"{METRIC_PREFIX}{role}#{rank:03d}#"


def metric_sort(role: str, rank: int, attempt: int, seq: int) -> str:
    """Sort key of one record; rows sort by emitter, then in the order of emission."""
    return f"{emitter_prefix(role, rank)}{attempt:03d}#{seq:09d}"


def metric_key(record: MetricRecord) -> dict[str, str]:
    """The full key of a record: the same record always has the same one, so writing twice is writing once."""
    return {
        PARTITION_KEY: metrics_partition(record.study, record.experiment),
        SORT_KEY: metric_sort(record.role, record.rank, record.attempt, record.seq),
    }
