"""Adapter to S3: the checkpoints of an experiment, which a new run must not go on from.

Used by conclude_study.
"""

import boto3

from contract.checkpoint import checkpoint_folder
from contract.plan import Experiment


def remove_checkpoints(location: str, experiment: Experiment) -> None:
    """Remove what the servers of an experiment left where the deployment keeps checkpoints, s3://bucket/prefix.

    Its records are gone, so training begins anew. A study that keeps its checkpoints elsewhere goes on from them.
    """
    if experiment.checkpoint is None or experiment.checkpoint.location is not None:
        return
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    own = f"{prefix}/{checkpoint_folder(experiment.study_id, experiment.name)}/"
    boto3.resource("s3").Bucket(bucket).objects.filter(Prefix=own).delete()
