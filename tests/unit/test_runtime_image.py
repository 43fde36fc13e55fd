"""The Dockerfile keeps what tasks use."""

import re

from runtime.image import AWS_SERVICES
from tests.e2e.machine import ROOT


def test_the_image_keeps_the_aws_services_that_the_runtime_calls_and_no_other() -> None:
    dockerfile = (ROOT / "runtime" / "Dockerfile").read_text()
    (kept,) = re.findall(r"find botocore/data (.+?) -exec", dockerfile.replace("\\\n", ""))
    called = {
        service
        for module in (ROOT / "runtime").glob("*.py")
        for service in re.findall(r'boto3\.client\("(\w+)"', module.read_text())
    }
    assert set(re.findall(r"! -name (\w+)", kept)) == set(AWS_SERVICES) == called
