"""What a user sees when AWS fails or a file cannot be written: what was wrong, and what goes on without them."""

import time
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner, Result

from cli.__main__ import app
from cli.deployment import Deployment
from cli.exit_codes import ExitCode
from tests.unit.conftest import BUCKET, TABLE

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:machine"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", *arguments])


@pytest.fixture
def stack(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lockstep's outputs, and nothing behind them; moto's CloudFormation would need packages of its own."""
    deployment = Deployment(aws, MACHINE, TABLE, BUCKET, "cluster", "hint")
    monkeypatch.setattr(Deployment, "on_aws", lambda *_: deployment)


@pytest.fixture
def machine(aws: boto3.Session, stack: None) -> None:  # noqa: ARG001 - nothing is run without it
    aws.client("stepfunctions").create_state_machine(
        name="machine", definition="{}", roleArn="arn:aws:iam::123456789012:role/any"
    )


@pytest.mark.usefixtures("stack")
def test_an_error_of_aws_is_one_line(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path))
    assert done.exit_code == ExitCode.FAILED
    (line,) = done.stderr.splitlines()
    assert "StateMachineDoesNotExist" in line
    assert isinstance(done.exception, SystemExit)


@pytest.mark.usefixtures("machine")
def test_an_error_while_watching_says_that_the_study_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aws: boto3.Session
) -> None:
    # Given a deployment whose table is gone
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    # When a study is run there
    done = run("--output", str(tmp_path))

    # Then looking was tried several times, and the user knows of the execution and how to stop it
    (execution,) = aws.client("stepfunctions").list_executions(stateMachineArn=MACHINE)["executions"]
    assert len(pauses) == 3
    assert done.exit_code == ExitCode.FAILED
    started, goes_on, how, cause = done.stderr.splitlines()
    assert execution["name"] in started
    assert execution["executionArn"] in goes_on
    assert f"stepfunctions stop-execution --execution-arn {execution['executionArn']}" in how
    assert "ResourceNotFoundException" in cause


@pytest.mark.usefixtures("machine", "table")
def test_results_that_cannot_be_fetched_are_told_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aws: boto3.Session
) -> None:
    # Given a deployment without its bucket, and a study that ends while it is watched
    states = aws.client("stepfunctions")

    def end(_: float) -> None:
        for execution in states.list_executions(stateMachineArn=MACHINE)["executions"]:
            states.stop_execution(executionArn=execution["executionArn"])

    monkeypatch.setattr(time, "sleep", end)
    done = run("--output", str(tmp_path))
    assert done.exit_code == ExitCode.FAILED
    last = done.stderr.splitlines()[-1]
    assert "has aborted, but its results were not fetched" in last
    assert f"s3://{BUCKET}/studies/" in last
    assert "goes on running" not in done.stderr


@pytest.mark.usefixtures("machine")
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_started(
    tmp_path: Path, aws: boto3.Session
) -> None:
    (tmp_path / "file").touch()
    done = run("--output", str(tmp_path / "file" / "results"))
    assert done.exit_code == ExitCode.FAILED
    (line,) = done.stderr.splitlines()
    assert "results cannot be written to" in line
    assert "--output" in line
    assert aws.client("stepfunctions").list_executions(stateMachineArn=MACHINE)["executions"] == []
