"""Who takes part in an experiment, and how far each worker has come.

Pure; runs in the parameter server, under the lock of its state. Knows nothing of parameters or connections.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final


class Rejection(Exception):
    """A worker asks for what cannot be; the message says what was expected."""


class InvalidMessage(Rejection):
    """It could never be right: a wrong number, a rank that does not exist."""


class AlreadyThere(Rejection):
    """It came before: a rank that is taken."""


class TooEarly(Rejection):
    """Something else must come first."""


@dataclass(slots=True)
class Member:
    """One worker."""

    rank: int
    steps: int | None = None
    """Gradients that it will push in all; None until it is ready."""
    pushed: int = 0
    """The step that it pushes next."""
    skipped: int = 0
    """Steps before that one which it never pushed, for it was away."""
    attends: bool = False
    ready: bool = False
    """It is there, with its model and its data."""
    has_pushed: bool = False
    """Since it was ready last: the gradient before that was computed on parameters that it had just been given."""
    left: bool = False
    excused: bool = False
    """It was lost after training began, and is not back: the others go on without it."""
    tested_version: int | None = None
    """Version of the parameters that it tested last; None until it has finished."""
    tests_final: bool = False
    """It was told to test the final parameters."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"worker {self.rank}"

    @property
    def pushed_all(self) -> bool:
        """No more gradients are to come from it, although it may not have said so yet."""
        return self.pushed == self.steps

    @property
    def finished(self) -> bool:
        """It pushes no more."""
        return self.tested_version is not None

    @property
    def lost_steps(self) -> int:
        """Steps that it has not pushed, and will not, if it does not come back."""
        return self.skipped + (self.steps or 0) - self.pushed

    def is_repeat(self, step: int) -> bool:
        """The step was pushed before: the answer to it may have been lost."""
        return step < self.pushed

    def check_push(self, step: int, version: int, current_version: int) -> None:
        """Refuse a gradient that is neither this worker's next one nor a repeat. Raises Rejection."""
        if self.is_repeat(step):
            return
        if step > self.pushed or step >= (self.steps or 0):
            raise InvalidMessage(
                f"{self.name}: step {step} of {self.steps} steps; expected step {self.pushed}"
            )
        if version > current_version:
            raise InvalidMessage(
                f"{self.name}, step {step}: version {version} is not there yet;"
                f" expected at most {current_version}"
            )

    def go_on_at(self, step: int) -> None:
        """Skip what it did not push before `step`."""
        self.skipped += max(step - self.pushed, 0)
        self.pushed = max(step, self.pushed)


_FACTS: Final = ("rank", "steps", "pushed", "skipped", "excused", "tested_version", "tests_final")
"""Of a member: what outlives a server."""


class Membership:
    """The workers of one experiment, by rank."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._members: dict[int, Member] = {}

    def join(self, rank: int) -> None:
        """Enter a worker, or one that had left again. Raises Rejection.

        A worker may join again until it attends: the answer to its first attempt may have been lost.
        """
        if not 0 <= rank < self._workers:
            raise InvalidMessage(f"rank {rank}; expected 0 to {self._workers - 1}")
        present = self._members.setdefault(rank, Member(rank))
        if present.attends:
            raise AlreadyThere(f"rank {rank} is taken; expected each rank once")

    def attend(self, rank: int) -> Member:
        """A worker's connection is open. Raises Rejection if it has not joined or is there already."""
        member = self.member(rank)
        if member.attends:
            raise AlreadyThere(f"rank {rank} is taken; expected each rank once")
        member.attends, member.left = True, False
        return member

    def ready(self, rank: int, steps: int, next_step: int) -> Member:
        """A worker can train. Raises Rejection where it would not push as many gradients as all others."""
        member = self.member(rank)
        if not member.attends:
            raise TooEarly(f"rank {rank} does not attend; expected Attend first")
        if member.ready:
            raise AlreadyThere(f"rank {rank} is ready; expected Ready once")
        others = {other.steps for other in self._members.values() if other.rank != rank} - {None}
        if others - {steps}:
            raise InvalidMessage(
                f"worker {rank}: {steps} steps; expected {others.pop()}, as every other worker"
            )
        if not 0 <= next_step <= steps:
            raise InvalidMessage(f"worker {rank}: next step {next_step}; expected 0 to {steps}")
        member.steps, member.ready, member.excused = steps, True, False
        member.has_pushed = False
        member.go_on_at(next_step)
        return member

    def leave(self, rank: int) -> Member:
        """A worker's connection closed."""
        member = self.member(rank)
        member.left, member.attends, member.ready = True, False, False
        return member

    def excuse(self, rank: int) -> None:
        """Nobody waits for a worker, until it is ready again."""
        member = self.member(rank)
        member.excused, member.left = True, not member.attends

    def facts(self, undecided: Mapping[int, int]) -> list[dict[str, int | None]]:
        """How far each worker has come, as JSON values, for a server that takes this one's place.

        `undecided`: rank → the step whose gradient is held, and part of no update yet: it must come again.
        """
        facts = [{name: getattr(member, name) for name in _FACTS} for member in self]
        return [said | {"pushed": undecided.get(said["rank"], said["pushed"])} for said in facts]

    def resume(self, facts: Iterable[Mapping[str, int | None]]) -> None:
        """Begin where a server that was restarted had come to. Who had finished, or was away, need not come again."""
        for said in facts:
            member = Member(**said)  # type: ignore[arg-type]  # they are what facts() said
            member.left = member.finished or member.excused
            self._members[member.rank] = member

    def has_finished(self, rank: int) -> bool:
        """Whether this rank has finished; one that never joined has not."""
        return rank in self._members and self._members[rank].finished

    def member(self, rank: int) -> Member:
        """The worker of a rank. Raises Rejection if it has not joined."""
        if rank not in self._members:
            raise TooEarly(f"rank {rank} has not joined; expected Join first")
        return self._members[rank]

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    @property
    def absent(self) -> list[int]:
        """Ranks that are not ready yet."""
        there = {member.rank for member in self if member.ready or member.finished}
        return [rank for rank in range(self._workers) if rank not in there]

    @property
    def missing(self) -> list[int]:
        """Those of them that are waited for."""
        excused = {member.rank for member in self if member.excused}
        return [rank for rank in self.absent if rank not in excused]

    @property
    def away(self) -> list[int]:
        """Ranks that left before they had finished."""
        return [member.rank for member in self if member.left and not member.finished]

    @property
    def steps_to_come(self) -> int:
        """Gradients that all who are not lost have yet to push."""
        return sum((member.steps or 0) - member.pushed for member in self if not member.excused)

    @property
    def all_training(self) -> bool:
        """Every worker has pushed since it came, and will push again: each has a gradient under way."""
        return self.all_known and all(
            member.ready and member.has_pushed and not member.pushed_all for member in self
        )

    @property
    def all_finished(self) -> bool:
        """Some worker did all its steps, and every other one did so too or is lost."""
        return any(member.finished for member in self) and all(
            member.finished or member.left for member in self
        )

    @property
    def all_known(self) -> bool:
        """Every rank has joined, this server or one before it."""
        return len(self._members) == self._workers

    @property
    def all_left(self) -> bool:
        """Every worker that ever attended has hung up."""
        return not any(member.attends for member in self)

    @property
    def tested_versions(self) -> set[int | None]:
        """The versions that the workers tested last; None among them for one that did not."""
        return {member.tested_version for member in self}
