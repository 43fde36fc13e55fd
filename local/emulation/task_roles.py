"""Task roles: a task's requests are those of its task role.

Runs in the emulator's process. MiniStack's endpoint for a task's credentials knows no role, and its enforcement refuses
them. Source: Amazon ECS Developer Guide, "Amazon ECS task IAM role".
"""

import json
import time
from typing import Any
from urllib.parse import urlsplit

from ministack.services import ecs, imds

from local.emulation.role_sessions import SESSION_SECONDS, session_of

_roles: dict[str, tuple[str, str]] = {}
"""Path of a task's credentials → its role and its id."""


def install() -> None:
    """Give every task that has a role that role's credentials."""
    register, handle = ecs._register_metadata, imds.handle_request

    def register_metadata(task_arn: str, cluster: str, definition: Any, *rest: Any) -> Any:
        token = register(task_arn, cluster, definition, *rest)
        _, _, environment, *_ = rest
        if role := definition.get("taskRoleArn"):
            path = urlsplit(environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"]).path
            _roles[path] = (role, task_arn.rsplit("/", 1)[-1])
        return token

    async def handle_request(method: str, path: str, *rest: Any) -> Any:
        if path not in _roles:
            return await handle(method, path, *rest)
        return 200, {"Content-Type": "application/json"}, json.dumps(_credentials(*_roles[path])).encode()

    ecs._register_metadata = register_metadata
    imds.handle_request = handle_request


def _credentials(role_arn: str, task_id: str) -> dict[str, str]:
    session = session_of(role_arn, task_id)
    return {
        "AccessKeyId": session.access_key,
        "SecretAccessKey": session.secret_key,
        "Token": session.token,
        "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + SESSION_SECONDS)),
        "RoleArn": role_arn,
    }
