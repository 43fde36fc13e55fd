"""Every grant is needed and none is missing: studies of every kind, and what they asked IAM.

The emulator enforces IAM and notes each decision. Afterwards every grant of the deployed stack is taken away in turn,
and MiniStack's evaluator decides on the noted requests again: one of them must be denied. Some are taken away for
real, from a running cloud.
"""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from contract.table import (
    PARTITION_KEY,
    SORT_KEY,
    STUDY_SORT,
    Status,
    study_partition,
)
from local.cloud import Cloud, start_cloud
from local.deploy import STACK
from local.emulation.decisions import FILE
from tests.e2e.grants import (
    Asked,
    Policies,
    Unexercised,
    deployed,
    listed,
    missing,
    recorded,
    slack,
    stale,
    superfluous,
)
from tests.e2e.machine import LONG, QUICK, await_end, client, running_tasks, start_study, trained, until
from tests.e2e.provocations import function_name
from tests.infrastructure.test_permissions import FUNCTION_TRACES, LOG_DELIVERY, MACHINE_TRACES, OWN_LOGS
from tests.unit.torchvision_files import write_idx

UNEXERCISED = [
    *(
        Unexercised(
            "TrainingExecutionRole", action, "Amazon ECS Developer Guide, Amazon ECS task execution IAM role"
        )
        for action in (
            "ecr:GetAuthorizationToken",
            "ecr:BatchCheckLayerAvailability",
            "ecr:GetDownloadUrlForLayer",
            "ecr:BatchGetImage",
            *OWN_LOGS,
        )
    ),
    *(
        Unexercised("Functions*Role", action, "AWS Lambda Developer Guide, execution role")
        for action in OWN_LOGS
    ),
    *(
        Unexercised("Functions*Role", action, "X-Ray Developer Guide, AWS Lambda and AWS X-Ray")
        for action in FUNCTION_TRACES
    ),
    *(
        Unexercised(f"Functions{name}Role", "sqs:SendMessage", "AWS Lambda Developer Guide, destinations")
        for name in ("IngestMetrics", "SweepTasks", "PublishReport")
    ),
    *(
        Unexercised("WorkflowRole", action, "X-Ray Developer Guide, AWS Step Functions and AWS X-Ray")
        for action in MACHINE_TRACES
    ),
    *(
        Unexercised("WorkflowRole", action, "Step Functions Developer Guide, logging to CloudWatch Logs")
        for action in LOG_DELIVERY
    ),
    *(
        Unexercised(
            "WorkflowRole", action, "Step Functions Developer Guide, IAM policies for Amazon ECS, .sync"
        )
        for action in (
            "ecs:StopTask",
            "ecs:DescribeTasks",
            "events:PutTargets",
            "events:PutRule",
            "events:DescribeRule",
        )
    ),
    *(
        Unexercised(
            "WorkflowRole", action, "Step Functions Developer Guide, IAM policies for Distributed Map"
        )
        for action in ("states:DescribeExecution", "states:StopExecution", "states:RedriveExecution")
    ),
    *(
        # It leaves open which a token of a distributed Map's execution belongs to.
        Unexercised(
            role, action, "Step Functions API Reference, StartExecution", resource="*:stateMachine:*/*"
        )
        for role, action in (
            ("WorkflowRole", "states:SendTaskFailure"),
            ("TrainingServerTaskRole", "states:SendTaskFailure"),
            ("TrainingServerTaskRole", "states:SendTaskSuccess"),
        )
    ),
]
"""What AWS does with these roles, and the emulator without asking; each with the page that demands the grant."""


IMAGES = {"dataset": "mnist", "model": "mlp", "epochs": 1}


class Removal(NamedTuple):
    """A grant that is taken away while a study runs, and what the study's end says of it."""

    study: str
    role: str
    action: str
    cause: str


REMOVALS = [
    Removal("no-plan", "FunctionsPlanStudyRole", "dynamodb:PutItem", "the study could not be planned"),
    Removal("no-mark", "WorkflowRole", "dynamodb:UpdateItem", "no task of it was started"),
    Removal("no-address", "TrainingServerTaskRole", "dynamodb:PutItem", "address could not be announced"),
]


class Exercised(NamedTuple):
    """A stack's policies, what was asked of them, and how the studies ended that lacked a grant."""

    policies: Policies
    asked: list[Asked]
    ends: Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def exercised(tmp_path_factory: pytest.TempPathFactory) -> Exercised:
    folder = tmp_path_factory.mktemp("permissions")
    decisions = folder / "decisions.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FILE, str(decisions))
        cloud = start_cloud(folder / "state", tied=True, progress=print)
    try:
        policies, holders = deployed(partial(client, cloud), STACK)
        rules = _hasten_schedules(cloud)
        _run_side_by_side(cloud, folder)
        roles = {holder: role for role, holder in holders.items()}
        _run_untaken(cloud, roles["FunctionsJudgeExperimentRole"])
        _run_under_a_taken_name(cloud)
        ends = {removal.study: _run_without(cloud, roles[removal.role], removal) for removal in REMOVALS}
        until(lambda: all(rule in decisions.read_text() for rule in rules), "every schedule has come")
        _delete_the_stack(cloud)
    finally:
        cloud.stop()
    # Nobody writes to it any more
    return Exercised(policies, recorded(decisions, holders), ends)


def test_no_grant_is_missing(exercised: Exercised) -> None:
    assert exercised.asked
    assert missing(exercised.policies, exercised.asked) == []


def test_every_grant_is_needed(exercised: Exercised) -> None:
    assert superfluous(exercised.policies, exercised.asked, UNEXERCISED) == []


def test_what_is_said_to_be_unexercised_is_granted_and_is_so(exercised: Exercised) -> None:
    assert stale(exercised.policies, exercised.asked, UNEXERCISED) == []


def test_every_condition_holds_requests_back(exercised: Exercised) -> None:
    assert slack(exercised.policies, exercised.asked) == []


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda removal: removal.study)
def test_a_grant_that_is_taken_away_is_the_named_cause(exercised: Exercised, removal: Removal) -> None:
    described = exercised.ends[removal.study]
    assert described["status"] == "FAILED"
    assert removal.cause in described["cause"]
    assert f"is not authorized to perform: {removal.action}" in described["cause"]


def _one(name: str, **more: Any) -> dict[str, Any]:
    """A study of one small experiment that has the study's name."""
    return {"experiments": [{"name": name, "mode": "sync", "workers": 1}], "training": QUICK} | more


def _slow(name: str, **more: Any) -> dict[str, Any]:
    """The same, for some seconds."""
    return _one(name, training={**QUICK, "batch_size": 128}, compute=LONG) | more


def _hasten_schedules(cloud: Cloud) -> list[str]:
    """Have scheduled rules come every minute; their ARNs."""
    events = client(cloud, "events")
    rules = [rule for rule in events.list_rules()["Rules"] if rule.get("ScheduleExpression")]
    for rule in rules:
        events.put_rule(Name=rule["Name"], ScheduleExpression="rate(1 minute)")
    return [rule["Arn"] for rule in rules]


def _run_side_by_side(cloud: Cloud, folder: Path) -> None:
    """Data from the bucket, checkpoints of which one is damaged, a task that outlives its experiment, and an abort.

    What is redriven starts when the others have come so far: its one worker is to be killed in seconds.
    """
    s3, bucket = client(cloud, "s3"), cloud.outputs["BucketName"]
    write_idx(folder / "MNIST" / "raw", train=[0, 1] * 16)
    for file in sorted((folder / "MNIST" / "raw").iterdir()):
        s3.upload_file(str(file), bucket, f"datasets/mnist/{file.relative_to(folder)}")
    s3.put_object(Bucket=bucket, Key="checkpoints/keeping/keeping/00000001.safetensors", Body=b"damaged")
    modes = [{"name": mode, "mode": mode, "workers": 1} for mode in ("sync", "async")]
    studies = {
        "reading": {"experiments": modes, "training": IMAGES},
        "keeping": _slow("keeping", checkpoint={"interval_seconds": 1}),
        "leaving": _slow("leaving"),
        "aborted": _slow("aborted", training={**QUICK, "epochs": 100}),
    }
    arns = {name: start_study(cloud, name, study) for name, study in studies.items()}
    _leave_a_server(cloud, "leaving")
    _stop_in_the_middle(cloud, arns["aborted"])
    redriven = _slow(
        "redriven",
        training={**QUICK, "epochs": 6, "batch_size": 128},
        checkpoint={"interval_seconds": 0.5},
    )
    arns["redriven"] = start_study(cloud, "redriven", redriven)
    _redrive(cloud, arns["redriven"])
    ends = {name: await_end(cloud, arn) for name, arn in arns.items()}
    causes = {name: ends[name].get("cause") for name in ("reading", "keeping", "redriven")}
    assert not any(causes.values()), causes
    until(lambda: not running_tasks(cloud), "no task left")


def _stop_in_the_middle(cloud: Cloud, arn: str) -> None:
    name = arn.rsplit(":", 1)[1]
    until(lambda: len(running_tasks(cloud, arn)) == 2, f"tasks of {name}")
    client(cloud, "stepfunctions").stop_execution(executionArn=arn)


def _leave_a_server(cloud: Cloud, name: str) -> None:
    """Start one more server in a running experiment's group, which does nothing and so outlives the experiment."""
    ecs, cluster = client(cloud, "ecs"), cloud.outputs["ClusterArn"]

    def server() -> Any:
        arns = ecs.list_tasks(cluster=cluster)["taskArns"]
        tasks = ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"] if arns else []
        groups = [task for task in tasks if task["group"] == f"{name}/{name}"]
        return next((task for task in groups if task["containers"][0]["name"] == "server"), None)

    task = until(server, f"the server of {name}")
    (override,) = task["overrides"]["containerOverrides"]
    environment = {pair["name"]: pair["value"] for pair in override["environment"]}
    environment["WORKER_AWAY_SECONDS"] = "3600"
    pairs = [{"name": key, "value": value} for key, value in environment.items()]
    ecs.run_task(
        cluster=cluster,
        taskDefinition=task["taskDefinitionArn"],
        launchType="FARGATE",
        group=task["group"],
        overrides={"containerOverrides": [{"name": "server", "environment": pairs}]},
    )


def _redrive(cloud: Cloud, arn: str) -> None:
    """Run again what failed, where its worker was killed in training, when there were checkpoints."""
    name = arn.rsplit(":", 1)[1]
    s3, bucket = client(cloud, "s3"), cloud.outputs["BucketName"]
    kept = f"checkpoints/{name}/"
    until(lambda: trained(cloud, arn, name), f"{name} trains")
    until(lambda: s3.list_objects_v2(Bucket=bucket, Prefix=kept)["KeyCount"], f"checkpoints of {name}")
    (worker,) = (task for task in running_tasks(cloud, arn) if task.role == "worker")
    os.kill(worker.pid, signal.SIGKILL)
    assert await_end(cloud, arn)["status"] == "FAILED"
    client(cloud, "stepfunctions").redrive_execution(executionArn=arn)


def _run_untaken(cloud: Cloud, judge_role: str) -> None:
    """No metric line is taken and no verdict given: records are read from the log group, tasks ended afterwards."""
    functions, ingest = client(cloud, "lambda"), function_name(cloud, "ingest_metrics")
    functions.put_function_concurrency(FunctionName=ingest, ReservedConcurrentExecutions=0)
    with _removed(cloud, judge_role, "dynamodb:GetItem"):
        arn = start_study(cloud, "untaken", _slow("untaken"))
        _leave_a_server(cloud, "untaken")
        await_end(cloud, arn)
    functions.delete_function_concurrency(FunctionName=ingest)


def _run_under_a_taken_name(cloud: Cloud) -> None:
    """As after the history of an execution has expired, whose rows are still there."""
    row = {
        PARTITION_KEY: study_partition("taken"),
        SORT_KEY: STUDY_SORT,
        "document": json.dumps(_one("taken")),
        "status": Status.COMPLETED,
        "created_at": "2026-01-01T00:00:00+00:00",
        "execution_arn": "arn:aws:states:us-east-1:000000000000:execution:Lockstep:taken",
        "execution_started_at": "2026-01-01T00:00:00+00:00",
    }
    client(cloud, "dynamodb").put_item(
        TableName=cloud.outputs["TableName"], Item={key: {"S": value} for key, value in row.items()}
    )
    described = await_end(cloud, start_study(cloud, "taken", _one("taken")))
    assert described["error"] == "StudyRefused"


def _run_without(cloud: Cloud, role: str, removal: Removal) -> dict[str, Any]:
    with _removed(cloud, role, removal.action):
        study = _one(removal.study, training=IMAGES)  # which is prepared already
        return await_end(cloud, start_study(cloud, removal.study, study))


def _delete_the_stack(cloud: Cloud) -> None:
    """In the middle of a study."""
    arn = start_study(cloud, "deleted", _slow("deleted", training={**QUICK, "epochs": 100}))
    until(lambda: len(running_tasks(cloud, arn)) == 2, "tasks of deleted")
    cloudformation = client(cloud, "cloudformation")
    cloudformation.delete_stack(StackName=STACK)
    cloudformation.get_waiter("stack_delete_complete").wait(StackName=STACK, WaiterConfig={"Delay": 1})


@contextmanager
def _removed(cloud: Cloud, role: str, action: str) -> Iterator[None]:
    """Take an action out of every statement of a role, for as long as this lasts."""
    iam = client(cloud, "iam")
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    documents = {
        name: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names
    }
    for name, document in documents.items():
        kept = [
            {**statement, "Action": left}
            for statement in document["Statement"]
            if (left := [each for each in listed(statement["Action"]) if each != action])
        ]
        iam.put_role_policy(
            RoleName=role, PolicyName=name, PolicyDocument=json.dumps({**document, "Statement": kept})
        )
    yield
    for name, document in documents.items():
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps(document))
