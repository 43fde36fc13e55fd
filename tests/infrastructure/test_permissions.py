"""Who may do what: what each part needs and no more."""

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from contract.table import (
    SERVER_TOKEN,
    dataset_partition,
    metrics_partition,
    server_partition,
    study_partition,
)
from tests.infrastructure.conftest import Assembly, actions_of

FUNCTION_TRACES = ("xray:PutTraceSegments", "xray:PutTelemetryRecords")
"""Source: X-Ray Developer Guide, AWS Lambda and AWS X-Ray. X-Ray knows no resources."""

MACHINE_TRACES = (*FUNCTION_TRACES, "xray:GetSamplingRules", "xray:GetSamplingTargets")
LOG_DELIVERY = (
    "logs:CreateLogDelivery",
    "logs:GetLogDelivery",
    "logs:UpdateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:DescribeResourcePolicies",
    "logs:DescribeLogGroups",
)
"""Source: Step Functions Developer Guide, logging to CloudWatch Logs: these know no resources either."""

OWN_LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
QUOTAS = (
    "servicequotas:GetServiceQuota",
    "servicequotas:GetAWSDefaultServiceQuota",
    "cloudwatch:GetMetricStatistics",
)
TASKS = {"ecs:ListTasks", "ecs:DescribeTasks", "ecs:StopTask"}
FUNCTION_ACTIONS = {
    "plan_study": {"dynamodb:PutItem", "dynamodb:GetItem", "dynamodb:Query", *QUOTAS},
    "judge_experiment": {
        "dynamodb:GetItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "logs:GetLogEvents",
        *TASKS,
    },
    "ingest_metrics": {"dynamodb:BatchWriteItem", "sqs:SendMessage"},
    "reconcile_metrics": {
        "dynamodb:GetItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "dynamodb:BatchWriteItem",
        "logs:FilterLogEvents",
        "logs:GetLogEvents",
        *TASKS,
    },
    "publish_report": {
        "dynamodb:GetItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "s3:PutObject",
        "sqs:SendMessage",
    },
    "conclude_study": {
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "dynamodb:BatchWriteItem",
        "s3:ListBucket",
        "s3:DeleteObject",
    },
    "sweep_tasks": {
        "dynamodb:GetItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "dynamodb:DeleteItem",
        "states:DescribeExecution",
        "logs:GetLogEvents",
        "lambda:InvokeFunction",
        "sqs:SendMessage",
        *TASKS,
    },
    "stop_studies": {"states:ListExecutions", "states:StopExecution", *TASKS},
}
ECS_SYNC = {
    "ecs:RunTask",
    "ecs:TagResource",
    "ecs:StopTask",
    "ecs:DescribeTasks",
    "iam:PassRole",
    "events:PutTargets",
    "events:PutRule",
    "events:DescribeRule",
}
"""Source: Step Functions Developer Guide, IAM policies for calling Amazon ECS; ECS Developer Guide, tagging."""
DISTRIBUTED_MAP = {
    "states:StartExecution",
    "states:DescribeExecution",
    "states:StopExecution",
    "states:RedriveExecution",
}
"""Source: Step Functions Developer Guide, IAM policies for using Distributed Map states."""


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
    everywhere = set()
    for policy in assembly.resources("AWS::IAM::Policy").values():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow"
            assert not [action for action in actions_of(statement) if "*" in action]
            if statement["Resource"] == "*":
                everywhere.add((tuple(actions_of(statement)), "Condition" in statement))
    assert everywhere == {
        (QUOTAS, False),
        (("ecr:GetAuthorizationToken",), False),
        (("ecs:ListTasks",), True),
        (FUNCTION_TRACES, False),
        (MACHINE_TRACES, False),
        (LOG_DELIVERY, False),
    }
    for role in assembly.resources("AWS::IAM::Role").values():
        assert "ManagedPolicyArns" not in role["Properties"]
        assert "Policies" not in role["Properties"]


@pytest.mark.parametrize("name", FUNCTION_ACTIONS)
def test_a_function_may_do_what_its_code_does(assembly: Assembly, name: str) -> None:
    function = assembly.functions()[name]
    assert allowed(assembly, function["Role"]) == OWN_LOGS | {*FUNCTION_TRACES} | FUNCTION_ACTIONS[name]


def test_clean_up_may_call_the_report_and_read_the_tasks_logs_alone(assembly: Assembly) -> None:
    resources = assembly.template["Resources"]
    statements = {
        action: statement
        for statement in assembly.statements(assembly.functions()["sweep_tasks"]["Role"])
        for action in actions_of(statement)
    }
    function = statements["lambda:InvokeFunction"]["Resource"]["Fn::GetAtt"][0]
    assert resources[function]["Properties"]["Handler"] == "lambdas.publish_report.handler.handler"
    read = statements["logs:GetLogEvents"]["Resource"]["Fn::GetAtt"][0]
    definitions = assembly.resources("AWS::ECS::TaskDefinition").values()
    assert {
        definition["Properties"]["ContainerDefinitions"][0]["LogConfiguration"]["Options"]["awslogs-group"][
            "Ref"
        ]
        for definition in definitions
    } == {read}


def test_deletion_may_stop_the_executions_of_its_state_machine_alone(assembly: Assembly) -> None:
    machine, _ = assembly.only("AWS::StepFunctions::StateMachine")
    statements = {
        action: statement["Resource"]
        for statement in assembly.statements(assembly.functions()["stop_studies"]["Role"])
        for action in actions_of(statement)
    }
    assert statements["states:ListExecutions"] == {"Ref": machine}
    stopped = json.dumps(statements["states:StopExecution"])
    assert machine in stopped
    assert ":execution:" in stopped
    assert stopped.count(":*") == 1


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
    beside = DISTRIBUTED_MAP | {*MACHINE_TRACES, *LOG_DELIVERY}
    assert allowed(assembly, properties["RoleArn"]) == beside.union(*map(needed, resources))


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
    assert len(named) == 5


def test_the_state_machine_starts_and_redrives_its_own_experiments_alone(assembly: Assembly) -> None:
    machine, properties = assembly.only("AWS::StepFunctions::StateMachine")
    granted = {
        action: statement["Resource"]
        for statement in assembly.statements(properties["RoleArn"])
        for action in actions_of(statement)
        if action in DISTRIBUTED_MAP
    }
    assert granted.pop("states:StartExecution") == {"Ref": machine}
    name = {"Fn::GetAtt": [machine, "Name"]}
    for action, resource in granted.items():
        *_, before, told, after = resource["Fn::Join"][1]
        assert before.endswith(":execution:") or before == ":execution:"
        assert told == name
        assert after == ("/*:*" if action == "states:RedriveExecution" else ":*")


def test_tasks_are_tagged_when_they_are_started_and_at_no_other_time(assembly: Assembly) -> None:
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    (tagging,) = (
        statement
        for statement in assembly.statements(properties["RoleArn"])
        if "ecs:TagResource" in actions_of(statement)
    )
    assert tagging["Condition"] == {"StringEquals": {"ecs:CreateAction": "RunTask"}}


def test_the_state_machine_runs_and_passes_what_is_in_its_tasks_alone(assembly: Assembly) -> None:
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    statements = assembly.statements(properties["RoleArn"])
    definitions = assembly.resources("AWS::ECS::TaskDefinition")
    (run,) = (statement for statement in statements if "ecs:RunTask" in actions_of(statement))
    families = {definition["Properties"]["Family"] for definition in definitions.values()}
    granted = {resource["Fn::Join"][1][-1] for resource in run["Resource"]}
    assert granted == {f":task-definition/{family}:*" for family in families}
    assert "ecs:cluster" in run["Condition"]["ArnEquals"]
    (passing,) = (statement for statement in statements if "iam:PassRole" in actions_of(statement))
    roles = {
        definition["Properties"][key]["Fn::GetAtt"][0]
        for definition in definitions.values()
        for key in ("TaskRoleArn", "ExecutionRoleArn")
    }
    assert {resource["Fn::GetAtt"][0] for resource in passing["Resource"]} == roles
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}


def test_a_task_definition_that_is_replaced_stays_for_those_who_began_with_it(assembly: Assembly) -> None:
    """And the last one goes with the stack."""
    for definition in assembly.resources("AWS::ECS::TaskDefinition").values():
        assert (definition["UpdateReplacePolicy"], definition["DeletionPolicy"]) == ("Retain", "Delete")


@pytest.fixture
def task_statements(assembly: Assembly) -> dict[str, list[dict[str, Any]]]:
    """What the server's and the workers' role may do."""
    definitions = assembly.resources("AWS::ECS::TaskDefinition").values()
    return {
        definition["Properties"]["ContainerDefinitions"][0]["Name"]: assembly.statements(
            definition["Properties"]["TaskRoleArn"]
        )
        for definition in definitions
    }


def rows(assembly: Assembly, statement: dict[str, Any]) -> tuple[list[str], str]:
    """Actions on the table, and the one pattern of partitions that they are for."""
    table, _ = assembly.only("AWS::DynamoDB::Table")
    assert statement["Resource"] == {"Fn::GetAtt": [table, "Arn"]}
    ((operator, condition),) = statement["Condition"].items()
    assert operator == "ForAllValues:StringLike"
    ((key, pattern),) = condition.items()
    assert key == "dynamodb:LeadingKeys"
    return actions_of(statement), pattern if isinstance(pattern, str) else pattern[0]


def test_the_server_announces_itself_and_answers_its_rendezvous(
    assembly: Assembly, task_statements: dict[str, list[dict[str, Any]]]
) -> None:
    statements = {tuple(actions_of(statement)): statement for statement in task_statements["server"]}
    token = statements["dynamodb:GetItem",]
    announcement = statements["dynamodb:PutItem",]
    answer = statements["states:SendTaskSuccess", "states:SendTaskFailure"]
    assert rows(assembly, token) == (["dynamodb:GetItem"], "STUDY#*")
    assert rows(assembly, announcement) == (["dynamodb:PutItem"], "SERVER#*/*")
    machine, _ = assembly.only("AWS::StepFunctions::StateMachine")
    assert answer["Resource"] == [{"Ref": machine}, {"Fn::Join": ["", [{"Ref": machine}, "/*"]]}]


def test_the_server_keeps_checkpoints_under_one_prefix(
    assembly: Assembly, task_statements: dict[str, list[dict[str, Any]]]
) -> None:
    bucket, _ = assembly.results_bucket()
    arn = {"Fn::GetAtt": [bucket, "Arn"]}
    listing, objects = (
        statement for statement in task_statements["server"] if actions_of(statement)[0].startswith("s3:")
    )
    assert len(task_statements["server"]) == 5
    assert actions_of(listing) == ["s3:ListBucket"]
    assert listing["Resource"] == arn
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["checkpoints/*"]}}
    assert actions_of(objects) == ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    assert objects["Resource"] == {"Fn::Join": ["", [arn, "/checkpoints/*"]]}


def test_a_worker_reads_announcements_and_data_sets(
    assembly: Assembly, task_statements: dict[str, list[dict[str, Any]]]
) -> None:
    announcement, data = task_statements["worker"]
    assert rows(assembly, announcement) == (["dynamodb:GetItem"], "SERVER#*/*")
    assert actions_of(data) == ["s3:GetObject"]
    bucket, _ = assembly.results_bucket()
    assert data["Resource"] == {"Fn::Join": ["", [{"Fn::GetAtt": [bucket, "Arn"]}, "/datasets/*"]]}


def test_data_sets_are_prepared_under_their_prefix_and_one_row_says_so(
    assembly: Assembly, task_statements: dict[str, list[dict[str, Any]]]
) -> None:
    bucket, _ = assembly.results_bucket()
    arn = {"Fn::GetAtt": [bucket, "Arn"]}
    listing, objects, row = task_statements["prepare"]
    assert (actions_of(listing), listing["Resource"]) == (["s3:ListBucket"], arn)
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["datasets/*"]}}
    assert actions_of(objects) == ["s3:GetObject", "s3:PutObject"]
    assert objects["Resource"] == {"Fn::Join": ["", [arn, "/datasets/*"]]}
    assert rows(assembly, row) == (["dynamodb:PutItem"], "DATASET#*")


def test_the_patterns_of_partitions_fit_their_rows_alone() -> None:
    study, name = "a-study", "sync_1worker"
    others = (study_partition(study), metrics_partition(study, name))
    assert fnmatchcase(server_partition(study, name), "SERVER#*/*")
    assert fnmatchcase(study_partition(study), "STUDY#*")
    assert fnmatchcase(dataset_partition(study), "DATASET#*")
    for pattern in ("SERVER#*/*", "DATASET#*"):
        assert not [other for other in others if fnmatchcase(other, pattern)]


def test_the_state_machine_never_reads_what_lets_workers_in(machine: dict[str, Any]) -> None:
    """A history keeps whole rows: one with a token must be none that a state reads or writes."""
    text = json.dumps(machine)
    assert "STUDY#" in text
    assert server_partition("", "").removesuffix("/") not in text
    assert SERVER_TOKEN not in text


def test_each_role_can_be_assumed_by_the_service_that_uses_it_alone(assembly: Assembly) -> None:
    _, machine = assembly.only("AWS::StepFunctions::StateMachine")
    users = {str(machine["RoleArn"]): "states.amazonaws.com"}
    users |= {str(function["Role"]): "lambda.amazonaws.com" for function in assembly.functions().values()}
    for definition in assembly.resources("AWS::ECS::TaskDefinition").values():
        for key in ("TaskRoleArn", "ExecutionRoleArn"):
            users[str(definition["Properties"][key])] = "ecs-tasks.amazonaws.com"
    for flow_log in assembly.resources("AWS::EC2::FlowLog").values():
        users[str(flow_log["Properties"]["DeliverLogsPermissionArn"])] = "vpc-flow-logs.amazonaws.com"
    trust = {}
    for logical_id, role in assembly.resources("AWS::IAM::Role").items():
        (statement,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        trust[str({"Fn::GetAtt": [logical_id, "Arn"]})] = statement["Principal"]["Service"]
    assert trust == users
