"""Cost: what the tasks of an experiment, and all that goes with them, cost at given prices.

Pure; US dollars. The same sum prices a plan and what has run.
"""

from math import ceil
from typing import Final

from pydantic import BaseModel, ConfigDict

from contract.fargate import CPU_UNITS_OF_A_VCPU
from contract.metrics import INTERVAL_SECONDS
from contract.prices import Architecture, Prices, dollars
from contract.study import TaskSize

LEAST_BILLED_SECONDS: Final = 60
"""Of a Fargate task, however short. Source: AWS Fargate pricing; longer ones by the second, rounded up."""

LOG_BYTES_OF_RECORD: Final = 900
"""A metric line, with the 26 bytes that CloudWatch Logs adds to an event: epochs 700, summaries up to 1,500."""

WRITE_UNITS_OF_RECORD: Final = 2
"""A record's row with its keys and names is between 0.7 and 2 KB."""

INGEST_GB_SECONDS: Final = 0.25 * 0.2
"""IngestMetrics: 256 MiB, for a delivery that holds one record; fuller ones cost less for each."""

JUDGE_GB_SECONDS: Final = 0.25 * 10
"""JudgeExperiment: 256 MiB, for as long as ECS takes to say that tasks have ended."""

STUDY_GB_SECONDS: Final = 0.25 * 5 + 0.5 * 60 + 2.0 * 20 + 0.25 * 2
"""PlanStudy; ReconcileMetrics, which waits for records on their way; PublishReport, which draws; ConcludeStudy."""

STUDY_REQUESTS: Final = 4
TRANSITIONS_OF_STUDY: Final = 8
TRANSITIONS_OF_EXPERIMENT: Final = 8
TRANSITIONS_OF_SERVER: Final = 5
"""Run, find and close the rendezvous, end; and wait for its address."""
TRANSITIONS_OF_WORKER: Final = 1

WRITES_OF_STUDY: Final = 20
"""Its row holds the plan: some 20 KB."""
WRITES_OF_EXPERIMENT: Final = 12
"""Planned, running, judged, its rendezvous and its server's address."""


class Cost(BaseModel):
    """US dollars, by what they are paid for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vcpu: float = 0.0
    memory: float = 0.0
    public_ipv4: float = 0.0
    functions: float = 0.0
    state_transitions: float = 0.0
    logs: float = 0.0
    table: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(dict(self).values()))

    @property
    def tasks(self) -> float:
        """What is paid for as long as tasks run."""
        return self.vcpu + self.memory + self.public_ipv4

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: amount + getattr(other, name) for name, amount in self})

    def __mul__(self, count: int) -> "Cost":
        return Cost(**{name: amount * count for name, amount in self})

    def breakdown(self) -> str:
        """What it consists of, in words."""
        names = {
            "vcpu": "vCPU",
            "memory": "memory",
            "public_ipv4": "public IPv4",
            "functions": "functions",
            "state_transitions": "state transitions",
            "logs": "logs",
            "table": "table",
        }
        return ", ".join(f"{names[name]} {dollars(amount)}" for name, amount in self)


def billed_seconds(seconds: float) -> int:
    """What AWS bills of a task that ran so long. Source: AWS Fargate pricing."""
    return max(LEAST_BILLED_SECONDS, ceil(seconds))


def task_cost(
    prices: Prices,
    architecture: Architecture,
    size: TaskSize,
    seconds: float,
    *,
    spot: bool,
    public_ipv4: bool = True,
) -> Cost:
    """One task: its vCPUs, memory and public address, for as long as it is billed."""
    hours = billed_seconds(seconds) / 3600
    rates = prices.rates(architecture, spot=spot)
    return Cost(
        vcpu=size.cpu / CPU_UNITS_OF_A_VCPU * hours * rates.vcpu_hour,
        memory=size.memory / 1024 * hours * rates.gb_hour,
        public_ipv4=hours * prices.public_ipv4_hour if public_ipv4 else 0.0,
    )


def records_of(*, workers: int, shards: int, epochs: int, training_seconds: float) -> int:
    """Metric records of one experiment: each task's first and last, epochs of workers, intervals of servers."""
    return workers * (epochs + 2) + shards * (2 + ceil(training_seconds / INTERVAL_SECONDS))


def services_of_experiment(prices: Prices, *, workers: int, shards: int, records: int) -> Cost:
    """What one experiment uses beside its tasks."""
    transitions = TRANSITIONS_OF_EXPERIMENT + TRANSITIONS_OF_SERVER * shards + TRANSITIONS_OF_WORKER * workers
    gb_seconds = JUDGE_GB_SECONDS + INGEST_GB_SECONDS * records
    return Cost(
        functions=gb_seconds * prices.function_gb_second + (1 + records) * prices.function_request,
        state_transitions=transitions * prices.state_transition,
        logs=records * LOG_BYTES_OF_RECORD / 1e9 * prices.log_gb,
        table=(records * WRITE_UNITS_OF_RECORD + WRITES_OF_EXPERIMENT) * prices.write_request_unit,
    )


def services_of_study(prices: Prices) -> Cost:
    """What a study uses once, whatever its experiments."""
    return Cost(
        functions=STUDY_GB_SECONDS * prices.function_gb_second + STUDY_REQUESTS * prices.function_request,
        state_transitions=TRANSITIONS_OF_STUDY * prices.state_transition,
        table=WRITES_OF_STUDY * prices.write_request_unit,
    )
