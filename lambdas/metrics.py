"""Adapter to CloudWatch metrics: one line of a function's log in the embedded metric format.

CloudWatch reads the numbers out of the log: no call that could fail or would have to be allowed. Source: CloudWatch
User Guide, "Embedding metrics within logs".
"""

from collections.abc import Iterable

from aws_lambda_powertools.metrics import EphemeralMetrics

from contract.watching import NAMESPACE, STACK_DIMENSION, Metric


def emit(stack_name: str, values: Iterable[tuple[Metric, float]], **dimensions: str) -> None:
    """Print numbers that have their dimensions in common, where there are any; a metric may have many values."""
    line = EphemeralMetrics(namespace=NAMESPACE)
    for name, value in {STACK_DIMENSION: stack_name, **dimensions}.items():
        line.add_dimension(name, value)
    for metric, number in values:
        line.add_metric(name=metric.name, unit=metric.unit, value=number)
    if line.metric_set:
        line.flush_metrics()
