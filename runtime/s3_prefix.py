"""Files from an S3 prefix to a local folder.

Runs in the worker on AWS and on the embedded cloud; knows nothing of what the files hold.
"""

from collections.abc import Sequence
from pathlib import Path

from contract.errors import TrainingFailed

S3_SCHEME = "s3://"


def download(location: str, names: Sequence[str], folder: Path) -> None:
    """Fetch `names`, relative to `location` (s3://bucket/prefix), into `folder`, under the same names.

    Raises TrainingFailed that names the first object that cannot be read.
    """
    # Here, not on top: few tasks read from S3, and it costs each half a second.
    import boto3  # noqa: PLC0415
    from boto3.exceptions import Boto3Error  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    bucket, _, prefix = location.removeprefix(S3_SCHEME).partition("/")
    try:
        client = boto3.client("s3")
    except BotoCoreError as error:
        raise TrainingFailed(f"no client for {location}: {error}") from error
    for name in names:
        key = f"{prefix.strip('/')}/{name}".lstrip("/")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            client.download_file(bucket, key, str(target))
        except (BotoCoreError, Boto3Error, ClientError) as error:
            raise TrainingFailed(
                f"{S3_SCHEME}{bucket}/{key} cannot be read: {error};"
                f" expected {', '.join(names)} under {location}, and the worker's task role to allow s3:GetObject"
            ) from error
