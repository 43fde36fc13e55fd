"""Network: the bandwidth and latency that a study injects between each worker and the server.

Pure. The delays are made in the worker.
"""

from pydantic import Field

from contract.document import Document


class Network(Document):
    """Conditions that are injected between each worker and the server, beside those of the real network."""

    bandwidth_mbit_per_second: float | None = Field(default=None, gt=0, le=1_000_000)
    """What each worker can send, and what it can receive, in 10⁶ bits a second. Default: no cap."""
    latency_ms: float = Field(default=0, ge=0, le=10_000)
    """How long everything takes on its way, one way, milliseconds."""

    @property
    def injected(self) -> bool:
        """Whether anything is."""
        return self.bandwidth_mbit_per_second is not None or self.latency_ms > 0
