"""The stack: composes its parts and grants each what it needs; read it to see who may do what."""

from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from cdk import EMBEDDED_CLOUD
from cdk.acknowledgements import acknowledge_wildcards
from cdk.conditions import by_cloud
from cdk.deletion import Deletion
from cdk.functions import Functions
from cdk.grants import grant_objects, grant_rows, grant_task_control, grant_task_logs
from cdk.ingestion import Ingestion
from cdk.network import Network
from cdk.observation import Observation
from cdk.planning import let_it_ask, planning_environment
from cdk.settings import Settings
from cdk.storage import CHECKPOINTS, Storage
from cdk.training import Training
from cdk.watching import Watching
from cdk.workflow import Workflow, cluster_tasks
from contract import table as keys
from contract.results import DATASETS, STUDIES


class LockstepStack(cdk.Stack):
    """Everything of Lockstep in one AWS account and region."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, **kwargs: Any) -> None:
        super().__init__(scope, construct_id, **kwargs)
        self._settings = settings
        self._on_aws = self._condition()
        self.functions = Functions(self, "Functions", on_aws=self._on_aws)
        self.network = Network(self, "Network", settings=settings, on_aws=self._on_aws)
        self.storage = Storage(self, "Storage")
        self.training = Training(
            self,
            "Training",
            settings=settings,
            vpc=self.network.vpc,
            checkpoint_location=self.storage.checkpoint_location,
        )
        functions = {
            "PlanStudyFunction": self._plan_function(),
            "JudgeExperimentFunction": self._judge_function(),
            "ReconcileMetricsFunction": self._reconcile_function(),
            "PublishReportFunction": self._publish_function(),
            "ConcludeStudyFunction": self._conclude_function(),
        }
        self.workflow = Workflow(
            self,
            "Workflow",
            training=self.training,
            table=self.storage.table,
            subnets=self.network.subnets,
            security_group=self.network.task_security_group,
            assign_public_ip=self.network.assign_public_ip,
            functions=functions,
        )
        self._add_ingestion()
        self._add_sweeper(functions["PublishReportFunction"])
        self._add_deletion()
        self._let_server_and_workers_meet()
        self._let_workers_read_datasets()
        self._let_datasets_be_prepared()
        self._let_servers_keep_checkpoints()
        Observation(
            self,
            "Observation",
            cluster=self.training.cluster,
            state_machine=self.workflow.state_machine,
            functions=self.functions.by_name,
            email=settings.alarm_email,
        )
        self._answer_for_wildcards()
        self._add_outputs()

    def _condition(self) -> cdk.CfnCondition:
        parameter = cdk.CfnParameter(
            self,
            EMBEDDED_CLOUD,
            default="false",
            allowed_values=["true", "false"],
            description="true only where the stack is deployed to the embedded cloud of one machine",
        )
        return cdk.CfnCondition(
            self, "OnAws", expression=cdk.Fn.condition_equals(parameter.value_as_string, "false")
        )

    def _plan_function(self) -> lambda_.Function:
        plan = self.functions.function(
            "plan_study",
            description="Validate and expand a study, write its plan",
            environment=self._environment(
                **planning_environment(self._settings, self._on_aws),
                DATASETS_LOCATION=self.storage.datasets_location,
            ),
            timeout_seconds=60,
        )
        self.storage.table.grant(plan, "dynamodb:PutItem", "dynamodb:GetItem", "dynamodb:Query")
        let_it_ask(self, plan, self._on_aws)
        return plan

    def _judge_function(self) -> lambda_.Function:
        judge = self.functions.function(
            "judge_experiment",
            description="End an experiment's tasks and write how it went",
            environment=self._environment(**self._task_environment()),
            timeout_seconds=240,
        )
        self.storage.table.grant(judge, "dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem")
        self._grant_tasks(judge)
        return judge

    def _reconcile_function(self) -> lambda_.Function:
        reconcile = self.functions.function(
            "reconcile_metrics",
            description="Account for every metric record of a study",
            environment=self._environment(
                **self._task_environment(),
                # Records may be on their way for minutes on AWS; what the emulator does not bring soon never comes.
                PATIENCE_SECONDS=by_cloud(self._on_aws, "180", "10"),
            ),
            timeout_seconds=600,
            memory_mib=512,
        )
        self.storage.table.grant(
            reconcile,
            "dynamodb:GetItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "dynamodb:BatchWriteItem",
        )
        self.training.log_group.grant(reconcile, "logs:FilterLogEvents")
        self._grant_tasks(reconcile)
        return reconcile

    def _publish_function(self) -> lambda_.Function:
        publish = self.functions.function(
            "publish_report",
            description="Draw a study's report and put it into the bucket",
            environment=self._environment(
                BUCKET_NAME=self.storage.bucket.bucket_name,
                MPLCONFIGDIR="/tmp/matplotlib",  # noqa: S108 - the one folder that a function may write to
            ),
            timeout_seconds=600,
            memory_mib=2048,
            layers=[self.functions.report_layer],
        )
        table, bucket = self.storage.table, self.storage.bucket
        table.grant(publish, "dynamodb:GetItem", "dynamodb:Query")
        grant_rows(publish, table, "dynamodb:UpdateItem", keys.measured_partition("*"))
        publish.add_to_role_policy(
            iam.PolicyStatement(actions=["s3:PutObject"], resources=[bucket.arn_for_objects(f"{STUDIES}/*")])
        )
        return publish

    def _conclude_function(self) -> lambda_.Function:
        conclude = self.functions.function(
            "conclude_study",
            description="Write how a study ended; of a redriven one, clear what failed",
            environment=self._environment(CHECKPOINT_LOCATION=self.storage.checkpoint_location),
            timeout_seconds=120,
        )
        self.storage.table.grant(conclude, "dynamodb:Query", "dynamodb:UpdateItem", "dynamodb:BatchWriteItem")
        grant_objects(conclude, self.storage.bucket, CHECKPOINTS, "s3:DeleteObject")
        return conclude

    def _add_ingestion(self) -> None:
        ingest = self.functions.function(
            "ingest_metrics",
            description="Turn metric lines of the training tasks into rows",
            environment=self._environment(STACK_NAME=self.stack_name),
            timeout_seconds=60,
        )
        self.storage.table.grant(ingest, "dynamodb:BatchWriteItem")
        Ingestion(self, "Ingestion", log_group=self.training.log_group, function=ingest)

    def _add_sweeper(self, publish: lambda_.Function) -> None:
        state_machine = self.workflow.state_machine
        sweep = self.functions.function(
            "sweep_tasks",
            description="Stop the tasks of executions that have ended",
            environment=self._environment(
                **self._task_environment(),
                STATE_MACHINE_ARN=state_machine.state_machine_arn,
                PUBLISH_REPORT_FUNCTION=publish.function_arn,
                STACK_NAME=self.stack_name,
            ),
            timeout_seconds=240,
        )
        self.storage.table.grant(
            sweep, "dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem", "dynamodb:DeleteItem"
        )
        self._grant_tasks(sweep)
        sweep.add_to_role_policy(
            iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=[publish.function_arn])
        )
        state_machine.grant_execution(sweep, "states:DescribeExecution")
        Watching(self, "Watching", state_machine=state_machine, sweep_function=sweep)

    def _add_deletion(self) -> None:
        state_machine = self.workflow.state_machine
        stop = self.functions.function(
            "stop_studies",
            description="Before the stack is deleted, end every study and every task",
            environment={
                "POWERTOOLS_LOG_LEVEL": "INFO",
                **self._ending_environment(),
                "STATE_MACHINE_ARN": state_machine.state_machine_arn,
            },
            timeout_seconds=300,
        )
        grant_task_control(stop, self.training.cluster)
        state_machine.grant(stop, "states:ListExecutions")
        state_machine.grant_execution(stop, "states:StopExecution")
        Deletion(
            self,
            "Deletion",
            function=stop,
            before=[
                self.workflow,
                self.training,
                # Of the network what tasks cannot be without: the rest has a condition, and is not to be depended on.
                self.network.vpc,
                self.network.task_security_group,
            ],
        )

    def _let_server_and_workers_meet(self) -> None:
        """The server reads and answers its task token, and writes what workers need to be let in; they read that."""
        server, worker = self.training.server.task_role, self.training.worker.task_role
        table = self.storage.table
        announcements = keys.server_partition("*", "*")
        grant_rows(server, table, "dynamodb:GetItem", keys.study_partition("*"))
        grant_rows(server, table, "dynamodb:PutItem", announcements)
        grant_rows(worker, table, "dynamodb:GetItem", announcements)
        self.workflow.grant_own_tokens(
            "AnswerRendezvous", server, "states:SendTaskSuccess", "states:SendTaskFailure"
        )

    def _let_workers_read_datasets(self) -> None:
        """Workers read data sets, and write none."""
        self.training.worker.task_role.add_to_principal_policy(
            iam.PolicyStatement(
                actions=["s3:GetObject"], resources=[self.storage.bucket.arn_for_objects(f"{DATASETS}/*")]
            )
        )

    def _let_datasets_be_prepared(self) -> None:
        """One task lists, reads and writes data sets below their prefix, and writes how it went."""
        role = self.training.prepare.task_role
        grant_objects(role, self.storage.bucket, DATASETS, "s3:GetObject", "s3:PutObject")
        grant_rows(role, self.storage.table, "dynamodb:PutItem", keys.dataset_partition("*"))

    def _let_servers_keep_checkpoints(self) -> None:
        """Servers list, read, write and remove checkpoints below their prefix; workers have no need to."""
        grant_objects(
            self.training.server.task_role,
            self.storage.bucket,
            CHECKPOINTS,
            "s3:GetObject",
            "s3:PutObject",
            "s3:DeleteObject",
        )

    def _answer_for_wildcards(self) -> None:
        """Why grants end in *; the tests list those that are on everything."""
        bucket, machine = self.storage.bucket, self.workflow.state_machine
        colon = cdk.ArnFormat.COLON_RESOURCE_NAME
        name = cdk.Arn.split(machine.state_machine_arn, colon).resource_name
        executions = self.format_arn(
            service="states",
            resource="execution",
            resource_name=f"{name}:*",
            arn_format=colon,
        )
        acknowledge_wildcards(
            self,
            {
                "*": "X-Ray, delivery of logs and ECR's login know no resource; nor ListTasks, which a condition binds",
                cluster_tasks(
                    self.training.cluster
                ): "ECS names tasks; they are those of the stack's one cluster",
                executions: "users name executions; they are those of the stack's one state machine",
                **{
                    bucket.arn_for_objects(f"{prefix}/*"): f"objects below {prefix}/ are named by studies"
                    for prefix in (STUDIES, CHECKPOINTS, DATASETS)
                },
            },
        )

    def _grant_tasks(self, function: lambda_.Function) -> None:
        """What ends tasks, and says how they ended."""
        grant_task_control(function, self.training.cluster)
        grant_task_logs(function, self.training.log_group)

    def _ending_environment(self) -> dict[str, str]:
        """For functions that end tasks. ECS may list one seconds after it was started, the emulator at once."""
        return {
            "CLUSTER_ARN": self.training.cluster.cluster_arn,
            "QUIET_SECONDS": by_cloud(self._on_aws, "10", "1"),
        }

    def _task_environment(self) -> dict[str, str]:
        return {
            **self._ending_environment(),
            "LOG_GROUP_NAME": self.training.log_group.log_group_name,
        }

    def _environment(self, **more: str) -> dict[str, str]:
        return {"TABLE_NAME": self.storage.table.table_name, "POWERTOOLS_LOG_LEVEL": "INFO", **more}

    def _add_outputs(self) -> None:
        state_machine_arn = self.workflow.state_machine.state_machine_arn
        for name, value in {
            "StateMachineArn": state_machine_arn,
            "TableName": self.storage.table.table_name,
            "BucketName": self.storage.bucket.bucket_name,
            "ClusterArn": self.training.cluster.cluster_arn,
            "LogGroupName": self.training.log_group.log_group_name,
            "PlanFunctionName": self.functions.by_name["plan_study"].function_name,
            "StartCommand": f"aws stepfunctions start-execution --state-machine-arn {state_machine_arn} --input '{{}}'",
        }.items():
            cdk.CfnOutput(self, name, value=value)
