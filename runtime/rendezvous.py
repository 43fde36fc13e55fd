"""Tell the waiting state machine where the server listens, by answering its task token.

Runs in the server on AWS and on the embedded cloud; the only code of the runtime that calls AWS.
"""

import json
import time
from typing import Any

from contract.errors import TrainingFailed
from contract.table import PARTITION_KEY, SORT_KEY, rendezvous_sort, study_partition
from contract.task import TaskEnvironment

TOKEN_SECONDS = 120.0
"""How long the token's row may take to appear once the server listens."""

POLL_SECONDS = 0.5

MAX_CAUSE = 32_768
"""Longest cause that Step Functions takes."""


class Rendezvous:
    """The task token that waits for one experiment's server, and the two answers to it."""

    def __init__(self, environment: TaskEnvironment) -> None:
        # Here, not on top: few processes of a local run need boto3, and it costs each half a second.
        import boto3  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        self._errors = (BotoCoreError, ClientError)
        self._table = environment.table_name
        self._key: dict[str, Any] = {
            PARTITION_KEY: {"S": study_partition(environment.study_id)},
            SORT_KEY: {"S": rendezvous_sort(environment.experiment_name)},
        }
        self._dynamodb = boto3.client("dynamodb")
        self._stepfunctions = boto3.client("stepfunctions")

    def announce(self, address: str) -> None:
        """Answer the token with the server's `address` (ip:port), once the token is there.

        Raises TrainingFailed if there is none within TOKEN_SECONDS or it cannot be answered.
        """
        deadline = time.monotonic() + TOKEN_SECONDS
        try:
            while (token := self._token()) is None:
                if time.monotonic() > deadline:
                    raise TrainingFailed(
                        f"no task token waits for the server's address: table {self._table},"
                        f" key {self._key[PARTITION_KEY]['S']} {self._key[SORT_KEY]['S']}"
                    )
                time.sleep(POLL_SECONDS)
            self._stepfunctions.send_task_success(taskToken=token, output=json.dumps({"address": address}))
        except self._errors as error:
            raise TrainingFailed(f"the server's address could not be announced: {error}") from error

    def give_up(self, reason: str) -> None:
        """Fail the token, where it is there, so that nobody waits for the address of a dead server."""
        try:
            if token := self._token():
                self._stepfunctions.send_task_failure(
                    taskToken=token, error="ServerFailed", cause=reason[:MAX_CAUSE]
                )
        except self._errors:
            # The server fails for `reason` already; the state machine learns of it from the task's exit too.
            return

    def _token(self) -> str | None:
        item = self._dynamodb.get_item(TableName=self._table, Key=self._key, ConsistentRead=True).get("Item")
        return item["task_token"]["S"] if item and "task_token" in item else None
