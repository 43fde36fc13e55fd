"""How server and workers find each other through the table: address, certificate and token of the server.

Runs in both roles on AWS and on the embedded cloud.
"""

import json
import os
import time
from typing import Any, NamedTuple

from contract import table as keys
from contract.errors import TrainingFailed
from contract.task import TaskEnvironment
from runtime.trust import VALIDITY, Trust, token_by_hand

TOKEN_SECONDS = 120.0
"""How long the token's row may take to appear once the server listens."""

POLL_SECONDS = 0.5

MAX_CAUSE = 32_768
"""Longest cause that Step Functions takes."""

ANSWERED = frozenset({"TaskTimedOut", "TaskDoesNotExist"})
"""How Step Functions refuses the second answer to a task token, and the emulator."""


class Rendezvous:
    """The server's side: the row that workers read, and the task token that waits for one experiment's server."""

    def __init__(self, environment: TaskEnvironment) -> None:
        # Here, not on top: few processes of a local run need boto3, and it costs each half a second.
        import boto3  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        self._errors = (BotoCoreError, ClientError)
        self._refused = ClientError
        self._table = environment.table_name
        self._key: dict[str, Any] = {
            keys.PARTITION_KEY: {"S": keys.study_partition(environment.study_id)},
            keys.SORT_KEY: {"S": keys.rendezvous_sort(environment.experiment_name, environment.shard_index)},
        }
        self._server_key = _server_key(environment, environment.shard_index)
        self._dynamodb = boto3.client("dynamodb")
        self._stepfunctions = boto3.client("stepfunctions")

    def announce(self, address: str, trust: Trust) -> None:
        """Write what workers need, then answer the token, once it is there, with `address` (ip:port) alone.

        Step Functions' history keeps answers: it must not get `trust`. A server that was restarted replaces what the
        one before it wrote, whose answer stands. Raises TrainingFailed if there is no token within TOKEN_SECONDS
        or it cannot be answered.
        """
        deadline = time.monotonic() + TOKEN_SECONDS
        try:
            while (token := self._token()) is None:
                if time.monotonic() > deadline:
                    raise TrainingFailed(
                        f"no task token waits for the server's address: table {self._table},"
                        f" key {_shown(self._key)}"
                    )
                time.sleep(POLL_SECONDS)
            restarted = self._write(address, trust)
            self._answer(token, address, may_be_answered=restarted)
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
        return item[keys.TASK_TOKEN]["S"] if item and keys.TASK_TOKEN in item else None

    def _write(self, address: str, trust: Trust) -> bool:
        """Replace the row that workers read; whether there was one."""
        expires_at = int(time.time() + VALIDITY.total_seconds())
        row: dict[str, Any] = {
            **self._server_key,
            keys.SERVER_ADDRESS: {"S": address},
            keys.SERVER_TOKEN: {"S": trust.token},
            keys.EXPIRY: {"N": str(expires_at)},
        }
        if trust.certificate_pem is not None:
            row[keys.SERVER_CERTIFICATE] = {"S": trust.certificate_pem}
        before = self._dynamodb.put_item(TableName=self._table, Item=row, ReturnValues="ALL_OLD")
        return bool(before.get("Attributes"))

    def _answer(self, token: str, address: str, *, may_be_answered: bool) -> None:
        try:
            self._stepfunctions.send_task_success(taskToken=token, output=json.dumps({"address": address}))
        except self._refused as error:
            # The client tries again by itself where an answer was lost, and may then hear of its own first attempt.
            again = may_be_answered or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
            if not (again and error.response["Error"]["Code"] in ANSWERED):
                raise


class Announced(NamedTuple):
    """Where a server listens, and what lets a worker in. No two starts of a server announce the same."""

    address: str
    """host:port."""
    trust: Trust


class ServerLookup:
    """A worker's side: reads what the servers have announced, as often as it is asked."""

    def __init__(self, environment: TaskEnvironment) -> None:
        self._environment = environment
        self._dynamodb: Any = None
        if environment.table_name:
            import boto3  # noqa: PLC0415 - as above

            self._dynamodb = boto3.client("dynamodb")

    def current(self) -> list[Announced]:
        """What the server of each shard announced last.

        Without a table, what PARAMETER_SERVER_ADDRESS (several with commas) and EXPERIMENT_TOKEN say. A worker that
        lost its server may poll this for the next one. Raises LockstepError if it cannot be known.
        """
        shards = self._environment.shards
        if self._dynamodb is not None:
            return [self._read(shard) for shard in range(shards)]
        addresses = [part for part in self._environment.parameter_server_address.split(",") if part]
        if len(addresses) != shards:
            raise TrainingFailed(
                f"PARAMETER_SERVER_ADDRESS has {len(addresses)} addresses; expected host:port of"
                f" {'the server' if shards == 1 else f'{shards} servers, with commas between'}"
            )
        trust = Trust(token=token_by_hand(os.environ))
        return [Announced(address, trust) for address in addresses]

    def _read(self, shard: int) -> Announced:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as above

        table, key = self._environment.table_name, _server_key(self._environment, shard)
        try:
            row = self._dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True).get("Item", {})
        except (BotoCoreError, ClientError) as error:
            raise TrainingFailed(f"what the server announced could not be read: {error}") from error
        values = {name: value["S"] for name, value in row.items() if "S" in value}
        missing = [name for name in (keys.SERVER_ADDRESS, keys.SERVER_TOKEN) if not values.get(name)]
        if missing:
            raise TrainingFailed(
                f"the server has not announced its {' and '.join(missing)}: table {table}, key {_shown(key)}"
            )
        trust = Trust(values.get(keys.SERVER_CERTIFICATE), values[keys.SERVER_TOKEN])
        return Announced(values[keys.SERVER_ADDRESS], trust)


def _server_key(environment: TaskEnvironment, shard: int) -> dict[str, Any]:
    partition = keys.server_partition(environment.study_id, environment.experiment_name)
    return {keys.PARTITION_KEY: {"S": partition}, keys.SORT_KEY: {"S": keys.server_sort(shard)}}


def _shown(key: dict[str, Any]) -> str:
    return " ".join(value["S"] for value in key.values())
