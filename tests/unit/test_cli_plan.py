"""`lockstep plan`: the matrix, durations, cost and quota, with and without a deployment; nothing is started."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from typer.testing import CliRunner, Result

from cli.__main__ import app
from cli.deployment import Deployment, NoDeployment
from cli.exit_codes import ExitCode
from contract.forecast import Forecast
from lambdas.plan_study.handler import handler
from lambdas.table import ExperimentTable
from tests.unit.conftest import BUCKET, TABLE

EMULATED: dict[str, Any] = {
    "matrix": {"workers": [1, 4]},
    "compute": {"mode": "emulated", "distribution": "exponential", "mean_ms": 50},
}


def run(tmp_path: Path, document: dict[str, Any], *arguments: str, verb: str = "plan") -> Result:
    file = tmp_path / "study.json"
    file.write_text(json.dumps(document))
    return CliRunner().invoke(app, [verb, str(file), *arguments], terminal_width=200)


@pytest.fixture
def no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Deployment:
        raise NoDeployment("no stack 'Lockstep' to be found on AWS: Unable to locate credentials")

    monkeypatch.setattr(Deployment, "on_aws", absent)


@pytest.fixture
def stack(
    aws: boto3.Session,
    table: ExperimentTable,  # noqa: ARG001 - the function reads it
    context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Lockstep's outputs, and behind them the real function, called over Lambda's protocol."""
    deployment = Deployment(aws, "machine", TABLE, BUCKET, "cluster", "stack Lockstep", "plan-function")
    monkeypatch.setattr(Deployment, "on_aws", lambda *_: deployment)

    class Function(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/2015-03-31/functions/plan-function/invocations"
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(handler(event, context)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Function) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_stack")
def test_without_a_deployment_the_document_alone_is_planned(tmp_path: Path) -> None:
    done = run(tmp_path, EMULATED)
    assert done.exit_code == ExitCode.DONE, done.output
    for name in ("sync_1worker", "async_1worker", "sync_4workers", "async_4workers"):
        assert name in done.stdout
    assert "cost      $0." in done.stdout
    assert "us-east-1" in done.stdout
    assert "without quota and history: no stack 'Lockstep'" in done.stdout
    assert "quota     " not in done.stdout


@pytest.mark.usefixtures("no_stack")
def test_as_json_it_is_the_forecast_itself(tmp_path: Path) -> None:
    done = run(tmp_path, EMULATED, "--json")
    planned = Forecast.model_validate_json(done.stdout)
    assert len(planned.experiments) == 4
    assert planned.peak_tasks == 10
    assert planned.quotas == []


@pytest.mark.usefixtures("no_stack")
def test_real_compute_without_history_is_said_to_be_a_guess(tmp_path: Path) -> None:
    done = run(tmp_path, {})
    assert "guess: a guess, from the model's size: nothing like it has completed here" in done.stdout


@pytest.mark.usefixtures("no_stack")
def test_a_study_above_its_bound_is_told_with_the_breakdown_and_the_status_of_a_refusal(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, {**EMULATED, "max_cost_usd": 0.001})
    assert done.exit_code == ExitCode.REFUSED
    assert "refused   max_cost_usd: the study would cost $0." in done.stdout


@pytest.mark.usefixtures("no_stack")
def test_a_bad_study_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    done = run(tmp_path, {"matrix": {"workers": [0]}})
    assert done.exit_code == ExitCode.REFUSED
    assert "matrix.workers[0]" in done.stderr
    assert done.stdout == ""


@pytest.mark.usefixtures("no_stack")
def test_what_ecs_would_not_take_is_refused(tmp_path: Path) -> None:
    def links(digits: str) -> list[dict[str, float]]:
        return [
            {"rank": rank, "bandwidth_mbit_per_second": float(digits), "latency_ms": float(digits)}
            for rank in range(32)
        ]

    stragglers = [{"rank": rank, "slowdown": 1.2345678901234567} for rank in range(32)]
    document = {
        "experiments": [{"name": "n" * 64, "mode": "sync", "workers": 32}],
        "compute": {**EMULATED["compute"], "stragglers": stragglers},
        "network": {"workers": links("12.345678901234567")},
    }
    crashes = [
        {"rank": rank, "step": 10**9, "restart_after_seconds": 123.45678901234567} for rank in range(32)
    ]
    refused = run(tmp_path, {**document, "faults": {"crashes": crashes}, "on_worker_loss": "continue"})
    assert refused.exit_code == ExitCode.REFUSED
    assert (
        "ECS takes at most 8,192: shorten compute.stragglers, network.workers or faults.crashes"
        in refused.stderr
    )
    assert run(tmp_path, {**document, "network": {"workers": links("12.5")}}).exit_code == ExitCode.DONE


@pytest.mark.usefixtures("stack")
def test_a_deployment_plans_with_its_own_quota_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: ExperimentTable
) -> None:
    monkeypatch.setenv("VCPU_QUOTA", "9")
    done = run(tmp_path, EMULATED)
    assert done.exit_code == ExitCode.DONE, done.output
    assert "quota     9 on-demand vCPUs (the deployment's setting)" in done.stdout
    assert "lowered from 2 to 1" in done.stdout
    assert table.study("plan") is None


@pytest.mark.usefixtures("stack")
def test_what_the_quota_does_not_bear_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCPU_QUOTA", "4")
    done = run(tmp_path, EMULATED)
    assert done.exit_code == ExitCode.REFUSED
    assert "sync_4workers needs 5 on-demand vCPUs at once; the quota is 4" in done.stdout


@pytest.mark.usefixtures("aws")
def test_a_stack_from_before_there_were_plans_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: boto3.Session
) -> None:
    old = Deployment(aws, "machine", TABLE, BUCKET, "cluster", "stack Lockstep in us-east-1")
    monkeypatch.setattr(Deployment, "on_aws", lambda *_: old)
    done = run(tmp_path, EMULATED)
    assert done.exit_code == ExitCode.FAILED
    assert "deploy it again" in done.stderr
