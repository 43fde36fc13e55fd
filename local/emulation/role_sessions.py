"""Sessions of roles: credentials that MiniStack holds against the policies of a role.

Runs in the emulator's process. Source: IAM User Guide, "Temporary security credentials in IAM".
"""

import hashlib
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from ministack.services import sts

SESSION_SECONDS = 6 * 3600
"""How long credentials last; far longer than any task here."""

MAX_NAME = 64
"""Longest name of a session that AWS takes."""


class Session(NamedTuple):
    """Credentials of a role."""

    access_key: str
    secret_key: str
    token: str


def install() -> None:
    """Have MiniStack register one session at a time: it walks through all of them meanwhile, from many threads."""
    sts.register_session = one_at_a_time(sts.register_session)


def one_at_a_time(register: Callable[..., None]) -> Callable[..., None]:
    """`register`, of which no call begins before another has ended."""
    lock = threading.Lock()

    @wraps(register)
    def register_session(*arguments: Any) -> None:
        with lock:
            register(*arguments)

    return register_session


def session_of(role_arn: str, name: str) -> Session:
    """Credentials of a role under a session's name, registered as AssumeRole does; the same whenever asked.

    MiniStack makes those of its functions so, too: nothing has to be remembered, and none are secrets here.
    """
    account, role, name = role_arn.split(":")[4], role_arn.rsplit("/", 1)[-1], name[:MAX_NAME]
    digests = [hashlib.sha256(f"{part}:{role_arn}:{name}".encode()).hexdigest() for part in Session._fields]
    session = Session(f"ASIA{digests[0][:16].upper()}", *digests[1:])
    sts.register_session(
        session.access_key,
        {
            "Arn": f"arn:aws:sts::{account}:assumed-role/{role}/{name}",
            "UserId": f"{role}:{name}",
            "SecretAccessKey": session.secret_key,
            "SessionToken": session.token,
            "Expiration": time.time() + SESSION_SECONDS,
        },
    )
    return session
