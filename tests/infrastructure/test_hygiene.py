"""Hygiene: encrypted, kept as long as needed and no longer, run by nobody in particular, and silent about secrets."""

import json
import re

from contract.table import SERVER_TOKEN, TASK_TOKEN
from runtime.trust import TOKEN_VARIABLE
from tests.infrastructure.conftest import REPOSITORY, Assembly

SECRET = re.compile(r"(?i)secret|password|passwd|api_?key|access_?key|token|credential")


def test_buckets_are_private_encrypted_and_outlive_the_stack(every_assembly: Assembly) -> None:
    policies = [p["Properties"] for p in every_assembly.resources("AWS::S3::BucketPolicy").values()]
    for logical_id, resource in every_assembly.resources("AWS::S3::Bucket").items():
        bucket = resource["Properties"]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert len(bucket["PublicAccessBlockConfiguration"]) == 4
        assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain")
        (policy,) = (p for p in policies if p["Bucket"] == {"Ref": logical_id})
        arn = {"Fn::GetAtt": [logical_id, "Arn"]}
        (deny,) = (s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Deny")
        assert (deny["Action"], deny["Principal"]) == ("s3:*", {"AWS": "*"})
        assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert deny["Resource"] == [arn, {"Fn::Join": ["", [arn, "/*"]]}]


def test_who_reads_reports_is_logged_for_three_months(assembly: Assembly) -> None:
    results, resource = assembly.results_bucket()
    (logs,) = assembly.resources("AWS::S3::Bucket").keys() - {results}
    assert resource["Properties"]["LoggingConfiguration"] == {
        "DestinationBucketName": {"Ref": logs},
        "LogFilePrefix": "results/",
    }
    (rule,) = assembly.resources("AWS::S3::Bucket")[logs]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert rule == {"ExpirationInDays": 90, "Status": "Enabled"}
    (policy,) = (
        p["Properties"]["PolicyDocument"]["Statement"]
        for p in assembly.resources("AWS::S3::BucketPolicy").values()
        if p["Properties"]["Bucket"] == {"Ref": logs}
    )
    (allow,) = (statement for statement in policy if statement["Effect"] == "Allow")
    assert allow["Principal"] == {"Service": "logging.s3.amazonaws.com"}
    assert allow["Condition"]["ArnLike"] == {"aws:SourceArn": {"Fn::GetAtt": [results, "Arn"]}}


def test_the_table_can_be_brought_back_and_goes_with_the_stack(assembly: Assembly) -> None:
    ((_, table),) = assembly.resources("AWS::DynamoDB::Table").items()
    assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["DeletionPolicy"] == "Delete"


def test_the_queue_is_encrypted_and_spoken_to_by_tls_alone(assembly: Assembly) -> None:
    queue, properties = assembly.only("AWS::SQS::Queue")
    assert properties["SqsManagedSseEnabled"] is True
    _, policy = assembly.only("AWS::SQS::QueuePolicy")
    (deny,) = policy["PolicyDocument"]["Statement"]
    assert (deny["Effect"], deny["Action"]) == ("Deny", "sqs:*")
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert deny["Resource"] == {"Fn::GetAtt": [queue, "Arn"]}


def test_logs_go_with_the_stack_and_do_not_stay_forever(every_assembly: Assembly) -> None:
    for resource in every_assembly.resources("AWS::Logs::LogGroup").values():
        assert resource["Properties"]["RetentionInDays"] == 30
        assert resource["DeletionPolicy"] == "Delete"


def test_every_log_group_is_the_stacks_own(assembly: Assembly) -> None:
    """Groups that AWS makes by itself are kept for ever, also when the stack is gone."""
    groups = assembly.resources("AWS::Logs::LogGroup").keys()
    for function in assembly.functions().values():
        assert function["LoggingConfig"]["LogGroup"]["Ref"] in groups
    for container in assembly.containers():
        assert container["LogConfiguration"]["Options"]["awslogs-group"]["Ref"] in groups


def test_tasks_run_as_nobody_and_can_write_to_one_folder(every_assembly: Assembly) -> None:
    for resource in every_assembly.resources("AWS::ECS::TaskDefinition").values():
        definition = resource["Properties"]
        (container,) = definition["ContainerDefinitions"]
        assert container["ReadonlyRootFilesystem"] is True
        assert container["User"] == "10001:10001"
        assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
        assert not container.get("Privileged")
        (volume,) = definition["Volumes"]
        assert volume.keys() == {"Name"}, "a folder of the task, empty when it begins"
        (mount,) = container["MountPoints"]
        assert mount == {"ContainerPath": "/tmp", "SourceVolume": volume["Name"], "ReadOnly": False}  # noqa: S108


def test_the_image_says_the_same_as_the_task() -> None:
    """ECS gives a volume to root unless the image declares it; the user must be the image's."""
    dockerfile = (REPOSITORY / "runtime" / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", dockerfile, flags=re.MULTILINE)
    assert len(re.findall(r"^VOLUME /tmp$", dockerfile, flags=re.MULTILINE)) == 1


def test_no_secret_stands_in_a_task_definition_or_a_functions_environment(every_assembly: Assembly) -> None:
    told = {
        name: value
        for function in every_assembly.functions().values()
        for name, value in function["Environment"]["Variables"].items()
    }
    for container in every_assembly.containers():
        assert "Secrets" not in container
        told |= {pair["Name"]: pair["Value"] for pair in container.get("Environment", [])}
    assert told
    assert [name for name in told if SECRET.search(name)] == []
    # Nor is what lets workers in: it is made by the server that it is of.
    template = json.dumps(every_assembly.template)
    assert TOKEN_VARIABLE not in template
    assert SERVER_TOKEN not in template


def test_no_log_holds_what_passes_through_the_state_machine(assembly: Assembly) -> None:
    """Inputs and outputs of states hold task tokens. Every step is logged, with its execution's name and no data."""
    _, machine = assembly.only("AWS::StepFunctions::StateMachine")
    assert TASK_TOKEN in machine["DefinitionString"]
    logging = machine["LoggingConfiguration"]
    assert (logging["Level"], logging["IncludeExecutionData"]) == ("ALL", False)
    (destination,) = logging["Destinations"]
    group = destination["CloudWatchLogsLogGroup"]["LogGroupArn"]["Fn::GetAtt"][0]
    name = assembly.resources("AWS::Logs::LogGroup")[group]["Properties"]["LogGroupName"]
    assert name == "/aws/vendedlogs/states/Lockstep"


def test_no_function_logs_its_events(assembly: Assembly) -> None:
    """Powertools would, where one of these is set."""
    verbose = {"POWERTOOLS_LOGGER_LOG_EVENT", "POWERTOOLS_DEV", "POWERTOOLS_DEBUG"}
    for function in assembly.functions().values():
        assert not verbose & function["Environment"]["Variables"].keys()
        assert function["Environment"]["Variables"]["POWERTOOLS_LOG_LEVEL"] == "INFO"


def test_no_way_into_the_vpc_and_a_record_of_who_talked_to_whom(assembly: Assembly) -> None:
    for rule in assembly.resources("AWS::EC2::SecurityGroupIngress").values():
        assert "CidrIp" not in rule["Properties"]
    vpc, _ = assembly.only("AWS::EC2::VPC")
    _, flows = assembly.only("AWS::EC2::FlowLog")
    assert (flows["ResourceId"], flows["ResourceType"], flows["TrafficType"]) == ({"Ref": vpc}, "VPC", "ALL")
