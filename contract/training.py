"""Training: what every worker of a study does, as a study document says it.

Pure; knows nothing of how a model is built or a data set read.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from contract.catalogue import Dataset, ModelName, catalogue_problems
from contract.document import Belonging, Document, Location, misplaced

OptimizerName = Literal["sgd", "adam"]
ScheduleName = Literal["constant", "step", "cosine"]


class Training(Document):
    """What every worker does; the same for all experiments of a study."""

    dataset: Annotated[Dataset, Field(strict=False)] = Dataset.DIGITS
    """What is learned."""
    model: Annotated[ModelName, Field(strict=False)] | None = None
    """What learns it. Default: the first model that fits the dataset."""
    data: Location | None = None
    """Where a torchvision dataset lies: a folder that every worker sees, or s3://bucket/prefix. Default: where the
    deployment keeps it, fetched once."""
    augment: bool = False
    """Whether training images are shifted by up to 4 pixels and mirrored at random; cifar10 and cifar100."""
    epochs: int = Field(default=5, ge=1, le=1000)
    """How often each worker goes through its shard of the training set."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Samples per worker and step."""
    optimizer: OptimizerName = "sgd"
    """What the parameter server makes of a gradient: SGD with momentum, or Adam."""
    learning_rate: float = Field(default=0.04, gt=0, le=100)
    """Step size of the optimizer, the same for every mode and number of workers. Adam has no default."""
    momentum: float = Field(default=0.75, ge=0, lt=1)
    """Momentum of SGD, kept by the parameter server."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """L2 penalty: this many times the parameters are added to each gradient."""
    schedule: ScheduleName = "constant"
    """How the learning rate falls. Step: by a factor, every so many epochs. Cosine: to zero at the end."""
    decay_epochs: float | None = Field(default=None, gt=0, le=1000)
    """Step schedule: epochs between two falls of the learning rate."""
    decay_factor: float | None = Field(default=None, gt=0, lt=1)
    """Step schedule: what the learning rate is multiplied by. Default: 0.1."""
    warmup_epochs: float = Field(default=0.0, ge=0, le=1000)
    """Epochs over which the learning rate rises, linearly from zero, before it falls."""


SCHEDULE_RULES: Final = (
    Belonging("decay_epochs", "schedule", ("step",), needed=True),
    Belonging("decay_factor", "schedule", ("step",)),
)
TRAINING_RULES: Final = (*SCHEDULE_RULES, Belonging("momentum", "optimizer", ("sgd",)))


def training_conflicts(section: object) -> list[str]:
    """Keys of the raw section that exclude each other, or that others call for."""
    if not isinstance(section, Mapping):
        return []
    problems = misplaced(section, Training, TRAINING_RULES, "training.{}".format)
    if section.get("optimizer") == "adam" and "learning_rate" not in section:
        problems.append(
            "training.learning_rate: missing; the default is one of sgd, adam takes less, such as 0.001"
        )
    return problems + _catalogue_conflicts(section)


def _catalogue_conflicts(section: Mapping[str, Any]) -> list[str]:
    """Data set, model, data and augmentation that do not go together; wrong values are left to validation."""
    dataset, model = section.get("dataset", Dataset.DIGITS), section.get("model")
    if dataset not in list(Dataset):
        return []
    problems = catalogue_problems(
        Dataset(dataset),
        ModelName(model) if model in list(ModelName) else None,
        data=section.get("data"),
        augment=section.get("augment") is True,
    )
    return [f"training.{field}: {problem}" for field, problem in problems.items()]


def samples_per_step(samples: int, workers: int, batch_size: int) -> int:
    """Of each worker: the batch size, clipped to the smallest share of `samples` training samples."""
    return min(batch_size, samples // workers)


def steps_per_epoch(samples: int, workers: int, batch_size: int) -> int:
    """Of each worker: as many full batches as the smallest share has, so that no barrier starves."""
    return samples // workers // samples_per_step(samples, workers, batch_size)
