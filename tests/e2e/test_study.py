"""A study from start-execution to the report: by the state machine alone, as the AWS CLI starts it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.metrics import from_line, is_metric_line, to_mapping
from contract.results import study_prefix
from lambdas.table import ExperimentTable
from local.cloud import Cloud
from local.emulator import client_environment
from tests.e2e.machine import (
    PATIENCE_SECONDS,
    QUICK,
    ROOT,
    bare_environment,
    client,
    listeners_of,
    logged,
    running_tasks,
    starts_of,
)
from tests.unit.torchvision_files import write_idx

AWS_CLI = ROOT / ".tools" / "aws" / "bin" / "aws"


@pytest.fixture
def aws(cloud: Cloud) -> Callable[..., str]:
    """The AWS CLI with nothing but an endpoint and what the emulator takes for credentials."""
    if not AWS_CLI.exists():
        pytest.fail("the AWS CLI is missing; `make test` installs it")

    def call(*arguments: str) -> str:
        environment = bare_environment() | client_environment(cloud.endpoint)
        del environment["AWS_ENDPOINT_URL"]  # the option says it, as in the README
        done = subprocess.run(
            [str(AWS_CLI), "--endpoint-url", cloud.endpoint, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_aws_cli_alone_gets_quick_start_and_report(
    cloud: Cloud,
    aws: Callable[..., str],
    ended: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # When the empty study is started as the README says
    machine = cloud.outputs["StateMachineArn"]
    started = aws(
        "stepfunctions", "start-execution", "--state-machine-arn", machine, "--name", "cli", "--input", "{}"
    )
    arn = json.loads(started)["executionArn"]
    ended(arn)

    # Then it succeeded, and the report can be copied
    described = json.loads(aws("stepfunctions", "describe-execution", "--execution-arn", arn))
    assert described["status"] == "SUCCEEDED", described
    output = json.loads(described["output"])
    report = tmp_path / "report.html"
    aws("s3", "cp", output["report"], str(report))
    page = report.read_text()
    assert "sync_4workers" in page
    assert "async_4workers" in page

    # And rows in the table account for every metric line in the log group, one for one
    for name, value in client_environment(cloud.endpoint).items():
        monkeypatch.setenv(name, value)
    lines = [line for line in logged(cloud) if is_metric_line(line)]
    emitted = sorted(json.dumps(to_mapping(from_line(line)), sort_keys=True) for line in lines)
    emitted = [line for line in emitted if json.loads(line)["study"] == "cli"]
    table = ExperimentTable.named(cloud.outputs["TableName"])
    stored = sorted(
        json.dumps(to_mapping(record), sort_keys=True)
        for experiment in ("sync_4workers", "async_4workers")
        for record in table.records("cli", experiment)
    )
    assert len(emitted) > 2 * (5 * 4 + 4)
    assert stored == emitted
    assert running_tasks(cloud) == []


def test_every_file_of_the_results_tree_is_there(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    # Given a study of one number of workers in both modes, over two seeds
    study = {"matrix": {"workers": [2]}, "seeds": [0, 1], "training": QUICK}

    # When it has run
    arn = start(study)
    assert ended(arn)["status"] == "SUCCEEDED"

    # Then its prefix in the bucket holds the tree
    prefix = study_prefix(arn.rsplit(":", 1)[1])
    listing = client(cloud, "s3").list_objects_v2(Bucket=cloud.outputs["BucketName"], Prefix=prefix)
    assert {item["Key"].removeprefix(prefix) for item in listing["Contents"]} == {
        "report.html",
        "summary.csv",
        "summary.txt",
        "study.json",
        *(f"experiments/{mode}_2workers_seed{seed}.json" for mode in ("sync", "async") for seed in (0, 1)),
        *(
            f"plots/{name}.{kind}"
            for name in ("scaling_analysis", "sync_vs_async_2workers")
            for kind in ("png", "svg")
        ),
    }


def test_state_machine_refuses_a_bad_study_without_starting_a_task(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]]
) -> None:
    before = starts_of(cloud)
    described = ended(start({"matrix": {"workers": [0]}, "sedes": [1]}))
    assert (described["status"], described["error"]) == ("FAILED", "StudyRefused")
    assert "matrix.workers[0]" in described["cause"]
    assert "did you mean 'seeds'?" in described["cause"]
    assert starts_of(cloud) == before


def test_listeners_of_the_cloud_are_on_loopback(cloud: Cloud) -> None:
    listeners = listeners_of(cloud)
    assert len(listeners) >= 2
    assert all(address.startswith("127.") for address in listeners)


def test_data_come_from_the_deployments_bucket_and_sync_training_repeats_bit_for_bit(
    cloud: Cloud, start: Callable[..., str], ended: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    # Given a few images in MNIST's format in the bucket
    write_idx(tmp_path / "MNIST" / "raw", train=[0, 1] * 16)
    s3, bucket = client(cloud, "s3"), cloud.outputs["BucketName"]
    for file in sorted((tmp_path / "MNIST" / "raw").iterdir()):
        s3.upload_file(str(file), bucket, f"datasets/tiny/{file.relative_to(tmp_path)}")
    # When a study trains on them, the same experiment twice
    study = {
        "experiments": [{"name": name, "mode": "sync", "workers": 3, "seed": 7} for name in ("one", "two")],
        "training": {"dataset": "mnist", "data": f"s3://{bucket}/datasets/tiny", "model": "mlp", "epochs": 2},
    }
    arn = start(study)
    described = ended(arn)
    # Then both ended with the same parameters
    assert described["status"] == "SUCCEEDED", described.get("cause")
    prefix = study_prefix(arn.rsplit(":", 1)[1])
    digests = {
        json.loads(s3.get_object(Bucket=bucket, Key=f"{prefix}experiments/{name}.json")["Body"].read())[
            "server_metrics"
        ]["parameters_sha256"]
        for name in ("one", "two")
    }
    assert len(digests) == 1
    assert {len(digest) for digest in digests} == {64}
