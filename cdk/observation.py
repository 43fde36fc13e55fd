"""Observation: what people watch a deployment by: alarms, a dashboard, and the events that functions gave up."""

from collections.abc import Mapping

from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from cdk.alarms import Alarms
from cdk.dashboard import Dashboard
from cdk.undelivered import Undelivered

CALLED_BY_EVENTS = ("ingest_metrics", "sweep_tasks", "publish_report")
"""Functions whose caller does not wait: nobody else would learn that they failed.

publish_report is waited for by its state, and not by sweep_tasks, which closes the study at once.
"""


class Observation(Construct):
    """Watches the stack's functions, state machine and cluster."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster: ecs.ICluster,
        state_machine: sfn.IStateMachine,
        functions: Mapping[str, lambda_.Function],
        email: str | None,
    ) -> None:
        super().__init__(scope, construct_id)
        undelivered = Undelivered(self, "Undelivered")
        for name in CALLED_BY_EVENTS:
            undelivered.keep_failures_of(functions[name])
        alarms = Alarms(
            self,
            "Alarms",
            state_machine=state_machine,
            functions=functions,
            undelivered=undelivered.queue,
            email=email,
        )
        Dashboard(
            self,
            "Dashboard",
            cluster=cluster,
            state_machine=state_machine,
            functions=functions,
            undelivered=undelivered.queue,
            alarms=alarms.all,
        )
