"""IngestMetrics: a CloudWatch Logs batch in, metric rows out.

Runs on the log group's subscription filter, which delivers at least once and in any order: a record's row
follows from what its emitter says, so writing it twice is writing it once.
"""

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.data_classes import CloudWatchLogsEvent, event_source
from aws_lambda_powertools.utilities.typing import LambdaContext

from lambdas.environment import TableEnvironment
from lambdas.metric_lines import parse_lines
from lambdas.table import ExperimentTable

logger = Logger(service="ingest_metrics")
metrics = Metrics(namespace="Lockstep", service="ingest_metrics")


@logger.inject_lambda_context
@metrics.log_metrics
@event_source(data_class=CloudWatchLogsEvent)
def handler(event: CloudWatchLogsEvent, context: LambdaContext) -> dict[str, int]:  # noqa: ARG001 - Lambda passes it
    """Write the records of one delivery. A damaged line is counted and logged; its neighbours are kept."""
    batch = event.parse_logs_data()
    # A CONTROL_MESSAGE only checks that the function can be reached; its event is no line of a task.
    events = batch.log_events if batch.message_type == "DATA_MESSAGE" else []
    parsed = parse_lines(event.message for event in events)
    for refusal in parsed.refusals:
        logger.warning("refused a metric line", log_stream=batch.log_stream, problem=refusal)
    stored = ExperimentTable.named(TableEnvironment.read().table_name).put_records(parsed.records)
    metrics.add_metric(name="RecordsStored", unit=MetricUnit.Count, value=stored)
    metrics.add_metric(name="LinesRefused", unit=MetricUnit.Count, value=len(parsed.refusals))
    return {"stored": stored, "refused": len(parsed.refusals)}
