"""Watching: when an execution ends badly, and every few minutes, sweep_tasks stops what was left running."""

import aws_cdk as cdk
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

SWEEP_MINUTES = 5


class Watching(Construct):
    """Rules that call sweep_tasks."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        state_machine: sfn.IStateMachine,
        sweep_function: lambda_.IFunction,
    ) -> None:
        super().__init__(scope, construct_id)
        target = targets.LambdaFunction(sweep_function)
        events.Rule(
            self,
            "ExecutionEndedBadly",
            event_pattern=events.EventPattern(
                source=["aws.states"],
                detail_type=["Step Functions Execution Status Change"],
                detail={
                    "stateMachineArn": [state_machine.state_machine_arn],
                    "status": ["FAILED", "TIMED_OUT", "ABORTED"],
                },
            ),
            targets=[target],
        )
        events.Rule(
            self,
            "EveryFewMinutes",
            schedule=events.Schedule.rate(cdk.Duration.minutes(SWEEP_MINUTES)),
            targets=[target],
        )
