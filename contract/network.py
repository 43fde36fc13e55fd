"""Network: the bandwidth and latency that a study injects between each worker and the server.

Pure. The delays are made in the worker.
"""

from collections.abc import Callable

from pydantic import Field

from contract.document import MAX_WORKERS, Document


class WorkerNetwork(Document):
    """Conditions of one worker's link; what it does not say is as everybody else's."""

    rank: int = Field(ge=0)
    """Which worker."""
    bandwidth_mbit_per_second: float | None = Field(default=None, gt=0, le=1_000_000)
    """What it can send, and what it can receive, in 10⁶ bits a second."""
    latency_ms: float | None = Field(default=None, ge=0, le=10_000)
    """How long everything takes on its way to or from it, one way, milliseconds."""


class Network(Document):
    """Conditions that are injected between each worker and the server, beside those of the real network."""

    bandwidth_mbit_per_second: float | None = Field(default=None, gt=0, le=1_000_000)
    """What each worker can send, and what it can receive, in 10⁶ bits a second. Default: no cap."""
    latency_ms: float = Field(default=0, ge=0, le=10_000)
    """How long everything takes on its way, one way, milliseconds."""
    workers: list[WorkerNetwork] = Field(default=[], max_length=MAX_WORKERS)
    """Workers whose link is another one than everybody else's."""

    @property
    def injected(self) -> bool:
        """Whether anything is, for any worker."""
        return self.bandwidth_mbit_per_second is not None or self.latency_ms > 0 or bool(self.workers)

    def of(self, rank: int) -> "Network":
        """The conditions of one worker's link."""
        own = next((worker for worker in self.workers if worker.rank == rank), None)
        said = own.model_dump(exclude={"rank"}, exclude_none=True) if own else {}
        return self.model_copy(update={"workers": [], **said})


def link_problems(
    network: Network, workers: int, name: Callable[[str], str] = "network.{}".format
) -> list[str]:
    """Links that an experiment of `workers` workers does not have, has twice, or says nothing of."""
    problems = []
    ranks = [worker.rank for worker in network.workers]
    for i, worker in enumerate(network.workers):
        where = f"{name('workers')}[{i}]"
        if worker.rank in ranks[:i]:
            problems.append(f"{where}.rank: {worker.rank} stands there more than once")
        elif worker.rank >= workers:
            problems.append(f"{where}.rank: {worker.rank} is no rank of {workers} workers")
        if worker.bandwidth_mbit_per_second is None and worker.latency_ms is None:
            problems.append(
                f"{where}: says nothing of the link; give it bandwidth_mbit_per_second or latency_ms"
            )
    return problems
