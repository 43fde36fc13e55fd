"""What memory a parameter server takes at least: a study whose server has less would be killed in its first steps.

Pure; for study validation. What the server keeps is said in docs/study.md, and measured by `python -m bench memory`.
"""

from typing import Final

from contract.aggregation import Mode
from contract.catalogue import MODELS_FOR
from contract.exchange import Exchange
from contract.model_sizes import size_of
from contract.training import Training

IDLE_MIB: Final = 158
"""Pages of the server's own before training: Python with torch and gRPC. Measured on x86-64, beside 95 of files."""

BYTES_OF_A_PARAMETER: Final = 4
MIB: Final = 1 << 20


def server_memory_problem(
    training: Training, exchange: Exchange, mode: Mode, *, workers: int, shards: int, memory_mib: int
) -> str:
    """Why one of `shards` servers of an experiment cannot have enough with `memory_mib`; empty where it may."""
    model = training.model or MODELS_FOR[training.dataset][0]
    if model not in MODELS_FOR[training.dataset]:
        return ""  # refused for that
    parameters = size_of(training.dataset, model).parameters
    vectors = vectors_of_server(training, exchange, mode, workers)
    least = IDLE_MIB + vectors * parameters * BYTES_OF_A_PARAMETER / shards / MIB
    if least <= memory_mib:
        return ""
    return (
        f"server.memory: {memory_mib:,} MiB are too few for {model} in mode {mode} with {workers} workers and"
        f" exchange.compression {exchange.compression}: the server keeps {vectors} vectors of its parameters and"
        f" takes at least {least:,.0f} MiB; raise it"
    )


def vectors_of_server(training: Training, exchange: Exchange, mode: Mode, workers: int) -> int:
    """Vectors as long as the parameters that a server keeps in any case, those on their way not among them."""
    optimizer = 2 if training.optimizer == "adam" else int(training.momentum > 0)
    if mode is Mode.DC_ASGD:
        copies = workers
    elif exchange.compression == "none":
        copies = 0
    else:
        copies = 1 if mode is Mode.SYNC else workers
    return 1 + optimizer + copies
