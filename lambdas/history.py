"""Adapter to the table: what experiments took that have completed, by what decides that.

Written by publish_report, read by plan_study.
"""

from typing import TYPE_CHECKING, Self

import boto3

from contract.history import Measured
from contract.table import EXPIRY, MEASURED_SORT, PARTITION_KEY, SORT_KEY, measured_partition
from lambdas.rows import expiry

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table


class History:
    """One row for all experiments that are alike: what the last of them took."""

    def __init__(self, table: "Table") -> None:
        self._table = table

    @classmethod
    def named(cls, table_name: str) -> Self:
        """In the table of that name."""
        return cls(boto3.resource("dynamodb").Table(table_name))

    def remember(self, fingerprint: str, measured: Measured) -> None:
        """Keep what an experiment took, in place of what the last one like it did."""
        self._table.update_item(
            Key=_key(fingerprint),
            UpdateExpression="SET measured = :measured, #expiry = :expiry",
            ExpressionAttributeNames={"#expiry": EXPIRY},
            ExpressionAttributeValues={
                ":measured": measured.model_dump_json(),
                ":expiry": expiry(),
            },
        )

    def measured(self, fingerprint: str) -> Measured | None:
        """What the last experiment took that completed with these settings, or None."""
        row = self._table.get_item(Key=_key(fingerprint)).get("Item")
        return Measured.model_validate_json(str(row["measured"])) if row else None


def _key(fingerprint: str) -> dict[str, str]:
    return {PARTITION_KEY: measured_partition(fingerprint), SORT_KEY: MEASURED_SORT}
