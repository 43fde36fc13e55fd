"""Import everything that a task imports: `python -m runtime.image`, when the image is built.

What this imports has byte code in the image, and what it cannot import stops the build.
"""

import importlib
import pkgutil
from typing import Any

import runtime
from runtime.vision import import_torchvision

AWS_SERVICES = ("s3", "dynamodb", "stepfunctions")
"""What tasks call; the image keeps botocore's descriptions of no other."""


def main() -> None:
    """Import the runtime's modules, the packages that they import late, and the AWS clients."""
    for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
        importlib.import_module(module.name)
    import_torchvision()
    import boto3  # noqa: PLC0415 - as the rest of the runtime imports it: late

    client: Any = boto3.client  # its type has an overload for each service
    for service in AWS_SERVICES:
        client(service, region_name="us-east-1")


if __name__ == "__main__":
    main()
