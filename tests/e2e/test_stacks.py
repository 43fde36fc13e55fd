"""A stack that is updated or deleted in the middle of a study; beside it another one goes on."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cdk import EMBEDDED_CLOUD
from local.cloud import Cloud
from local.deploy import ASSET_BUCKET, STACK
from tests.e2e.lifetimes import ENDLESS, trains
from tests.e2e.machine import await_death, client, definitions_of, start_study, until


@pytest.fixture
def second(cloud: Cloud) -> Iterator[Cloud]:
    """A second stack, beside the first one."""
    cloudformation = client(cloud, "cloudformation")
    name = f"{STACK}-other"
    cloudformation.create_stack(
        StackName=name,
        TemplateURL=f"{cloud.endpoint}/{ASSET_BUCKET}/{STACK}.template.json",
        Parameters=[{"ParameterKey": EMBEDDED_CLOUD, "ParameterValue": "true"}],
        Capabilities=["CAPABILITY_IAM"],
    )
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    outputs = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    yield replace(cloud, outputs={o["OutputKey"]: o["OutputValue"] for o in outputs})
    delete_second_stack(cloud)


def delete_second_stack(cloud: Cloud) -> None:
    cloudformation = client(cloud, "cloudformation")
    cloudformation.delete_stack(StackName=f"{STACK}-other")
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=f"{STACK}-other", WaiterConfig={"Delay": 1}
    )


def test_updated_stack(cloud: Cloud, second: Cloud, study: str) -> None:
    """An experiment that begins after all task definitions were replaced has those that its study began with."""
    # Given the first of two experiments, one at a time
    two = [{"name": name, "mode": "sync", "workers": 1} for name in ("first", "next")]
    arn = start_study(second, study, {**ENDLESS, "experiments": two, "max_parallel_experiments": 1})
    tasks = until(lambda: trains(second, arn), "the first one trains")

    # When the stack is deployed anew
    ecs, cloudformation = client(second, "ecs"), client(second, "cloudformation")
    began_with = set(ecs.list_task_definitions()["taskDefinitionArns"])
    s3, key = client(second, "s3"), f"{STACK}.template.json"
    template = json.loads(s3.get_object(Bucket=ASSET_BUCKET, Key=key)["Body"].read())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::ECS::TaskDefinition":
            resource["Properties"]["ContainerDefinitions"][0]["StopTimeout"] += 1
    s3.put_object(Bucket=ASSET_BUCKET, Key=f"other-{key}", Body=json.dumps(template))
    cloudformation.update_stack(
        StackName=f"{STACK}-other",
        TemplateURL=f"{cloud.endpoint}/{ASSET_BUCKET}/other-{key}",
        Parameters=[{"ParameterKey": EMBEDDED_CLOUD, "UsePreviousValue": True}],
        Capabilities=["CAPABILITY_IAM"],
    )
    cloudformation.get_waiter("stack_update_complete").wait(
        StackName=f"{STACK}-other", WaiterConfig={"Delay": 1}
    )
    assert len(set(ecs.list_task_definitions()["taskDefinitionArns"]) - began_with) == 3

    # Then the next one trains as the first one did
    os.kill(next(task.pid for task in tasks if task.role == "worker"), signal.SIGKILL)
    until(lambda: {t.experiment for t in trains(second, arn) or []} == {"next"}, "the next one trains")
    assert definitions_of(second, arn) <= began_with


def test_deleted_stack(cloud: Cloud, second: Cloud, study: str) -> None:
    arn = start_study(second, study, ENDLESS)
    tasks = until(lambda: trains(second, arn), "its tasks are running")
    delete_second_stack(cloud)
    # Nothing of its study is left
    await_death(cloud, [task.pid for task in tasks])
    described = client(cloud, "stepfunctions").describe_execution(executionArn=arn)
    assert (described["status"], described["error"]) == ("ABORTED", "StackDeleted")
