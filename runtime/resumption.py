"""The state of a server as a checkpoint, and a state that goes on from one.

Runs in the server, in the thread that writes checkpoints; knows nothing of where they are kept. Blocks are copied
one after the other while training goes on. Each says which steps of which worker it has: what it has is not
applied again, whatever the others have.
"""

from typing import Final

import torch

from runtime.checkpoint import Checkpoint
from runtime.state import ServerState

_PARAMETERS = "parameters"
_STEPS = "steps"


ATTEMPT: Final = "attempt"
"""Fact: how many servers of the experiment there were before the one that wrote the checkpoint."""


def checkpoint_of(state: ServerState, attempt: int) -> Checkpoint:
    """A copy of what the server of a running experiment must not lose."""
    facts = {**state.facts(), ATTEMPT: attempt}
    parameters, steps, optimizers = state.aggregator.snapshot()
    tensors = {_PARAMETERS: parameters, _STEPS: torch.tensor(steps).flatten()}
    for index, remembered in enumerate(optimizers):
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in remembered.items()}
    return Checkpoint(tensors, facts)


def resume(state: ServerState, checkpoint: Checkpoint) -> None:
    """Let a new state, which nobody has joined, go on from a checkpoint."""
    tensors = checkpoint.tensors
    optimizers: list[dict[str, torch.Tensor]] = [{} for _ in state.aggregator.blocks]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, remembered = name.split(".")
            optimizers[int(index)][remembered] = tensor
    steps = tensors[_STEPS].view(len(state.aggregator.blocks), -1)
    state.aggregator.restore(tensors[_PARAMETERS], steps.tolist(), optimizers)
    state.resume(checkpoint.facts)
