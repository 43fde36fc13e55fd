"""Watching: what is drawn and alarmed on is what functions emit; bad events reach people."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from contract import watching
from contract.watching import Metric
from tests.infrastructure.conftest import Assembly, actions_of

EMITTED = [value for value in vars(watching).values() if isinstance(value, Metric)]


def flat(value: Any) -> str:
    """Text of which parts are known at deploy time alone."""
    if isinstance(value, str):
        return value
    (separator, parts) = value.get("Fn::Join", ["", [f"<{json.dumps(value).replace(chr(34), '')}>"]])
    return str(separator).join(part if isinstance(part, str) else flat(part) for part in parts)


@pytest.fixture(scope="module")
def widgets(assembly: Assembly) -> dict[str, dict[str, Any]]:
    """The dashboard's, by their titles."""
    _, dashboard = assembly.only("AWS::CloudWatch::Dashboard")
    body = json.loads(flat(dashboard["DashboardBody"]))
    return {widget["properties"]["title"]: widget["properties"] for widget in body["widgets"]}


def alarms(assembly: Assembly) -> dict[tuple[str, str], dict[str, Any]]:
    """Namespace and metric (with the function's name, where it is one's) → alarm."""
    found = {}
    for resource in assembly.resources("AWS::CloudWatch::Alarm").values():
        alarm = resource["Properties"]
        metric = alarm["MetricName"]
        for dimension in alarm.get("Dimensions", []):
            if dimension["Name"] == "FunctionName":
                metric += f" of {assembly.function_named(dimension['Value'])}"
        found[alarm["Namespace"], metric] = alarm
    return found


def test_every_metric_that_functions_emit_is_drawn(widgets: dict[str, dict[str, Any]]) -> None:
    drawn = json.dumps(list(widgets.values()))
    assert EMITTED
    assert [metric.name for metric in EMITTED if metric.name not in drawn] == []


def test_live_numbers_are_a_line_for_each_experiment_of_this_stack(
    widgets: dict[str, dict[str, Any]],
) -> None:
    for title, metric in (
        ("Accuracy by experiment (%)", watching.ACCURACY),
        ("Updates per second", watching.UPDATES_PER_SECOND),
        ("Staleness (updates)", watching.STALENESS),
    ):
        ((search,),) = widgets[title]["metrics"]
        assert search["expression"] == (
            f'SEARCH(\'{{Lockstep,stack,study,experiment}} MetricName="{metric.name}" stack="Lockstep"\','
            " 'Average', 60)"
        )


def test_running_tasks_are_those_of_the_stacks_cluster(
    assembly: Assembly, widgets: dict[str, dict[str, Any]]
) -> None:
    cluster, properties = assembly.only("AWS::ECS::Cluster")
    assert properties["ClusterSettings"] == [{"Name": "containerInsights", "Value": "enabled"}]
    [[namespace, metric, dimension, value, _]] = widgets["Running tasks"]["metrics"]
    assert (namespace, metric, dimension) == ("ECS/ContainerInsights", "TaskCount", "ClusterName")
    assert cluster in value


def test_errors_of_every_function_are_drawn(assembly: Assembly, widgets: dict[str, dict[str, Any]]) -> None:
    labels = {metric[-1].get("label") for metric in widgets["Errors"]["metrics"]}
    assert assembly.functions().keys() <= labels


def test_what_is_alarmed_on(assembly: Assembly) -> None:
    assert alarms(assembly).keys() == {
        ("AWS/States", "ExecutionsFailed"),
        ("AWS/States", "ExecutionsTimedOut"),
        ("AWS/Lambda", "Errors of ingest_metrics"),
        ("AWS/Lambda", "Errors of sweep_tasks"),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
        ("Lockstep", "LinesRefused"),
        ("Lockstep", "TasksSwept"),
    }


def test_one_event_raises_an_alarm_and_silence_ends_it(assembly: Assembly) -> None:
    for alarm in alarms(assembly).values():
        assert (alarm["Threshold"], alarm["EvaluationPeriods"], alarm["Period"]) == (1, 1, 300)
        assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
        assert alarm["TreatMissingData"] == "notBreaching"
        assert alarm["Statistic"] in {"Sum", "Maximum"}
        assert "Metrics" not in alarm, "the embedded cloud knows no metric math"


def test_an_alarm_is_of_its_own_stack(synthesized: Callable[[str], Assembly]) -> None:
    for choice in ("default", "imported"):
        assembly = synthesized(choice)
        machine, _ = assembly.only("AWS::StepFunctions::StateMachine")
        found = alarms(assembly)
        assert found["AWS/States", "ExecutionsFailed"]["Dimensions"] == [
            {"Name": "StateMachineArn", "Value": {"Ref": machine}}
        ]
        assert found["Lockstep", "TasksSwept"]["Dimensions"] == [{"Name": "stack", "Value": assembly.stack}]


def test_nobody_is_told_unless_somebody_is_named(assembly: Assembly) -> None:
    assert not assembly.has("AWS::SNS::Topic")
    assert all("AlarmActions" not in alarm for alarm in alarms(assembly).values())


def test_who_is_named_gets_every_alarm(synthesized: Callable[[str], Assembly]) -> None:
    assembly = synthesized("arm64")
    topic, _ = assembly.only("AWS::SNS::Topic")
    _, subscription = assembly.only("AWS::SNS::Subscription")
    assert subscription == {
        "Protocol": "email",
        "Endpoint": "people@example.com",
        "TopicArn": {"Ref": topic},
    }
    assert all(alarm["AlarmActions"] == [{"Ref": topic}] for alarm in alarms(assembly).values())
    # A topic's own policy takes the place of the default one, which lets the account's alarms in
    _, policy = assembly.only("AWS::SNS::TopicPolicy")
    allow, deny = policy["PolicyDocument"]["Statement"]
    assert (allow["Effect"], allow["Principal"]) == ("Allow", {"Service": "cloudwatch.amazonaws.com"})
    assert allow["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    assert (deny["Effect"], deny["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


def test_events_that_functions_give_up_are_kept(assembly: Assembly) -> None:
    """Of those that are called without waiting: by events, and by clean-up for a report."""
    queue, properties = assembly.only("AWS::SQS::Queue")
    arn = {"Fn::GetAtt": [queue, "Arn"]}
    assert properties["MessageRetentionPeriod"] == 14 * 86400
    kept = {}
    for resource in assembly.resources("AWS::Lambda::EventInvokeConfig").values():
        config = resource["Properties"]
        kept[assembly.function_named(config["FunctionName"])] = config
        assert config["DestinationConfig"] == {"OnFailure": {"Destination": arn}}
        assert config["Qualifier"] == "$LATEST"
        assert any("Policy" in waited_for for waited_for in resource["DependsOn"]), (
            "Lambda looks at the role first"
        )
    assert kept.keys() == {"ingest_metrics", "sweep_tasks", "publish_report"}
    for name in kept:
        role = assembly.functions()[name]["Role"]
        (sending,) = (s for s in assembly.statements(role) if "sqs:SendMessage" in actions_of(s))
        assert sending["Resource"] == arn


def test_every_function_and_the_state_machine_are_traced(assembly: Assembly) -> None:
    for function in assembly.functions().values():
        assert function["TracingConfig"] == {"Mode": "Active"}
    _, machine = assembly.only("AWS::StepFunctions::StateMachine")
    assert machine["TracingConfiguration"] == {"Enabled": True}
