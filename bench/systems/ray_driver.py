"""Runs one round of the Ray peer and prints its figures as one line of JSON.

Runs under .tools/bench, which has Ray and torch but nothing else of Lockstep's: of the bench it imports what needs
the standard library alone.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch

from bench import measure
from bench.case import LEARNING_RATE


@ray.remote(num_cpus=0)
class ParameterServer:
    """Calls of an actor run one after the other: no lock is needed."""

    def __init__(self, parameters: int) -> None:
        self._idle = asdict(measure.read_memory())
        torch.set_num_threads(1)
        self._values = np.zeros(parameters, np.float32)
        self._parameters = torch.from_numpy(self._values)

    def whoami(self) -> tuple[int, dict[str, int]]:
        """Process id, and the memory of the process before it held anything."""
        return os.getpid(), self._idle

    def push_pull(self, gradient: Any) -> Any:
        """Apply a gradient, a read-only array in shared memory; Ray copies the parameters there in turn."""
        self._parameters.add_(torch.from_numpy(gradient), alpha=-LEARNING_RATE)
        return self._values


@ray.remote(num_cpus=0)
class Worker:
    """Pushes one gradient after the other."""

    def __init__(self, server: Any, parameters: int) -> None:
        self._server = server
        self._gradient = np.ones(parameters, np.float32)

    def run(self, updates: int) -> tuple[float, float, float]:
        """When it began and ended, in seconds of the monotonic clock, and the lesser of first and last parameter."""
        began = time.monotonic()
        for _ in range(updates):
            parameters = ray.get(self._server.push_pull.remote(self._gradient))
        return began, time.monotonic(), max(float(parameters[0]), float(parameters[-1]))


def main(question: dict[str, Any]) -> list[dict[str, Any]]:
    """Warm up and measure; returns for each lap the fields of a Sample and `parameter`, which the last worker got."""
    parameters, workers = question["parameters"], question["workers"]
    ray.init(
        num_cpus=workers + 1,
        include_dashboard=False,
        _temp_dir=question["folder"],
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=max(1 << 30, 6 * workers * 4 * parameters),
    )
    server = ParameterServer.remote(parameters)  # type: ignore[attr-defined]  # made by ray.remote
    crew = [
        Worker.remote(server, parameters)  # type: ignore[attr-defined]  # made by ray.remote
        for _ in range(workers)
    ]
    pid, idle = ray.get(server.whoami.remote())
    ray.get([worker.run.remote(question["warm_up"]) for worker in crew])
    found = [_lap(crew, question["updates"], pid, measure.Memory(**idle)) for _ in range(question["laps"])]
    ray.shutdown()
    return found


def _lap(crew: Sequence[Any], updates: int, server: int, idle: measure.Memory) -> dict[str, Any]:
    """`server`: its process id; `idle`: the memory of that process before it held anything."""
    carried, spent = measure.loopback_bytes(), measure.cpu_seconds(server)
    laps = ray.get([worker.run.remote(updates) for worker in crew])
    spent = measure.cpu_seconds(server) - spent
    carried = measure.loopback_bytes() - carried
    return {
        "seconds": max(ended for _, ended, _ in laps) - min(began for began, _, _ in laps),
        "loopback_bytes": carried,
        "server_cpu_seconds": spent,
        "server_peak_bytes": measure.peak_above_idle(idle, measure.read_memory(server)),
        "parameter": min(parameter for _, _, parameter in laps),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201 - its output
