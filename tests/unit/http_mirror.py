"""A mirror of data sets on loopback: an HTTP server of a folder's files that can break down."""

import threading
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Mirror(ThreadingHTTPServer):
    """Serves `folder`; a context manager. The first `failures` requests are answered with 503."""

    def __init__(self, folder: Path, failures: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.failures = failures
        self.asked: list[str] = []
        """Paths that were fetched, in order; failures among them."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, request: Any, client_address: Any, server: Mirror) -> None:
        self._mirror = server
        super().__init__(request, client_address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        self._mirror.asked.append(self.path)
        if self._mirror.failures:
            self._mirror.failures -= 1
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
