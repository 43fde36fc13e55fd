"""Keys of the one DynamoDB table: every row's place follows from what it is about.

    pk                             sk                               row
    STUDY#<study>                  STUDY                            the study: document, status, execution
    STUDY#<study>                  EXPERIMENT#<name>                an experiment: plan, status, cause
    STUDY#<study>                  RENDEZVOUS#<name>                the task token that the server answers
    EXPERIMENT#<study>/<name>      METRIC#<role>#<rank>#<seq>       one METRICS_JSON record

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


class Status(StrEnum):
    """How far an experiment, or a study, has come."""

    PLANNED = "PLANNED"
    """Written by plan_study; no task was started."""

    RUNNING = "RUNNING"
    """Its tasks are being started or are training."""

    COMPLETED = "COMPLETED"
    """Every task ended with exit code 0 and its records are there."""

    FAILED = "FAILED"
    """Its cause stands beside it; its tasks are gone."""

    ABORTED = "ABORTED"
    """The execution was stopped before it could end; its tasks are gone."""


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.ABORTED})


def study_partition(study_id: str) -> str:
    """Partition of a study's own rows."""
    return f"STUDY#{study_id}"


def experiment_sort(experiment: str) -> str:
    """Sort key of an experiment's row in its study's partition."""
    return f"{EXPERIMENT_PREFIX}{experiment}"


def rendezvous_sort(experiment: str) -> str:
    """Sort key of the row with the task token that waits for the server's address."""
    return f"RENDEZVOUS#{experiment}"


def metrics_partition(study_id: str, experiment: str) -> str:
    """Partition of an experiment's metric rows: writes of many experiments spread over partitions."""
    return f"EXPERIMENT#{study_id}/{experiment}"


def emitter_prefix(role: str, rank: int) -> str:
    """What the sort keys of one emitter's records begin with."""
    return f"{METRIC_PREFIX}{role}#{rank:03d}#"


def metric_sort(role: str, rank: int, seq: int) -> str:
    """Sort key of one record; rows sort by emitter, then in the order of emission."""
    return f"{emitter_prefix(role, rank)}{seq:09d}"


def metric_key(record: MetricRecord) -> dict[str, str]:
    """The full key of a record: the same record always has the same one, so writing twice is writing once."""
    return {
        PARTITION_KEY: metrics_partition(record.study, record.experiment),
        SORT_KEY: metric_sort(record.role, record.rank, record.seq),
    }
