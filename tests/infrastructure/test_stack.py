"""The stack: what is in it, what the embedded cloud takes of it, and that its parts fit the contract."""

import importlib
import inspect
import json
import re
from typing import Any

import pytest
from ministack.services.cloudformation.provisioners import _RESOURCE_HANDLERS as EMULATED

from cdk import EMBEDDED_CLOUD
from cdk.network import DATA_PORT, VPC_CIDR
from contract.metrics import FILTER_PATTERN
from contract.table import EXPIRY, PARTITION_KEY, SORT_KEY
from contract.task import SERVER_PORT, TaskEnvironment
from lambdas.environment import FunctionEnvironment
from tests.infrastructure.conftest import Assembly, actions_of

OTHERS_VARIABLES = {"POWERTOOLS_LOG_LEVEL", "MPLCONFIGDIR"}
"""What a function is told that libraries read, not our own code."""

FUNCTIONS = (
    "plan_study",
    "judge_experiment",
    "ingest_metrics",
    "reconcile_metrics",
    "publish_report",
    "conclude_study",
    "sweep_tasks",
    "stop_studies",
)


def test_the_outputs_are_those_that_users_and_the_command_line_read(assembly: Assembly) -> None:
    outputs = assembly.template["Outputs"]
    assert set(outputs) == {
        "StateMachineArn",
        "TableName",
        "BucketName",
        "ClusterArn",
        "LogGroupName",
        "PlanFunctionName",
        "StartCommand",
    }
    machine, _ = assembly.only("AWS::StepFunctions::StateMachine")
    assert outputs["StateMachineArn"]["Value"] == {"Ref": machine}
    begin, reference, end = outputs["StartCommand"]["Value"]["Fn::Join"][1]
    assert begin == "aws stepfunctions start-execution --state-machine-arn "
    assert (reference, end) == ({"Ref": machine}, " --input '{}'")


def test_the_embedded_cloud_takes_everything_that_is_not_for_aws_alone(every_assembly: Assembly) -> None:
    """A type behind a false condition is passed over; every other one must be known to the emulator."""
    assembly = every_assembly
    assert assembly.template["Conditions"] == {
        "OnAws": {"Fn::Equals": [{"Ref": EMBEDDED_CLOUD}, "false"]},
    }
    assert assembly.template["Parameters"][EMBEDDED_CLOUD]["Default"] == "false"
    unconditional = {r["Type"] for r in assembly.template["Resources"].values() if "Condition" not in r}
    assert unconditional - EMULATED.keys() == {"Custom::StopStudies"}
    refused = {
        "AWS::EC2::SecurityGroupIngress",
        "AWS::ECS::ClusterCapacityProviderAssociations",
        "AWS::EC2::FlowLog",
        "AWS::EC2::NatGateway",
        "AWS::EC2::EIP",
        "AWS::Budgets::Budget",
    }
    assert not refused & EMULATED.keys(), "the emulator has learned a type: the list is out of date"
    for resource in assembly.template["Resources"].values():
        if resource["Type"].startswith(("Custom::", "AWS::CloudFormation::")):
            # Others hang there, or need Node.js.
            assert resource["Type"] == "Custom::StopStudies"
        assert "CidrBlock" not in str(resource.get("Properties", {}).get("Fn::GetAtt", ""))


def test_layers_the_guard_of_the_ports_and_asking_for_quotas_are_for_aws_alone(assembly: Assembly) -> None:
    conditional = {
        logical_id: resource
        for logical_id, resource in assembly.template["Resources"].items()
        if "Condition" in resource
    }
    assert {resource["Condition"] for resource in conditional.values()} == {"OnAws"}
    flows = {logical_id for logical_id in conditional if logical_id.startswith("NetworkFlow")}
    assert {conditional[logical_id]["Type"] for logical_id in flows} == {
        "AWS::EC2::FlowLog",
        "AWS::Logs::LogGroup",
        "AWS::IAM::Role",
        "AWS::IAM::Policy",
    }
    assert {resource["Type"] for logical_id, resource in conditional.items() if logical_id not in flows} == {
        "AWS::Lambda::LayerVersion",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::IAM::Policy",
    }
    layers = assembly.resources("AWS::Lambda::LayerVersion")
    for name, function in assembly.functions().items():
        condition, on_aws, elsewhere = function["Layers"]["Fn::If"]
        assert (condition, elsewhere) == ("OnAws", {"Ref": "AWS::NoValue"})
        assert {layer["Ref"] for layer in on_aws} <= layers.keys()
        assert len(on_aws) == (2 if name == "publish_report" else 1)


def test_the_table_has_the_keys_of_the_contract(assembly: Assembly) -> None:
    _, table = assembly.only("AWS::DynamoDB::Table")
    assert table["KeySchema"] == [
        {"AttributeName": PARTITION_KEY, "KeyType": "HASH"},
        {"AttributeName": SORT_KEY, "KeyType": "RANGE"},
    ]
    assert {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]} == {
        PARTITION_KEY: "S",
        SORT_KEY: "S",
    }
    assert table["TimeToLiveSpecification"] == {"AttributeName": EXPIRY, "Enabled": True}
    assert table["BillingMode"] == "PAY_PER_REQUEST"


def test_metric_lines_of_the_tasks_go_to_ingestion_once_it_may_be_called(assembly: Assembly) -> None:
    """A filter that is made before its permission would be disabled, and lines skipped."""
    ((_, resource),) = assembly.resources("AWS::Logs::SubscriptionFilter").items()
    subscription = resource["Properties"]
    assert subscription["FilterPattern"] == FILTER_PATTERN
    definitions = assembly.resources("AWS::ECS::TaskDefinition").values()
    for definition in definitions:
        (container,) = definition["Properties"]["ContainerDefinitions"]
        assert container["LogConfiguration"]["Options"]["awslogs-group"] == subscription["LogGroupName"]
    (waited_for,) = resource["DependsOn"]
    permission = assembly.resources("AWS::Lambda::Permission")[waited_for]["Properties"]
    assert permission["FunctionName"] == subscription["DestinationArn"]
    assert permission["Principal"] == "logs.amazonaws.com"
    assert permission["SourceArn"] == {"Fn::GetAtt": [subscription["LogGroupName"]["Ref"], "Arn"]}
    function = assembly.template["Resources"][subscription["DestinationArn"]["Fn::GetAtt"][0]]
    assert function["Properties"]["Handler"] == "lambdas.ingest_metrics.handler.handler"


def test_there_is_a_function_for_each_folder(assembly: Assembly) -> None:
    assert set(assembly.functions()) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_handler_can_be_called_and_is_told_what_it_reads(assembly: Assembly, name: str) -> None:
    properties = assembly.functions()[name]
    module_name, _, attribute = properties["Handler"].rpartition(".")
    module = importlib.import_module(module_name)
    handler = getattr(module, attribute)
    assert list(inspect.signature(handler, follow_wrapped=True).parameters) == ["event", "context"]
    (environment,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, FunctionEnvironment)
    )
    given = properties["Environment"]["Variables"].keys()
    required = {n.upper() for n, field in environment.model_fields.items() if field.is_required()}
    known = {n.upper() for n in environment.model_fields}
    assert required <= given
    assert given - known <= OTHERS_VARIABLES


def test_records_are_awaited_for_as_long_as_a_subscription_may_take(assembly: Assembly) -> None:
    """The emulator delivers once or never: there, waiting for what was not delivered would hold up every report."""
    reconcile = assembly.functions()["reconcile_metrics"]
    on_aws, embedded = reconcile["Environment"]["Variables"]["PATIENCE_SECONDS"]["Fn::If"][1:]
    assert 180 <= float(on_aws) < reconcile["Timeout"] / 2
    assert float(embedded) <= 10


@pytest.mark.parametrize("name", ["judge_experiment", "reconcile_metrics", "sweep_tasks", "stop_studies"])
def test_what_ends_tasks_looks_twice_and_has_time_to(assembly: Assembly, name: str) -> None:
    """The emulator lists a task at once: there, waiting for it would hold up every experiment that fails."""
    properties = assembly.functions()[name]
    on_aws, embedded = properties["Environment"]["Variables"]["QUIET_SECONDS"]["Fn::If"][1:]
    assert 10 <= float(on_aws) < properties["Timeout"] / 10
    assert 0 < float(embedded) <= 1


def test_planning_asks_for_quotas_on_aws_and_has_a_fixed_one_elsewhere(assembly: Assembly) -> None:
    variables = assembly.functions()["plan_study"]["Environment"]["Variables"]
    assert variables["VCPU_QUOTA"] == {"Fn::If": ["OnAws", "", "128"]}
    assert variables["EMBEDDED_CLOUD"] == {"Fn::If": ["OnAws", "false", "true"]}
    assert (variables["PRICES"], variables["CPU_ARCHITECTURE"]) == ("", "x86_64")
    (policy,) = (
        policy
        for logical_id, policy in assembly.resources("AWS::IAM::Policy").items()
        if logical_id.startswith("AskForQuotas")
    )
    assert policy["Condition"] == "OnAws"
    (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]
    assert set(actions_of(statement)) == {
        "servicequotas:GetServiceQuota",
        "servicequotas:GetAWSDefaultServiceQuota",
        "cloudwatch:GetMetricStatistics",
    }
    assert policy["Properties"]["Roles"] == [
        {"Ref": assembly.functions()["plan_study"]["Role"]["Fn::GetAtt"][0]}
    ]


def test_no_function_runs_longer_than_lambda_lets_it(assembly: Assembly) -> None:
    assert all(properties["Timeout"] <= 900 for properties in assembly.functions().values())


def test_tasks_reach_one_anothers_two_ports_and_nobody_else_does(assembly: Assembly) -> None:
    logical_id, group = assembly.only("AWS::EC2::SecurityGroup")
    assert "SecurityGroupIngress" not in group
    tasks = {"Fn::GetAtt": [logical_id, "GroupId"]}
    _, ingress = assembly.only("AWS::EC2::SecurityGroupIngress")
    assert ingress.pop("Description")
    assert ingress == {
        "GroupId": tasks,
        "SourceSecurityGroupId": tasks,
        "IpProtocol": "tcp",
        "FromPort": SERVER_PORT,
        "ToPort": DATA_PORT,
    }
    assert DATA_PORT == SERVER_PORT + 1
    _, workflow = assembly.only("AWS::StepFunctions::StateMachine")
    assert workflow["DefinitionSubstitutions"]["SecurityGroup"] == tasks
    _, vpc = assembly.only("AWS::EC2::VPC")
    assert vpc["CidrBlock"] == VPC_CIDR
    assert len(assembly.resources("AWS::EC2::Subnet")) == 2


def test_tasks_are_one_container_that_is_told_its_role(assembly: Assembly) -> None:
    roles = []
    for resource in assembly.resources("AWS::ECS::TaskDefinition").values():
        definition = resource["Properties"]
        assert definition["RequiresCompatibilities"] == ["FARGATE"]
        assert definition["NetworkMode"] == "awsvpc"
        (container,) = definition["ContainerDefinitions"]
        assert container["Command"] == [container["Name"]]
        assert container["Essential"] is True
        roles.append(container["Name"])
    assert sorted(roles) == ["prepare", "server", "worker"]


def test_servers_are_told_where_checkpoints_go_and_old_ones_are_removed(assembly: Assembly) -> None:
    logical_id, resource = assembly.results_bucket()
    told = {}
    for container in assembly.containers():
        told[container["Name"]] = container.get("Environment", [])
    location = {"Fn::Join": ["", ["s3://", {"Ref": logical_id}, "/checkpoints"]]}
    assert told == {
        "server": [{"Name": "CHECKPOINT_LOCATION", "Value": location}],
        "worker": [],
        "prepare": [],
    }
    assert "checkpoint_location" in TaskEnvironment.model_fields
    (rule,) = resource["Properties"]["LifecycleConfiguration"]["Rules"]
    assert rule == {"Prefix": "checkpoints/", "ExpirationInDays": 7, "Status": "Enabled"}


def test_clean_up_runs_when_an_execution_ends_badly_and_on_a_schedule(assembly: Assembly) -> None:
    machine, _ = assembly.only("AWS::StepFunctions::StateMachine")
    rules = [resource["Properties"] for resource in assembly.resources("AWS::Events::Rule").values()]
    (on_event,) = (rule for rule in rules if "EventPattern" in rule)
    (on_schedule,) = (rule for rule in rules if "ScheduleExpression" in rule)
    assert on_event["EventPattern"] == {
        "source": ["aws.states"],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": {"stateMachineArn": [{"Ref": machine}], "status": ["FAILED", "TIMED_OUT", "ABORTED"]},
    }
    assert on_schedule["ScheduleExpression"] == "rate(5 minutes)"
    for rule in rules:
        (target,) = rule["Targets"]
        function = assembly.template["Resources"][target["Arn"]["Fn::GetAtt"][0]]
        assert function["Properties"]["Handler"] == "lambdas.sweep_tasks.handler.handler"


def test_the_stack_is_deleted_only_once_no_study_and_no_task_is_left(assembly: Assembly) -> None:
    """The resource that sees to it goes first: everything that studies need is deleted after it."""
    resources = assembly.template["Resources"]
    _, properties = assembly.only("Custom::StopStudies")
    (logical_id,) = assembly.resources("Custom::StopStudies")
    function = resources[properties["ServiceToken"]["Fn::GetAtt"][0]]["Properties"]
    assert function["Handler"] == "lambdas.stop_studies.handler.handler"
    assert function["Timeout"] < int(properties["ServiceTimeout"]) <= 3600
    waiting = _needed(resources, logical_id)
    outlive = {
        "AWS::ECS::Cluster",
        "AWS::ECS::TaskDefinition",
        "AWS::StepFunctions::StateMachine",
        "AWS::EC2::VPC",
        "AWS::EC2::Subnet",
        "AWS::EC2::SecurityGroup",
        "AWS::EC2::InternetGateway",
        "AWS::EC2::VPCGatewayAttachment",
        "AWS::EC2::Route",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPCEndpoint",
        "AWS::DynamoDB::Table",
    }
    for kind in outlive:
        assert assembly.resources(kind).keys() <= waiting, kind
    # And its own function with all that it may do, the state machine's role, and the logs of both
    role = function["Role"]["Fn::GetAtt"][0]
    machine_role = assembly.only("AWS::StepFunctions::StateMachine")[1]["RoleArn"]["Fn::GetAtt"][0]
    for name, policy in assembly.resources("AWS::IAM::Policy").items():
        roles = {reference["Ref"] for reference in policy["Properties"]["Roles"]}
        assert name in waiting or not roles & {role, machine_role}
    log_groups = {function["LoggingConfig"]["LogGroup"]["Ref"]}
    for definition in assembly.resources("AWS::ECS::TaskDefinition").values():
        (container,) = definition["Properties"]["ContainerDefinitions"]
        log_groups.add(container["LogConfiguration"]["Options"]["awslogs-group"]["Ref"])
    assert {role, machine_role, *log_groups} <= waiting
    # Nothing waits for it
    assert not [name for name in resources if name != logical_id and logical_id in _needed(resources, name)]


def _needed(resources: dict[str, Any], logical_id: str) -> set[str]:
    """What a resource refers to or depends on, directly or through others: CloudFormation deletes it later."""
    found: set[str] = set()
    pending = [logical_id]
    while pending:
        text = json.dumps(resources[pending.pop()])
        named = {word for word in re.findall(r"\w+", text) if word in resources}
        pending += named - found
        found |= named
    return found - {logical_id}
