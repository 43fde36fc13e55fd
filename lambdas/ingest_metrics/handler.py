"""IngestMetrics: a CloudWatch Logs batch in, metric rows out.

Runs on the log group's subscription filter, which delivers at least once and in any order: a record's row
follows from what its emitter says, so writing it twice is writing it once.
"""

from collections import Counter
from datetime import UTC, datetime

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.data_classes import CloudWatchLogsEvent, event_source
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract.metrics import MetricRecord
from contract.watching import (
    EXPERIMENT_DIMENSION,
    INGEST_LAG,
    LINES_REFUSED,
    RECORDS_STORED,
    STUDY_DIMENSION,
)
from lambdas.environment import WatchedEnvironment
from lambdas.ingest_metrics.live import lag_seconds, live_values
from lambdas.metric_lines import parse_lines
from lambdas.metrics import emit
from lambdas.table import ExperimentTable

logger = Logger(service="ingest_metrics")


@logger.inject_lambda_context
@event_source(data_class=CloudWatchLogsEvent)
def handler(event: CloudWatchLogsEvent, context: LambdaContext) -> dict[str, int]:  # noqa: ARG001 - Lambda passes it
    """Write the records of one delivery. A damaged line is counted and logged; its neighbours are kept."""
    environment = WatchedEnvironment.read()
    batch = event.parse_logs_data()
    # A CONTROL_MESSAGE only checks that the function can be reached; its event is no line of a task.
    events = batch.log_events if batch.message_type == "DATA_MESSAGE" else []
    parsed = parse_lines(event.message for event in events)
    for refused in parsed.refusals:
        logger.warning(
            "refused a metric line",
            study_id=refused.study,
            log_stream=batch.log_stream,
            problem=refused.problem,
        )
    stored = ExperimentTable.named(environment.table_name).put_records(parsed.records)
    for study_id, records in Counter(record.study for record in parsed.records).items():
        logger.info("stored", study_id=study_id, records=records, log_stream=batch.log_stream)
    _watch(environment.stack_name, parsed.records, stored=stored, refused=len(parsed.refusals))
    return {"stored": stored, "refused": len(parsed.refusals)}


def _watch(stack_name: str, records: list[MetricRecord], *, stored: int, refused: int) -> None:
    """Tell CloudWatch how ingestion goes, and what is live of each experiment."""
    own = [(RECORDS_STORED, float(stored)), (LINES_REFUSED, float(refused))]
    if (lag := lag_seconds(records, datetime.now(UTC))) is not None:
        own.append((INGEST_LAG, lag))
    emit(stack_name, own)
    for whose, values in live_values(records).items():
        emit(
            stack_name,
            values,
            **{STUDY_DIMENSION: whose.study, EXPERIMENT_DIMENSION: whose.experiment},
        )
