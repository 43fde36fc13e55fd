"""What the bench replaces in the runtime for experiments on it: lengths of blocks and data sets, and what measures.

Runs in the children of a round, before they serve, connect or train: what is replaced stays so until the process ends.
The one place of the bench that depends on how the runtime is written inside.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any, Final, cast

from contract.catalogue import SAMPLES, Dataset, Samples
from runtime import blocks, data_connection, dataset, training
from runtime.accounting import Accounting
from runtime.exchange import Ready, Ticket
from runtime.frames import Stream
from runtime.membership import Membership
from runtime.state import ServerState

CLOCKED: Final = (data_connection, training)
"""Modules that read the clock for nothing but figures; the state is told its clock, and tells the blocks."""

CALLS: Final = ("update", "wait", "drop", "repeat")
"""Methods of Accounting that a push calls. The others are called once a training, or once in two seconds."""

SENDS, RECEIVES, CLOCK, ALL_TRAINING = "sends", "pieces received", "clock", "all_training"
"""Beside CALLS: what is counted."""


def set_block_length(elements: int) -> None:
    """Have vectors cut into blocks of so many elements."""
    for name in ("BLOCK_LENGTH", "WHOLE_LENGTH"):
        _replace(blocks, name, elements)


def set_synthetic_samples(count: int) -> None:
    """Have synthetic data be of so many images to learn from, and a quarter as many to test."""
    _replace(dataset, "SAMPLES", {**SAMPLES, Dataset.SYNTHETIC: Samples(count, count // 4)})


class Measuring(Enum):
    """Whether the runtime measures what it does."""

    ON = "on"
    OFF = "off"
    COUNTED = "counted"
    """On, and how often it does is counted, which takes time of its own."""


class Instrumentation:
    """The runtime's instrumentation in this process, which can be turned off and on between steps.

    Off: the clock of CLOCKED and of the server's state and blocks stands still; CALLS do nothing;
    `Membership.all_training`, which only the accounting asks, is constant. Not off: counters of bytes, and the
    addition of differences of a clock that stands still. Make one before any ServerState is made.
    """

    def __init__(self) -> None:
        self._clock: Any = SimpleNamespace(**vars(time))
        for module in CLOCKED:
            _replace(module, "time", self._clock)
        defaults = cast("dict[str, Any]", ServerState.__init__.__kwdefaults__)
        if defaults["clock"] is not time.monotonic:
            raise AssertionError("the state reads another clock than the one that is replaced")
        defaults["clock"] = self._now
        self._originals: dict[str, Any] = {name: vars(Accounting)[name] for name in CALLS}
        self._all_training = vars(Membership)["all_training"]
        self._streams = {name: vars(Stream)[name] for name in ("_send", "receive_into")}
        self._counters: dict[str, Iterator[int]] = {}

    def turn(self, measuring: Measuring) -> None:
        """Measure, or do not, from now on."""
        match measuring:
            case Measuring.ON:
                self._put(time.monotonic, self._originals, self._all_training)
            case Measuring.OFF:
                # It stands where it is: an interval that began before has no negative length.
                standing = time.monotonic()
                self._put(lambda: standing, dict.fromkeys(CALLS, _nothing), False)
            case Measuring.COUNTED:
                self._count()

    def counts(self) -> dict[str, int]:
        """How often what was done since it was turned to COUNTED."""
        # The next number of a counter is how many it has given.
        return {name: next(counter) for name, counter in self._counters.items()}

    def _now(self) -> float:
        now: float = self._clock.monotonic()
        return now

    def _put(
        self,
        clock: Callable[[], float],
        accounting: Mapping[str, Any],
        all_training: Any,
        streams: Mapping[str, Any] | None = None,
    ) -> None:
        self._clock.monotonic = clock
        for name, method in accounting.items():
            setattr(Accounting, name, method)
        setattr(Membership, "all_training", all_training)  # noqa: B010 - a property, or a constant
        for name, method in (streams or self._streams).items():
            setattr(Stream, name, method)

    def _count(self) -> None:
        self._counters = {name: itertools.count() for name in (CLOCK, *CALLS, ALL_TRAINING, SENDS, RECEIVES)}
        get_all_training = self._counted(ALL_TRAINING, self._all_training.fget)
        streams = {
            "_send": self._counted(SENDS, self._streams["_send"]),
            "receive_into": self._counted(RECEIVES, self._streams["receive_into"]),
        }
        calls = {name: self._counted(name, method) for name, method in self._originals.items()}
        self._put(self._counted(CLOCK, time.monotonic), calls, property(get_all_training), streams)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        counter = self._counters[name]

        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            next(counter)  # one step of the interpreter: threads lose none
            return call(*args, **kwargs)

        return counted


def turn_by_epoch(instrumentation: Instrumentation, plan: Sequence[Measuring], steps_per_epoch: int) -> None:
    """Have training in sync mode, on either side, turn the instrumentation at the start of each epoch of `plan`.

    An epoch's time is then measured here, since the worker's own clock may stand still.
    """
    begin, train_to = ServerState.begin, training.Training._train_to
    lock, turned = threading.Lock(), 0

    def turning_begin(self: ServerState, rank: int, step: int, version: int, ready: Ready) -> Ticket:
        nonlocal turned
        # All steps before this one are answered: nobody is in the middle of anything.
        if step // steps_per_epoch >= turned:
            with lock:
                if step // steps_per_epoch >= turned:
                    instrumentation.turn(plan[turned])
                    turned += 1
        return begin(self, rank, step, version, ready)

    def turning_train_to(self: training.Training, ends: int) -> None:
        instrumentation.turn(plan[ends // steps_per_epoch - 1])
        began = time.monotonic()
        train_to(self, ends)
        self._figures.training = time.monotonic() - began

    setattr(ServerState, "begin", turning_begin)  # noqa: B010 - mypy knows that a method is none to assign to
    setattr(training.Training, "_train_to", turning_train_to)  # noqa: B010 - as above


def _replace(module: ModuleType, name: str, value: object) -> None:
    """Raises KeyError where the module has no such name: nobody would read what is set."""
    vars(module)[name]
    vars(module)[name] = value


def _nothing(*_: object) -> None:
    """Stands in for a method that counts."""
