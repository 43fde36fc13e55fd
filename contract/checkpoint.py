"""Checkpointing: how often the server writes down the state of training, and where, as a study document says it.

Pure. What a checkpoint holds is the runtime's business.
"""

from urllib.parse import quote

from pydantic import Field

from contract.document import Document, Location


class Checkpointing(Document):
    """Checkpoints from which a restarted server resumes: at most one interval of training is lost."""

    interval_seconds: float = Field(default=30, gt=0, le=3600)
    """From one checkpoint to the next, seconds."""
    location: Location | None = None
    """A folder that the server sees, or s3://bucket/prefix. Default: where the deployment keeps checkpoints."""


def checkpoint_folder(study_id: str, experiment: str) -> str:
    """Where below a location an experiment has its checkpoints, and no other one."""
    return f"{quote(study_id, safe='')}/{quote(experiment, safe='')}"
