"""A Ray actor as parameter server. Ray runs in an environment of its own, .tools/bench.

This side starts bench/systems/ray_driver.py there and reads its answer; it never imports Ray.
"""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from bench.case import Case, RoundFailed, Sample, System
from runtime import malloc

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".tools" / "bench" / "bin" / "python"
GOODBYE_SECONDS = 15.0

ENVIRONMENT = {
    # Ray's own switch for "this machine alone": without it every process of it listens on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class RayActor(System):
    """An actor with the parameters; workers are actors too, as in Ray's parameter server example.

    Source: https://docs.ray.io/en/latest/ray-core/examples/plot_parameter_server.html
    """

    name = "Ray actor"
    transport = "object store"
    slow_start = True  # 8 s with one worker, 38 s with 16, on two cores

    def missing(self) -> str | None:
        """Why the system cannot run here, or None if it can."""
        return None if ray_version() else "Ray is not installed: `make .tools/bench/.installed` says why"

    def run_round(self, case: Case, timeout_seconds: float) -> Sample:
        """Start a cluster of this machine, warm up, measure, stop it. Raises RoundFailed."""
        (sample,) = self.run_laps(case, 1, timeout_seconds)
        return sample

    def run_laps(self, case: Case, laps: int, timeout_seconds: float) -> list[Sample]:
        """The same, and measure several times between start and stop."""
        question = {
            "parameters": case.parameters,
            "workers": case.workers,
            "warm_up": case.warm_up,
            "updates": case.updates,
            "laps": laps,
            "folder": str(case.folder),
        }
        environ = dict(os.environ) | ENVIRONMENT
        if case.variant.malloc == "tuned":
            environ |= malloc.ENVIRONMENT
        command = [str(PYTHON), "-m", "bench.systems.ray_driver", json.dumps(question)]
        with (
            (case.folder / "driver.log").open("w+", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the bench, which stops it below
            ) as driver,
        ):
            try:
                answer, _ = driver.communicate(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                raise RoundFailed(f"Ray did not answer within {timeout_seconds:.0f} s") from None
            finally:
                _stop(driver)
            log.seek(0)
            words = " | ".join(log.read().strip().splitlines()[-3:])
        if driver.returncode != 0:
            raise RoundFailed(f"Ray's driver ended with {driver.returncode}: {words}")
        return samples_of(answer, case)


def ray_version() -> str | None:
    """The Ray in its own environment, or None if there is none."""
    if not PYTHON.exists():
        return None
    command = [str(PYTHON), "-c", "from importlib.metadata import version; print(version('ray'))"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def samples_of(answer: str, case: Case) -> list[Sample]:
    """A sample per lap, from the driver's last line. Raises RoundFailed where it says that parameters were wrong."""
    laps = json.loads(answer.strip().splitlines()[-1])
    for lap, said in enumerate(laps, start=1):
        found, expected = said.pop("parameter"), case.parameter_after(case.warm_up + lap * case.updates)
        if abs(found - expected) > 1e-5 * abs(expected):
            raise RoundFailed(f"wrong parameters: {found} after all updates; expected {expected}")
    return [Sample(updates=case.workers * case.updates, **said) for said in laps]


def _stop(driver: "subprocess.Popen[str]") -> None:
    """Let the driver shut its cluster down; what then remains of its session is killed."""
    if driver.poll() is None:
        driver.terminate()
        with suppress(subprocess.TimeoutExpired):
            driver.wait(GOODBYE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
