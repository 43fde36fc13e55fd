"""Who may do what: what each part needs and no more."""

from typing import Any

import pytest

from tests.infrastructure.conftest import Assembly, actions_of

OWN_LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
TASKS = {"ecs:ListTasks", "ecs:DescribeTasks", "ecs:StopTask"}
FUNCTION_ACTIONS = {
    "plan_study": {"dynamodb:PutItem", "dynamodb:GetItem"},
    "judge_experiment": {"dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem", *TASKS},
    "ingest_metrics": {"dynamodb:BatchWriteItem"},
    "reconcile_metrics": {
        "dynamodb:GetItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "dynamodb:BatchWriteItem",
        "logs:FilterLogEvents",
    },
    "publish_report": {"dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem", "s3:PutObject"},
    "sweep_tasks": {"dynamodb:Query", "dynamodb:UpdateItem", "states:DescribeExecution", *TASKS},
}
ECS_SYNC = {
    "ecs:RunTask",
    "ecs:StopTask",
    "ecs:DescribeTasks",
    "iam:PassRole",
    "events:PutTargets",
    "events:PutRule",
    "events:DescribeRule",
}
"""Source: Step Functions Developer Guide, IAM policies for calling Amazon ECS."""


def allowed(assembly: Assembly, role: dict[str, Any]) -> set[str]:
    return {action for statement in assembly.statements(role) for action in actions_of(statement)}


def needed(resource: str) -> set[str]:
    """IAM actions of a Task state's resource."""
    integration = resource.removeprefix("arn:aws:states:::").removeprefix("aws-sdk:")
    service, action = integration.removesuffix(".waitForTaskToken").split(":", 1)
    if (service, action) == ("ecs", "runTask.sync"):
        return ECS_SYNC
    if (service, action) == ("lambda", "invoke"):
        return {"lambda:InvokeFunction"}
    prefix = {"dynamodb": "dynamodb", "sfn": "states"}[service]
    return {f"{prefix}:{action[0].upper()}{action[1:]}"}


def task_states(states: dict[str, Any]) -> list[dict[str, Any]]:
    """Every Task state, however deep."""
    found = []
    for state in states.values():
        if state["Type"] == "Task":
            found.append(state)
        for inner in [
            *state.get("Branches", []),
            *([state["ItemProcessor"]] if "ItemProcessor" in state else []),
        ]:
            found += task_states(inner["States"])
    return found


def test_no_grant_is_wider_than_a_name(assembly: Assembly) -> None:
    """`Resource: *` only where AWS knows no narrower one, and then bound by a condition or harmless."""
    everywhere = []
    for policy in assembly.resources("AWS::IAM::Policy").values():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow"
            assert not [action for action in actions_of(statement) if "*" in action]
            if statement["Resource"] == "*":
                everywhere.append((tuple(actions_of(statement)), "Condition" in statement))
    assert sorted(everywhere) == [
        (("ecr:GetAuthorizationToken",), False),
        (("ecs:ListTasks",), True),
        (("ecs:ListTasks",), True),
    ]
    for role in assembly.resources("AWS::IAM::Role").values():
        assert "ManagedPolicyArns" not in role["Properties"]
        assert "Policies" not in role["Properties"]


@pytest.mark.parametrize("name", FUNCTION_ACTIONS)
def test_a_function_may_do_what_its_code_does(assembly: Assembly, name: str) -> None:
    function = assembly.functions()[name]
    assert allowed(assembly, function["Role"]) == OWN_LOGS | FUNCTION_ACTIONS[name]


def test_every_function_is_accounted_for(assembly: Assembly) -> None:
    assert assembly.functions().keys() == FUNCTION_ACTIONS.keys()
    roles = [str(function["Role"]) for function in assembly.functions().values()]
    assert len(set(roles)) == len(roles)


def test_the_state_machine_may_do_what_its_states_do_and_no_more(
    assembly: Assembly, machine: dict[str, Any]
) -> None:
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    resources = {state["Resource"] for state in task_states(machine["States"])}
    assert len(resources) >= 5
    assert allowed(assembly, properties["RoleArn"]) == set().union(*map(needed, resources))


def test_the_state_machine_may_call_the_functions_that_it_names_alone(assembly: Assembly) -> None:
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    named = {
        value["Fn::GetAtt"][0]
        for name, value in properties["DefinitionSubstitutions"].items()
        if name.endswith("Function")
    }
    callable_ = {
        resource["Fn::GetAtt"][0]
        for statement in assembly.statements(properties["RoleArn"])
        if "lambda:InvokeFunction" in actions_of(statement)
        for resource in statement["Resource"]
        if "Fn::GetAtt" in resource
    }
    assert named == callable_
    assert len(named) == 4


def test_the_state_machine_runs_and_passes_what_is_in_its_tasks_alone(assembly: Assembly) -> None:
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    statements = assembly.statements(properties["RoleArn"])
    definitions = assembly.resources("AWS::ECS::TaskDefinition")
    run = [statement for statement in statements if "ecs:RunTask" in actions_of(statement)]
    assert {statement["Resource"]["Ref"] for statement in run} == definitions.keys()
    assert all("ecs:cluster" in statement["Condition"]["ArnEquals"] for statement in run)
    (passing,) = (statement for statement in statements if "iam:PassRole" in actions_of(statement))
    roles = {
        definition["Properties"][key]["Fn::GetAtt"][0]
        for definition in definitions.values()
        for key in ("TaskRoleArn", "ExecutionRoleArn")
    }
    assert {resource["Fn::GetAtt"][0] for resource in passing["Resource"]} == roles
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}


def test_the_server_answers_its_rendezvous_and_a_worker_reads_data_sets(assembly: Assembly) -> None:
    roles = {
        resource["Properties"]["ContainerDefinitions"][0]["Name"]: resource["Properties"]["TaskRoleArn"]
        for resource in assembly.resources("AWS::ECS::TaskDefinition").values()
    }
    assert allowed(assembly, roles["server"]) == {
        "dynamodb:GetItem",
        "states:SendTaskSuccess",
        "states:SendTaskFailure",
        "states:SendTaskHeartbeat",
    }
    (reading,) = assembly.statements(roles["worker"])
    assert actions_of(reading) == ["s3:GetObject"]
    bucket, _ = assembly.only("AWS::S3::Bucket")
    assert reading["Resource"] == {"Fn::Join": ["", [{"Fn::GetAtt": [bucket, "Arn"]}, "/datasets/*"]]}
