"""Measure Lockstep and its peers: `python -m bench push-pull|epoch|…|report`; `make bench` does all of it.

Runs on one machine, by hand. Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 stopped.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from bench import blocks, compression, epoch, instrumentation, memory, parts, push_pull
from bench.case import SIZES, WORKERS, RoundFailed
from bench.demands import NOT_MEASURED, UNDECIDED, Demand
from bench.registry import SYSTEMS
from bench.report import file_name, read_results, write_report
from bench.workload import WORKLOADS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
SCRATCH = ROOT / "build" / "bench"


@dataclass(frozen=True)
class _Budget:
    """How much a measurement does unless it is told."""

    rounds: int
    seconds: float
    minutes: float


BUDGETS = {
    "push-pull": (_Budget(9, 0.5, 16), _Budget(3, 0.3, 5)),
    "parts": (_Budget(0, 0, 0), _Budget(0, 0, 0)),
    "epoch": (_Budget(9, 0, 6), _Budget(3, 0, 2)),
    "instrumentation": (_Budget(160, 0, 0), _Budget(10, 0, 0)),
    "blocks": (_Budget(9, 0.3, 2), _Budget(3, 0.1, 0.5)),
    "memory": (_Budget(4, 0, 0), _Budget(2, 0, 0)),
    "compression": (_Budget(5, 0, 4), _Budget(3, 0, 0.5)),
}
"""What can be measured, in full and quick. All of it in full: about 35 minutes."""


def main(argv: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    arguments = parse(argv)
    console = Console(stderr=True, highlight=False)
    # So that what is running is stopped, as at Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    try:
        if arguments.what == "report":
            say_what_is_missing(write_report(read_results(RESULTS), ROOT), console)
            return 0
        return _measure(arguments, console)
    except RoundFailed as error:
        console.print(f"[bold red]{error}[/]")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; exits with 2 and says why where they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=[*BUDGETS, "report"], default="push-pull")
    parser.add_argument("--only", type=_some_of(SYSTEMS), help=f"push-pull: {', '.join(SYSTEMS)}")
    parser.add_argument("--sizes", type=_some_of(SIZES), help=f"parameters: {', '.join(SIZES)}")
    parser.add_argument(
        "--workers", type=_counts, help="push-pull, memory: numbers of workers, such as 1,4,16"
    )
    parser.add_argument("--workloads", type=_some_of(WORKLOADS), help=f"epoch: {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, help="at most so many rounds, pairs of laps, steps, or seeds")
    parser.add_argument("--seconds", type=float, help="push-pull, blocks: timed part of a round")
    parser.add_argument("--minutes", type=float, help="when to stop adding rounds")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: rough figures")
    parser.add_argument(
        "--output", type=Path, default=SCRATCH, help=f"folder; the page shows {RESULTS.relative_to(ROOT)}"
    )
    arguments = parser.parse_args(argv)
    if arguments.what in BUDGETS:
        _complete(arguments, BUDGETS[arguments.what][arguments.quick])
    return arguments


def _complete(arguments: argparse.Namespace, budget: _Budget) -> None:
    """Fill in what was not said."""
    quick: bool = arguments.quick
    arguments.only = arguments.only or list(SYSTEMS)
    arguments.workloads = arguments.workloads or (["digits-cnn", "cifar-cnn"] if quick else list(WORKLOADS))
    if arguments.what == "memory":
        arguments.sizes = arguments.sizes or (["1M"] if quick else list(memory.SIZES_MEASURED))
        arguments.workers = arguments.workers or ([4] if quick else [memory.WORKERS])
    arguments.sizes = arguments.sizes or list(SIZES)
    arguments.workers = arguments.workers or ([1, 4] if quick else list(WORKERS))
    arguments.rounds = arguments.rounds or budget.rounds
    arguments.seconds = arguments.seconds or budget.seconds
    arguments.minutes = arguments.minutes or budget.minutes


def _measure(arguments: argparse.Namespace, console: Console) -> int:
    """Measure and write; returns the exit code. Raises RoundFailed."""
    rounds, seconds, minutes = arguments.rounds, arguments.seconds, arguments.minutes
    failed = False
    match arguments.what:
        case "push-pull":
            plan = push_pull.Plan(
                systems=[name for name in SYSTEMS if name in arguments.only],
                sizes=[SIZES[size] for size in arguments.sizes],
                workers=arguments.workers,
                rounds=rounds,
                seconds=seconds,
                minutes=minutes,
            )
            outcome = push_pull.measure(plan, console)
            found, failed = push_pull.as_json(plan, outcome), bool(outcome.failed)
        case "parts":
            found = parts.measure(arguments.sizes, console)
        case "epoch":
            found = epoch.measure(arguments.workloads, rounds, minutes, console)
        case "instrumentation":
            found = instrumentation.measure(rounds, console)
        case "blocks":
            found = blocks.measure(arguments.sizes, rounds, seconds, minutes, console)
        case "memory":
            found = memory.measure(arguments.sizes, arguments.workers, rounds, console)
        case _:
            found = compression.measure(rounds, minutes, console)
    _write(arguments.output / file_name(arguments.what), found, console)
    return 1 if failed else 0


def say_what_is_missing(demands: Sequence[Demand], console: Console) -> None:
    """Loudly, and no more than that: a demand that is not met is a finding, not a failure of the report."""
    for demand in demands:
        if demand.met is False:
            verdict = "NOT MET"
        elif demand.measured == NOT_MEASURED:
            verdict = NOT_MEASURED.upper()
        elif demand.undecided:
            verdict = UNDECIDED.upper()
        else:
            continue
        console.print(verdict, style="bold red", end=" ")
        console.print(f"{demand.what}: {demand.demanded}; {demand.measured}", markup=False)


def _write(path: Path, found: dict[str, Any], console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(f"written: {path}")


class _some_of:  # noqa: N801 - called like the functions that argparse knows as types
    """Names separated by commas, each one of `known`."""

    def __init__(self, known: Sequence[str] | Any) -> None:
        self._known = list(known)

    def __call__(self, text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in self._known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(self._known)}")
        return names


def _counts(text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise argparse.ArgumentTypeError(f"'{text}': expected numbers of 1 or more, such as 1,4,16")
    return [int(count) for count in counts]


def _stop(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
