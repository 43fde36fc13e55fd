"""Find the containers of an embedded cloud by their label, and remove them, running or not.

Runs where a cloud ends: in the proxy, and in the supervisor in case the proxy was killed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from local.docker_proxy.rewriting import CLOUD_LABEL

_ATTEMPTS = 5
_AT_ONCE = 8
TIMEOUT_SECONDS = 60


def remove_containers(engine_url: str, cloud: str) -> int:
    """Kill and remove what carries the label of `cloud`. Returns how many containers that were.

    Raises docker.errors.DockerException when the engine does not answer or keeps one.
    """
    client = docker.DockerClient(base_url=engine_url, timeout=TIMEOUT_SECONDS)
    try:
        removed = 0
        for _ in range(_ATTEMPTS):  # again: a request of the emulator's may have been under way
            # Sparse: nothing but the ids is needed, and one that goes meanwhile cannot fail the others.
            found = client.containers.list(all=True, sparse=True, filters={"label": f"{CLOUD_LABEL}={cloud}"})
            if not found:
                break
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                removed += sum(pool.map(_remove, found))
        return removed
    finally:
        client.close()


def _remove(container: Container) -> bool:
    try:
        container.remove(force=True, v=True)
    except NotFound:
        return False
    except APIError as error:
        if error.status_code == 409:  # the emulator is removing it at this moment
            return False
        raise
    return True
