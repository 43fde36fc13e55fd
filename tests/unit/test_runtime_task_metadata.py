"""Where a task learns its address and ARN from."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from runtime.task_metadata import TaskMetadata

TASK = {
    "TaskARN": "arn:aws:ecs:eu-west-1:123456789012:task/lockstep/0123",
    "Containers": [{"Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.1.7"]}]}],
}


@contextmanager
def endpoint(body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v4/id/task" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v4/id"
        server.shutdown()


def test_ecs_says_address_and_arn() -> None:
    with endpoint(json.dumps(TASK).encode()) as uri:
        metadata = TaskMetadata({"ECS_CONTAINER_METADATA_URI_V4": uri})
    assert metadata.address == "10.0.1.7"
    assert metadata.task_arn == TASK["TaskARN"]


def test_a_given_address_comes_first() -> None:
    with endpoint(json.dumps(TASK).encode()) as uri:
        metadata = TaskMetadata({"ECS_CONTAINER_METADATA_URI_V4": uri, "TASK_ADDRESS": "127.0.1.5"})
    assert metadata.address == "127.0.1.5"


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"{}", b'{"Containers": [{"Networks": [{}]}]}'])
def test_an_endpoint_that_says_nothing_useful_is_no_failure(body: bytes) -> None:
    with endpoint(body) as uri:
        metadata = TaskMetadata({"ECS_CONTAINER_METADATA_URI_V4": uri})
    assert metadata.task_arn == ""
    assert metadata.address.count(".") == 3


def test_outside_ecs_there_is_an_address_and_no_arn() -> None:
    metadata = TaskMetadata({})
    assert metadata.task_arn == ""
    assert metadata.address.count(".") == 3
