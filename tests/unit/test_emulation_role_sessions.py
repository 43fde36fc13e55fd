"""Credentials of roles in the embedded cloud: made and registered from many threads at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from local.emulation.role_sessions import one_at_a_time


def test_no_session_is_registered_while_another_one_is() -> None:
    # Given sessions that are walked through before another one is added, as MiniStack does
    sessions: dict[int, None] = dict.fromkeys(range(-50, 0))
    together = threading.Barrier(8)

    def register(key: int) -> None:
        for _ in sessions:
            time.sleep(0)
        sessions[key] = None

    registered = one_at_a_time(register)

    def register_many(thread: int) -> None:
        together.wait(60)
        for key in range(20):
            registered(100 * thread + key)

    # When many threads register some, then each of them does so
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(register_many, range(8)))
    assert len(sessions) == 50 + 8 * 20
