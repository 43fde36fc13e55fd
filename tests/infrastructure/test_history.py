"""The budget of history events and bytes that docs/scale.md states, computed from the state machine itself."""

import json
import re
from typing import Any

from contract.document import MAX_SHARDS, MAX_WORKERS
from contract.plan import plan
from contract.study import MAX_EXPERIMENTS, parse_study
from lambdas.plan_study.launch import MAX_ITEMS_BYTES, RESTARTS, VAIN_STARTS, launch_items
from tests.infrastructure.asl import Machine, followers
from tests.infrastructure.conftest import REPOSITORY

MAX_EVENTS = 25_000
MAX_BYTES = 262_144
"""Of one execution, and of a state's input or output. Source: Step Functions Developer Guide, service quotas."""

STARTS = 1 + RESTARTS + VAIN_STARTS
"""Of one task, at most: what lies on a way that leads back is visited as often."""

ITEMS = {"RunServers": MAX_SHARDS, "AwaitServers": MAX_SHARDS, "RunWorkers": MAX_WORKERS}

OWN_EVENTS = {"Pass": 2, "Choice": 2, "Succeed": 2, "Fail": 1, "Wait": 2}
"""Entered and Exited; a Fail state is not left. Source: Step Functions API Reference, HistoryEvent."""

EXECUTION_EVENTS = 2
"""Started, and how it ended."""


class Budget:
    """Counts the events of a machine: of the way without errors, or at most, with every retry and restart there is."""

    def __init__(self, items: dict[str, int], *, at_most: bool) -> None:
        self._items = items
        self._at_most = at_most

    def execution(self, machine: Machine) -> int:
        """Events of a whole execution."""
        return EXECUTION_EVENTS + self.machine(machine)

    def machine(self, machine: Machine) -> int:
        """Events of all states of one level, each of which is visited; on the way without errors, those on it."""
        states = machine["States"]
        if self._at_most:
            return sum(
                self.state(name, state) * (STARTS if name in followers_of(states, name) else 1)
                for name, state in states.items()
            )
        events, name = 0, machine["StartAt"]
        while name:
            events += self.state(name, states[name])
            name = states[name].get("Next") or states[name].get("Default")
        return events

    def state(self, name: str, state: dict[str, Any]) -> int:
        """Events of one visit."""
        kind = state["Type"]
        if kind == "Task":
            return self._task(state)
        if kind == "Parallel":
            return 4 + sum(self.machine(branch) for branch in state["Branches"])
        if kind == "Map" and state["ItemProcessor"]["ProcessorConfig"]["Mode"] == "DISTRIBUTED":
            return 6  # of the state, and of the Map Run: what happens inside is the children's history
        if kind == "Map":
            return 4 + self._items[name] * (2 + self.machine(state["ItemProcessor"]))
        return OWN_EVENTS[kind]

    def _task(self, state: dict[str, Any]) -> int:
        """Entered and Exited; of each attempt: scheduled, started, submitted where it is waited for, and its end.

        What is tried again of those are errors of the call itself: TaskSubmitFailed is their end.
        """
        waited_for = state["Resource"].endswith((".sync", ".waitForTaskToken"))
        retries = sum(retrier["MaxAttempts"] for retrier in state.get("Retry", [])) if self._at_most else 0
        return 2 + 3 * retries + (4 if waited_for else 3)


def followers_of(states: dict[str, Any], name: str) -> set[str]:
    """Every state that may come after one, itself included where a way leads back."""
    reached: set[str] = set()
    new = followers(states[name])
    while new:
        reached |= new
        new = set().union(*(followers(states[state]) for state in new)) - reached
    return reached


def test_the_largest_experiment_fits_its_own_history(machine: Machine) -> None:
    experiment = machine["States"]["RunExperiments"]["ItemProcessor"]
    at_most = Budget(ITEMS, at_most=True).execution(experiment)
    assert at_most < MAX_EVENTS / 2
    assert stated("at most, 32 workers and 8 shards") == at_most
    usual = Budget({"RunServers": 1, "AwaitServers": 1, "RunWorkers": MAX_WORKERS}, at_most=False)
    assert stated("32 workers") == usual.execution(experiment)
    one = Budget({"RunServers": 1, "AwaitServers": 1, "RunWorkers": 1}, at_most=False)
    assert stated("1 worker") == one.execution(experiment)


def test_a_study_fits_its_history_however_many_experiments_it_has(machine: Machine) -> None:
    """The Map Run tells of them elsewhere. Each redrive takes at most as many events once more."""
    assert stated("a study") == Budget({}, at_most=False).execution(machine)
    one_run = Budget({}, at_most=True).machine(machine) / STARTS
    assert 20 * one_run < MAX_EVENTS


def test_what_the_classic_matrix_hands_on_fits_a_state() -> None:
    experiments = plan(parse_study({"preset": "full", "seeds": [0, 1, 2, 3, 4]}), "s" * 80)
    assert len(experiments) == 60
    size = len(json.dumps(launch_items(experiments)))
    assert size < 0.75 * MAX_ITEMS_BYTES < MAX_BYTES
    assert abs(stated("classic matrix, bytes") - size) < 5_000
    largest = plan(parse_study({"preset": "full", "seeds": list(range(8))}), "s" * 80)
    assert len(largest) <= MAX_EXPERIMENTS
    assert launch_items(largest)


def stated(row: str) -> int:
    """The figure that docs/scale.md has for something, from its table of budgets."""
    page = (REPOSITORY / "docs" / "scale.md").read_text()
    (figure,) = re.findall(rf"^\| {re.escape(row)} \| ([\d,]+) \|", page, re.MULTILINE)
    return int(figure.replace(",", ""))
