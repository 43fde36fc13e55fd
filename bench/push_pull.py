"""Push-pull: every system in turn, for each size and number of workers.

Runs in the bench's main process: starts rounds, shows progress, gives rows to whoever writes them down.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.case import Case, RoundFailed, Sample, System
from bench.harness import (
    MIN_ROUNDS,
    Contestant,
    Row,
    fastest_variants,
    goes_on,
    laps_for,
    median_rates,
    pilot_updates,
    rounds_for,
    rows_of,
    share_of_time,
    shuffled,
    updates_each,
    warm_up_of,
)
from bench.machine import machine
from bench.registry import LIMIT, SYSTEMS

ROUND_TIMEOUT_SECONDS = 120.0
ONE_WORKERS_WEIGHT = 2
"""How much more time the configurations with one worker have: theirs are the figures that are compared first."""


@dataclass(frozen=True)
class Plan:
    """What is measured and for how long."""

    systems: Sequence[str]
    sizes: Sequence[int]
    workers: Sequence[int]
    rounds: int
    seconds: float
    """That the timed part of a round is to last."""
    minutes: float
    """For all of it; after that, each configuration that is left has MIN_ROUNDS rounds."""

    @property
    def configurations(self) -> list[tuple[int, int]]:
        """Parameters and workers; small ones first."""
        return [(size, count) for size in sorted(self.sizes) for count in sorted(self.workers)]


@dataclass
class Outcome:
    """All that was found."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """System → why it could not run here."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Systems that ended badly in a configuration, and why."""


def measure(plan: Plan, console: Console) -> Outcome:
    """Measure what the plan says. What cannot run is skipped, and said; a system that fails has no row there."""
    outcome = Outcome()
    systems = {}
    for name in plan.systems:
        if reason := SYSTEMS[name].missing():
            outcome.skipped[SYSTEMS[name].label] = reason
            console.print(f"[bold red]SKIPPED {SYSTEMS[name].label}: {reason}[/]")
        else:
            systems[name] = SYSTEMS[name]
    deadline = time.monotonic() + 60 * plan.minutes
    known: dict[int, dict[Contestant, float]] = {}
    weights = [ONE_WORKERS_WEIGHT if workers == 1 else 1 for _, workers in plan.configurations]
    for number, (parameters, workers) in enumerate(plan.configurations):
        now, left = time.monotonic(), sum(weights[number:]) / weights[number]
        configuration = _Configuration(
            systems,
            plan,
            parameters=parameters,
            workers=workers,
            known=known.get(parameters, {}),
            console=console,
            outcome=outcome,
        )
        console.print(
            f"[bold]{configuration.title}[/], {(deadline - now) / 60:.0f} of {plan.minutes:.0f} min left"
        )
        rows = configuration.run(share_of_time(now, deadline, left))
        known.setdefault(parameters, configuration.fastest)
        outcome.rows += rows
        for row in rows:
            console.print(
                f"  {row.system} ({row.transport}): {row.updates_per_second:,.4g} updates/s"
                f" in {row.rounds} rounds; {row.variant}"
            )
    return outcome


def as_json(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """What is written down."""
    return {
        "machine": machine(),
        "settings": {"seconds": plan.seconds, "rounds_at_most": plan.rounds, "minutes": plan.minutes},
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "rows": [asdict(row) for row in outcome.rows],
    }


class _Configuration:
    """One size and number of workers."""

    def __init__(
        self,
        systems: Mapping[str, System],
        plan: Plan,
        *,
        parameters: int,
        workers: int,
        known: Mapping[Contestant, float],
        console: Console,
        outcome: Outcome,
    ) -> None:
        """`known`: updates per second of those that were the fastest of their system with fewer workers."""
        self._systems = systems
        self._parameters = parameters
        self._workers = workers
        self._plan = plan
        self._known = known
        self._console = console
        self._outcome = outcome
        self._samples: dict[Contestant, list[Sample]] = {}
        self._updates: dict[Contestant, int] = {}

    @property
    def title(self) -> str:
        """What is measured."""
        return f"{self._parameters:,} parameters, {self._workers} worker{'s' * (self._workers > 1)}"

    @property
    def fastest(self) -> dict[Contestant, float]:
        """The fastest contestant of each system that has a figure, and its updates per second."""
        rates = median_rates(self._samples)
        return {who: rates[who] for who in fastest_variants(rates).values()}

    def run(self, deadline: float) -> list[Row]:
        """A pilot of every contestant that is new, then rounds of all until there are enough or the time is over."""
        with self._console.status(f"{self.title}: pilots") as status:
            for name, system in self._systems.items():
                self._enter(name, system)
            done = 0
            wanted = rounds_for(self._plan.rounds, self._workers, slow_start=False)
            while goes_on(done, wanted, in_time=time.monotonic() < deadline):
                status.update(f"{self.title}: round {done + 1} of at most {wanted}")
                for contestant in shuffled(list(self._updates), seed=done):
                    slow = self._systems[contestant.system].slow_start
                    if done < rounds_for(wanted, self._workers, slow_start=slow):
                        self._round(contestant)
                done += 1
                if done == MIN_ROUNDS:
                    self._keep_fastest_variants()
        return rows_of(
            self._samples,
            {name: (system.name, system.transport) for name, system in self._systems.items()},
            limit=LIMIT,
            parameters=self._parameters,
            workers=self._workers,
        )

    def _enter(self, name: str, system: System) -> None:
        """Have a system take part: as it was fastest with fewer workers, or in all its variants."""
        rates = {who: rate for who, rate in self._known.items() if who.system == name}
        if not rates:
            for variant in system.variants:
                for sample in self._pilot(who := Contestant(name, variant)):
                    rates[who] = sample.updates_per_second
            if system.slow_start:
                rates = {who: rates[who] for who in fastest_variants(rates).values()}
        for who, rate in rates.items():
            self._updates[who] = updates_each(rate, self._workers, self._plan.seconds)
            self._samples[who] = []

    def _keep_fastest_variants(self) -> None:
        """The rounds that are left are for those whose figures will stand in the rows."""
        fastest = fastest_variants(median_rates(self._samples)).values()
        self._updates = {who: updates for who, updates in self._updates.items() if who in fastest}

    def _pilot(self, contestant: Contestant) -> list[Sample]:
        return self._try(contestant, warm_up=2, updates=pilot_updates(self._parameters), laps=1)

    def _round(self, contestant: Contestant) -> None:
        updates = self._updates[contestant]
        slow = self._systems[contestant.system].slow_start
        laps = laps_for(self._workers, slow_start=slow)
        if samples := self._try(contestant, warm_up=warm_up_of(updates), updates=updates, laps=laps):
            self._samples[contestant] += samples
        else:
            del self._samples[contestant], self._updates[contestant]

    def _try(self, contestant: Contestant, warm_up: int, updates: int, laps: int) -> list[Sample]:
        """A sample per lap; none where the system failed, which is then told."""
        system = self._systems[contestant.system]
        # Of a cluster that was killed, something may still be writing.
        with tempfile.TemporaryDirectory(prefix="lockstep-bench-", ignore_cleanup_errors=True) as folder:
            case = Case(self._parameters, self._workers, contestant.variant, warm_up, updates, Path(folder))
            try:
                return system.run_laps(case, laps, ROUND_TIMEOUT_SECONDS)
            except RoundFailed as error:
                self._console.print(f"[bold red]FAILED {system.label}, {contestant.variant}: {error}[/]")
                self._outcome.failed.append(
                    {
                        "system": system.label,
                        "variant": str(contestant.variant),
                        "parameters": self._parameters,
                        "workers": self._workers,
                        "reason": str(error),
                    }
                )
                return []
