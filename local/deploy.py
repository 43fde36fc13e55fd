"""Deploy the synthesized stack to the embedded cloud: what `cdk bootstrap` and `cdk deploy` do, in a second.

The same template, the same assets; only the parameter EmbeddedCloud is set (its effects are listed in
docs/embedded-cloud.md). Synthesis is kept by the hash of its sources.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from cdk import EMBEDDED_CLOUD, REPOSITORY
from contract.errors import LockstepError
from local.emulator import ACCOUNT, REGION

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_s3 import S3Client

STACK = "Lockstep"
ASSET_BUCKET = f"cdk-hnb659fds-assets-{ACCOUNT}-{REGION}"
BOOTSTRAP_PARAMETER = "/cdk-bootstrap/hnb659fds/version"
SOURCES = ("app.py", "cdk.json", "requirements.txt", "cdk", "contract", "lambdas", "runtime", "statemachine")
KEPT_ASSEMBLIES = 5


class DeployFailed(LockstepError):
    """The stack could not be synthesized or created; the message holds the reasons."""


def deploy(session: boto3.Session, assembly: Path, progress: Callable[[str], None]) -> dict[str, str]:
    """Create the stack of a cloud assembly. Returns its outputs. Raises DeployFailed."""
    progress("deploying the stack")
    bootstrap(session)
    s3 = session.client("s3")
    for key, path in _assets(assembly):
        _upload(s3, key, path)
    template_key = f"{STACK}.template.json"
    s3.upload_file(str(assembly / template_key), ASSET_BUCKET, template_key)
    endpoint = s3.meta.endpoint_url
    cloudformation = session.client("cloudformation")
    cloudformation.create_stack(
        StackName=STACK,
        # By URL: the API takes at most 51,200 bytes of template in the request itself.
        TemplateURL=f"{endpoint}/{ASSET_BUCKET}/{template_key}",
        Parameters=[{"ParameterKey": EMBEDDED_CLOUD, "ParameterValue": "true"}],
        Capabilities=["CAPABILITY_IAM"],
    )
    return _await_stack(cloudformation)


def synthesize(cache: Path, progress: Callable[[str], None]) -> Path:
    """The cloud assembly of the present sources, from `cache` where it is there already.

    Of others, `cache` keeps those that were used last.
    """
    kept = cache / hash_of_sources()
    if kept.exists():
        os.utime(kept)  # used now: pruning goes by it
        return kept
    progress("synthesizing the stack (kept for the next time)")
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=cache, prefix="draft-"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "CDK_OUTDIR": str(draft),
        # No layer is bundled: the embedded cloud leaves layers out. CDK's own switch for it.
        "CDK_CONTEXT_JSON": json.dumps({"aws:cdk:bundling-stacks": []}),
    }
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        shutil.rmtree(draft)
        raise DeployFailed(f"synthesis failed:\n{done.stderr[-4000:]}")
    try:
        draft.rename(kept)
    except OSError:  # somebody else was as quick, with the same result
        shutil.rmtree(draft)
    prune(cache)
    return kept


def bootstrap(session: boto3.Session) -> None:
    """What `cdk bootstrap` leaves behind and a deployment asks for."""
    session.client("ssm").put_parameter(Name=BOOTSTRAP_PARAMETER, Value="30", Type="String", Overwrite=True)
    session.client("s3").create_bucket(Bucket=ASSET_BUCKET)


def hash_of_sources() -> str:
    """What tells one state of this checkout's code from another."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = REPOSITORY / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(REPOSITORY)}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def prune(cache: Path) -> None:
    """Remove all but the assemblies used last, and drafts that a killed synthesis left."""
    by_use = sorted((entry for entry in cache.iterdir() if entry.is_dir()), key=lambda e: e.stat().st_mtime)
    for entry in by_use[:-KEPT_ASSEMBLIES]:
        shutil.rmtree(entry, ignore_errors=True)


def _assets(assembly: Path) -> Iterator[tuple[str, Path]]:
    manifest: dict[str, Any] = json.loads((assembly / f"{STACK}.assets.json").read_text())
    for file in manifest["files"].values():
        for destination in file["destinations"].values():
            yield destination["objectKey"], assembly / file["source"]["path"]


def _upload(s3: "S3Client", key: str, path: Path) -> None:
    if path.is_file():
        s3.upload_file(str(path), ASSET_BUCKET, key)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = shutil.make_archive(str(Path(folder, "asset")), "zip", path)
        s3.upload_file(archive, ASSET_BUCKET, key)


def _await_stack(cloudformation: "CloudFormationClient") -> dict[str, str]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
        if stack["StackStatus"] == "CREATE_COMPLETE":
            return {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])}
        if not stack["StackStatus"].endswith("IN_PROGRESS"):
            raise DeployFailed(f"the stack ended {stack['StackStatus']}:\n{_reasons(cloudformation)}")
        time.sleep(0.1)
    raise DeployFailed(f"the stack was not created after two minutes:\n{_reasons(cloudformation)}")


def _reasons(cloudformation: "CloudFormationClient") -> str:
    events = cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
    return "\n".join(
        f"  {event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}"
        for event in events
        if event["ResourceStatus"].endswith("FAILED")
    )
