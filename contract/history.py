"""What is remembered of an experiment that has completed, so that the next one like it can be told before.

Pure. Two experiments are alike where all is the same that decides how long they take: seeds, learning rates and names
do not.
"""

import json
from hashlib import blake2b
from typing import Final

from pydantic import BaseModel, ConfigDict

from contract.plan import Experiment
from contract.prices import Architecture

_IRRELEVANT: Final = {
    *("study_id", "name", "seed", "timeout_seconds"),
}
_IRRELEVANT_OF_TRAINING: Final = {
    *("learning_rate", "momentum", "weight_decay", "schedule"),
    *("decay_epochs", "decay_factor", "warmup_epochs"),
}
"""They decide what is learned, not how fast a step is."""


class Measured(BaseModel):
    """What an experiment took that has completed, seconds; of its tasks the mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study_id: str
    experiment: str
    ended_at: str
    training_seconds: float
    server_seconds: float
    worker_seconds: float


def fingerprint(experiment: Experiment, architecture: Architecture) -> str:
    """The same for experiments that should take equally long on tasks of such processors; 32 hexadecimal digits."""
    settings = experiment.model_dump(mode="json", exclude=_IRRELEVANT)
    settings["training"] = {
        name: value for name, value in settings["training"].items() if name not in _IRRELEVANT_OF_TRAINING
    }
    text = json.dumps([architecture, settings], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()
