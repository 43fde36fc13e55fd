"""A small Service Quotas on a loopback port: the two calls that plan_study makes, over the real protocol.

moto knows the quotas of one service, and not Fargate's. Clients reach it through AWS_ENDPOINT_URL_SERVICE_QUOTAS.
"""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

DIMENSIONS = {"Class": "Standard/OnDemand", "Resource": "vCPU", "Service": "Fargate", "Type": "Resource"}


def quota(code: str, value: float, *, resource_class: str = "Standard/OnDemand") -> dict[str, Any]:
    """A quota as GetServiceQuota describes it, with the metric of its use."""
    return {
        "ServiceCode": "fargate",
        "QuotaCode": code,
        "Value": value,
        "Adjustable": True,
        "UsageMetric": {
            "MetricNamespace": "AWS/Usage",
            "MetricName": "ResourceCount",
            "MetricDimensions": {**DIMENSIONS, "Class": resource_class},
            "MetricStatisticRecommendation": "Maximum",
        },
    }


@dataclass
class FakeServiceQuotas:
    """Use as a context manager; `endpoint` is where it listens."""

    applied: dict[str, dict[str, Any]] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusal: str = ""
    """The error code of every answer, if any."""
    endpoint: str = ""

    def answer(self, action: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """One API call."""
        assert request["ServiceCode"] == "fargate"
        if self.refusal:
            return 400, {"__type": self.refusal, "Message": "for this test"}
        known = {"GetServiceQuota": self.applied, "GetAWSDefaultServiceQuota": self.defaults}[action]
        if found := known.get(request["QuotaCode"]):
            return 200, {"Quota": found}
        return 400, {"__type": "NoSuchResourceException", "Message": "there is no such quota"}

    def __enter__(self) -> Self:
        quotas = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                action = self.headers["X-Amz-Target"].rpartition(".")[2]
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = quotas.answer(action, request)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
