"""One experiment of a study, as far as the papers ask: read from the JSON that the report publishes.

Pure. Only the published names are used (docs/study.md), so that results of before and after a change of the rest are
read alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from bench.science.statistics import Curve
from contract.aggregation import Mode
from contract.compute import Compute
from contract.training import Training

NON_FINITE = "NaN or infinite"
"""What a server says of a gradient that it refuses because training has diverged."""

CHANCE_ERROR_PERCENT = 90.0
"""Of ten classes."""


class Unusable(Exception):
    """Results that cannot be evaluated: says which and why."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What came out of one experiment; times in seconds, errors in percent. None: not measured."""

    name: str
    mode: Mode
    workers: int
    backup_workers: int = 0
    seed: int
    training: Training
    compute: Compute
    completed: bool = True
    cause: str = ""
    """Everything that was said of a failure."""
    training_seconds: float | None = None
    """On the server's clock, until the last worker has finished; the tests of all epochs are in it."""
    update_seconds: float | None = None
    """On the server's clock, up to the last update; the tests of all epochs but the last are in it."""
    updates: int | None = None
    gradients: int | None = None
    """Those that are part of an update."""
    dropped: int | None = None
    mean_staleness: float | None = None
    """Over the gradients that came while all workers trained."""
    stalenesses: Mapping[int, int] | None = None
    """Staleness → gradients."""
    error_percent: float | None = None
    """Of the final parameters, on the whole test set."""
    epoch_seconds: Sequence[float] = ()
    """Duration of each epoch's training, mean over workers."""
    losses: Sequence[float] = ()
    """Mean training loss of each epoch."""
    errors: Sequence[float] = ()
    """Test error after each epoch."""

    @property
    def quorum(self) -> int:
        """Gradients that a barrier waits for."""
        return self.workers - self.backup_workers

    @property
    def has_diverged(self) -> bool:
        """Whether it failed because gradients were no numbers any more. Raises Unusable for other failures."""
        if self.completed:
            return False
        if NON_FINITE not in self.cause:
            raise Unusable(f"{self.name} did not complete: {self.cause or 'no cause is known'}")
        return True

    @property
    def final_error(self) -> float:
        """Test error of the final parameters; of parameters that are no numbers, that of guessing."""
        return CHANCE_ERROR_PERCENT if self.has_diverged else self.known(self.error_percent)

    @property
    def epoch_ends(self) -> list[float]:
        """Training seconds at the end of each epoch, on the workers' clocks; testing is not in them."""
        return list(accumulate(self.epoch_seconds))

    @property
    def loss_curve(self) -> Curve:
        """Loss of each epoch, in the middle of the epoch: it was measured all along it."""
        ends = self.epoch_ends
        return Curve([(begin + end) / 2 for begin, end in zip([0.0, *ends], ends, strict=False)], self.losses)

    @property
    def error_curve(self) -> Curve:
        """Test error, at the end of each epoch."""
        return Curve(self.epoch_ends, self.errors)

    def seconds_to_error(self, percent: float) -> float | None:
        """Training time until the test error is so low, straight between epochs; None if it never is."""
        return self.error_curve.first(percent)

    def updates_to_error(self, percent: float) -> float | None:
        """The same, in updates."""
        per_epoch = self.known(self.updates) / len(self.errors)
        return Curve([per_epoch * (i + 1) for i in range(len(self.errors))], self.errors).first(percent)

    def known(self, value: float | None) -> float:
        """A figure that must be there. Raises Unusable."""
        if value is None:
            raise Unusable(f"{self.name} lacks a figure: its records are incomplete")
        return value


def experiment_of(document: Mapping[str, Any]) -> Experiment:
    """Read experiments/<name>.json. Raises Unusable where it lacks what every experiment has."""
    try:
        server, workers = document["server_metrics"], document["worker_metrics_aggregated"]
        said = [document["cause"], *(failure["reason"] for failure in document["failures"])]
        return Experiment(
            name=document["experiment_name"],
            mode=Mode(server["mode"]),
            workers=server["total_workers"],
            backup_workers=document["aggregation"]["backup_workers"] or 0,
            seed=document["seed"],
            training=Training.model_validate(document["training"]),
            compute=Compute.model_validate(document["compute"]),
            completed=document["status"] == "COMPLETED",
            cause="; ".join(dict.fromkeys(filter(None, said))),
            training_seconds=server["total_training_time_seconds"],
            update_seconds=server["mean_step_seconds"],
            updates=server["global_steps_completed"],
            gradients=server["gradients_processed"],
            dropped=server["dropped_gradients"],
            mean_staleness=server.get("average_gradient_staleness_all_training"),
            stalenesses=_counts(server.get("staleness_histogram")),
            error_percent=_error(workers["final_test_accuracy_percent"]),
            **_epochs(workers),
        )
    except (KeyError, TypeError, ValueError) as error:
        name = document.get("experiment_name", "a file")
        raise Unusable(f"{name} is no result of an experiment: {error!r}") from error


def _epochs(workers: Mapping[str, Any]) -> dict[str, list[float]]:
    """Series over the epochs that every worker has told of, and only up to the first gap."""
    series: dict[str, list[float]] = {"epoch_seconds": [], "losses": [], "errors": []}
    for times, tests in zip(workers["epoch_times_by_epoch"], workers["accuracy_by_epoch"], strict=True):
        if None in {tests["mean_loss"], tests["test_accuracy_percent"]} or tests["epoch"] != times["epoch"]:
            break
        series["epoch_seconds"].append(times["avg_time"])
        series["losses"].append(tests["mean_loss"])
        series["errors"].append(100 - tests["test_accuracy_percent"])
    return series


def _error(accuracy_percent: float | None) -> float | None:
    return None if accuracy_percent is None else 100 - accuracy_percent


def _counts(histogram: Mapping[str, int] | None) -> dict[int, int] | None:
    return None if histogram is None else {int(staleness): count for staleness, count in histogram.items()}
