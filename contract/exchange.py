"""Exchange: how gradients and parameters travel between workers and server, as a study document says it.

Pure. How each encoding and transport is done is the runtime's business.
"""

from collections.abc import Callable
from typing import Final, Literal

from pydantic import Field

from contract.document import Belonging, Document, misplaced
from contract.network import Network

Compression = Literal["none", "fp16", "bf16", "int8", "topk"]
Transport = Literal["auto", "tcp", "shared-memory"]

WHOLE_LENGTH: Final = 1 << 20
"""Longest vector, in elements, that travels and is aggregated as one block; longer ones are cut."""


class Exchange(Document):
    """How gradients and parameters travel between workers and server."""

    compression: Compression = "none"
    """How they are encoded. What the encoding loses of a gradient is added to the next one (error feedback)."""
    topk_ratio: float = Field(default=0.01, gt=0, le=0.5)
    """Compression topk: which share of a gradient is sent, its largest elements."""
    transport: Transport = "auto"
    """Auto: shared memory where worker and server share a host and no network is injected, else TCP."""
    tls: bool | None = None
    """Whether TCP is encrypted, and the server known by its certificate. Default: on, except on loopback."""


EXCHANGE_RULES: Final = (Belonging("topk_ratio", "compression", ("topk",)),)


def exchange_conflicts(section: object, name: Callable[[str], str] = "exchange.{}".format) -> list[str]:
    """Keys of the raw section that exclude each other; `name` says what they are called."""
    return misplaced(section, Exchange, EXCHANGE_RULES, name)


def transport_problem(exchange: Exchange, network: Network, name: Callable[[str], str]) -> str:
    """What is wrong with the transport beside an injected network, or nothing; `name` says what it is called."""
    if exchange.transport == "shared-memory" and network.injected:
        return f"{name('transport')}: shared-memory does not go over the injected network; choose auto or tcp"
    return ""
