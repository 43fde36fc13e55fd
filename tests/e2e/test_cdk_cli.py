"""The real CDK command line deploys the app, as `cdk deploy` on AWS does."""

import json
import subprocess
from pathlib import Path

import boto3
import pytest

from cdk import EMBEDDED_CLOUD
from local.deploy import bootstrap
from local.emulator import client_environment, start_emulator
from local.engines import SELF_NAME
from tests.e2e.machine import PATIENCE_SECONDS, ROOT, bare_environment

CDK_CLI = ROOT / ".tools" / "cdk" / "node_modules" / ".bin" / "cdk"


def test_cdk_deploy_creates_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not CDK_CLI.exists():
        pytest.fail("the CDK command line is missing; `make test` installs it")
    # Given an emulator that looks like a bootstrapped account
    emulator = start_emulator(tmp_path, docker_host="tcp://127.0.0.1:1", host_name=SELF_NAME)
    try:
        environment = client_environment(emulator.endpoint)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        bootstrap(boto3.Session())

        # When the command line deploys the app
        outputs = tmp_path / "outputs.json"
        bare = bare_environment()
        done = subprocess.run(
            [
                *(str(CDK_CLI), "deploy", "--require-approval", "never", "--no-notices", "--ci"),
                *("--output", str(tmp_path / "cdk.out"), "--outputs-file", str(outputs)),
                *("--parameters", f"{EMBEDDED_CLOUD}=true"),
                # No Docker here: an image that is in a registry already, as a CI job would have put it there.
                *("--context", "image=registry.example/lockstep-runtime:1"),
            ],
            cwd=ROOT,
            env={**bare, **environment, "PATH": f"{ROOT / '.venv' / 'bin'}:{bare['PATH']}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

        # Then the stack is there, with its outputs
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(json.loads(outputs.read_text())["Lockstep"]) >= {
            "StateMachineArn",
            "TableName",
            "BucketName",
        }
        stacks = boto3.client("cloudformation").describe_stacks(StackName="Lockstep")["Stacks"]
        assert stacks[0]["StackStatus"] == "CREATE_COMPLETE"
    finally:
        emulator.stop()
