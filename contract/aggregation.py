"""Mode and Aggregation: how the parameter server makes updates of gradients, as a study document says it.

Pure. What each mode does stands with its policy, in the runtime.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic import Field

from contract.document import MAX_WORKERS, Document


class Mode(StrEnum):
    """How the parameter server aggregates gradients."""

    SYNC = "sync"
    """Average of all N gradients, one barrier per step."""

    ASYNC = "async"
    """Each gradient is applied on arrival."""

    BACKUP = "backup"
    """Average of the first N - b gradients of a step, from N workers of which b are backups."""

    SSP = "ssp"
    """Stale synchronous parallel: async, but the fastest worker waits for the slowest."""

    KSYNC = "ksync"
    """Average of the first K gradients of the current version; the others start over."""

    KASYNC = "kasync"
    """Average of the first K gradients, whatever their version; the others keep computing."""

    STALENESS_AWARE = "staleness-aware"
    """Async, each gradient divided by its staleness."""

    DC_ASGD = "dc-asgd"
    """Async, each gradient compensated for the change of the parameters since it was begun."""


BARRIER_MODES: Final = frozenset({Mode.SYNC, Mode.BACKUP, Mode.KSYNC})
"""Every gradient of an update was computed on the version that it changes: there is no staleness."""

ONE_SERVER_MODES: Final = frozenset({Mode.BACKUP, Mode.KSYNC, Mode.KASYNC})
"""Which gradients count is decided by one server: several would decide differently."""

DEFAULT_MODES: Final = (Mode.SYNC, Mode.ASYNC)
"""What a matrix compares that names none."""


class Aggregation(Document):
    """What a mode must be told; each key belongs to certain modes, which need it."""

    backup_workers: int | None = Field(default=None, ge=1, lt=MAX_WORKERS)
    """Mode backup: b, how many of the workers are spare: each step drops the b slowest gradients."""
    staleness_bound: int | None = Field(default=None, ge=0, le=1_000_000)
    """Mode ssp: s, how many steps a worker may start ahead of the slowest."""
    k: int | None = Field(default=None, ge=1, le=MAX_WORKERS)
    """Modes ksync and kasync: how many gradients make an update."""
    dc_lambda: float | None = Field(default=None, gt=0, le=1000)
    """Mode dc-asgd: λ, weight of the compensation."""

    def own(self, mode: Mode) -> "Aggregation":
        """Only what belongs to `mode`."""
        key = KEY_OF.get(mode)
        return Aggregation.model_validate({key: getattr(self, key)} if key else {})

    def value(self, mode: Mode) -> int | float | None:
        """What `mode` is told; None for a mode that is told nothing."""
        key = KEY_OF.get(mode)
        given: int | float | None = getattr(self, key) if key else None
        return given


KEY_OF: Final[Mapping[Mode, str]] = {
    Mode.BACKUP: "backup_workers",
    Mode.SSP: "staleness_bound",
    Mode.KSYNC: "k",
    Mode.KASYNC: "k",
    Mode.DC_ASGD: "dc_lambda",
}
"""The one key of each mode that has any."""

SYMBOL_OF: Final = {"backup_workers": "b", "staleness_bound": "s", "k": "k", "dc_lambda": "lambda"}
"""What each key is called in the names of experiments."""


def quorum(mode: Mode, aggregation: Aggregation, workers: int) -> int:
    """How many gradients make an update while all workers train: K."""
    match mode:
        case Mode.SYNC:
            return workers
        case Mode.BACKUP:
            return workers - (aggregation.backup_workers or 0)
        case Mode.KSYNC | Mode.KASYNC:
            return aggregation.k or 1
        case _:
            return 1


def variant(mode: Mode, aggregation: Aggregation) -> str:
    """The mode with what it is told, as a part of a name: ssp_s2, dc-asgd_lambda0_04, sync."""
    value = aggregation.value(mode)
    if value is None:
        return mode.value
    return f"{mode}_{SYMBOL_OF[KEY_OF[mode]]}{f'{value:g}'.replace('.', '_')}"


def keys_problems(section: object, modes: Sequence[Mode], where: str) -> list[str]:
    """Keys of a raw section that belong to none of the experiments it is for, whose modes these are."""
    if not isinstance(section, Mapping) or not modes:
        return []
    present = set(modes)
    problems = []
    for key in SYMBOL_OF:
        owners = [mode for mode, own in KEY_OF.items() if own == key]
        if section.get(key) is not None and present.isdisjoint(owners):
            problems.append(
                f"{where}.{key}: belongs to mode {' or '.join(owners)},"
                f" and here is only {', '.join(sorted(present))}; leave it out"
            )
    return problems


def missing_keys(sections: Iterable[object], mode: Mode, name: Callable[[str], str]) -> list[str]:
    """The key that `mode` needs and that none of these raw sections has; `name` says what a key is called."""
    key = KEY_OF.get(mode)
    told = any(isinstance(section, Mapping) and section.get(key) is not None for section in sections)
    return [f"{name(key)}: missing; mode {mode} needs it"] if key and not told else []


def shards_problem(mode: Mode, shards: int, name: str) -> str:
    """What is wrong with so many servers, or nothing; `name` is what the key is called."""
    if shards > 1 and mode in ONE_SERVER_MODES:
        return f"{name}: in mode {mode} one server decides which gradients count; choose 1, not {shards}"
    return ""


def workers_problem(mode: Mode, aggregation: Aggregation, workers: int, name: Callable[[str], str]) -> str:
    """What does not go with so many workers, or nothing; `name` says what a key is called."""
    value = aggregation.value(mode)
    if mode in {Mode.KSYNC, Mode.KASYNC} and value is not None and value > workers:
        return f"{name('k')}: {value} gradients cannot come from {workers} workers of mode {mode}"
    if mode is Mode.BACKUP and value is not None and value >= workers:
        return (
            f"{name('backup_workers')}: {value} of {workers} workers of mode {mode} as backups"
            " leaves none whose gradient counts"
        )
    return ""


def aggregation_conflicts(document: Mapping[str, Any]) -> list[str]:
    """Keys of a raw document's `aggregation` that no mode there takes, or that one needs and nobody gave."""
    section, experiments = document.get("aggregation"), document.get("experiments")
    if not isinstance(experiments, list):
        matrix = document.get("matrix")
        given = matrix.get("mode", DEFAULT_MODES) if isinstance(matrix, Mapping) else DEFAULT_MODES
        modes = _modes(given if isinstance(given, list | tuple) else [])
        problems = keys_problems(section, modes, "aggregation")
        for mode in modes:
            problems += missing_keys([section], mode, "aggregation.{}".format)
        return list(dict.fromkeys(problems))
    listed = [(i, entry) for i, entry in enumerate(experiments) if isinstance(entry, Mapping)]
    problems = keys_problems(section, _modes(entry.get("mode") for _, entry in listed), "aggregation")
    for i, entry in listed:
        where = f"experiments[{i}].aggregation"
        for mode in _modes([entry.get("mode")]):
            problems += keys_problems(entry.get("aggregation"), [mode], where)
            problems += missing_keys([entry.get("aggregation"), section], mode, f"{where}.{{}}".format)
    return problems


def _modes(given: Iterable[object]) -> list[Mode]:
    """The modes among raw values, each once."""
    known = {mode.value: mode for mode in Mode}
    return list(dict.fromkeys(known[value] for value in given if isinstance(value, str) and value in known))
