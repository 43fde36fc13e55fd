"""Preparing a data set: what the task that does it is told, before any worker of a study starts.

Written by plan_study and the state machine, read once by the runtime.
"""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from contract.catalogue import STORED, Dataset
from contract.document import S3_SCHEME
from contract.errors import TaskEnvironmentRefused
from contract.problems import problems_of
from contract.training import Training


def _stored(dataset: Dataset) -> Dataset:
    if dataset not in STORED:
        raise ValueError(f"{dataset} is built in: there is nothing to prepare")
    return dataset


Prefix = Annotated[str, Field(pattern=r"^s3://[a-z0-9.-]{3,63}(/[^\x00-\x1f]*)?$")]
"""A bucket with or without a prefix."""

Mirror = Annotated[str, Field(pattern=r"^(https?://[^\s]+[^\s/])?$")]
"""Base URL without a closing slash, or nothing."""


class Preparation(BaseModel):
    """Environment variables of the task; a field's alias is its variable (`data_directory` ↔ DATA_DIRECTORY)."""

    model_config = ConfigDict(
        frozen=True, alias_generator=str.upper, populate_by_name=True, use_attribute_docstrings=True
    )

    study_id: str = "local"
    """Whose row says how it went."""
    dataset: Annotated[Dataset, AfterValidator(_stored)]
    """Which one."""
    data_directory: Prefix
    """s3://bucket/prefix where it is to be, and where workers read it."""
    dataset_download: bool = False
    """Whether it may be written there: the deployment's own place, not one that a study names."""
    dataset_mirror: Mirror = ""
    """Where its archives are downloaded from, as <mirror>/<dataset>/<file>. Default: where torchvision gets them."""
    table_name: str = ""
    """DynamoDB table of that row; empty where nobody waits for it."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read a process environment; other variables are ignored. Raises TaskEnvironmentRefused."""
        names = {field.upper() for field in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in environ.items() if name in names})
        except ValidationError as error:
            raise TaskEnvironmentRefused(problems_of(error, cls)) from error


def to_prepare(given: Training, planned: Training) -> dict[str, str] | None:
    """What the state machine hands to the task; None where workers need no data set from S3.

    `given`: as the study says it; `planned`: with the place that the deployment has for it. A folder is for workers to
    look into: nobody else may see it.
    """
    location = planned.data or ""
    if planned.dataset not in STORED or not location.startswith(S3_SCHEME):
        return None
    return {
        "name": planned.dataset.value,
        "location": location,
        "download": "true" if given.data is None else "false",
    }
