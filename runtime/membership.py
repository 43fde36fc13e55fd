"""Who takes part in an experiment, and how far each worker has come.

Pure; runs in the parameter server, under the lock of its state. Knows nothing of parameters or connections.
"""

from dataclasses import dataclass


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
    steps: int
    """Gradients that it will push in all."""
    pushed: int = 0
    attends: bool = False
    left: bool = False
    tested_version: int | None = None
    """Version of the parameters that it tested last; None until it has finished."""

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

    def is_repeat(self, step: int) -> bool:
        """The step was pushed before: the answer to it may have been lost."""
        return step < self.pushed

    def check_push(self, step: int, version: int, current_version: int) -> None:
        """Refuse a gradient that is neither this worker's next one nor a repeat. Raises Rejection."""
        if self.is_repeat(step):
            return
        if step > self.pushed or step >= self.steps:
            raise InvalidMessage(
                f"{self.name}: step {step} of {self.steps} steps; expected step {self.pushed}"
            )
        if version > current_version:
            raise InvalidMessage(
                f"{self.name}, step {step}: version {version} is not there yet;"
                f" expected at most {current_version}"
            )


class Membership:
    """The workers of one experiment, by rank."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._members: dict[int, Member] = {}

    def join(self, rank: int, steps: int) -> None:
        """Enter a worker. Raises Rejection.

        A worker may join again until it attends: the answer to its first attempt may have been lost.
        """
        if not 0 <= rank < self._workers:
            raise InvalidMessage(f"rank {rank}; expected 0 to {self._workers - 1}")
        present = self._members.get(rank)
        if present is not None and present.attends:
            raise AlreadyThere(f"rank {rank} is taken; expected each rank once")
        others = {member.steps for member in self._members.values() if member.rank != rank}
        if others - {steps}:
            raise InvalidMessage(
                f"worker {rank}: {steps} steps; expected {others.pop()}, as every other worker"
            )
        self._members[rank] = Member(rank, steps)

    def attend(self, rank: int) -> None:
        """A worker's connection is open. Raises Rejection if it has not joined or is there already."""
        member = self.member(rank)
        if member.attends:
            raise AlreadyThere(f"rank {rank} is taken; expected each rank once")
        member.attends = True

    def member(self, rank: int) -> Member:
        """The worker of a rank. Raises Rejection if it has not joined."""
        if rank not in self._members:
            raise TooEarly(f"rank {rank} has not joined; expected Join first")
        return self._members[rank]

    @property
    def missing(self) -> list[int]:
        """Ranks that do not attend yet."""
        return [r for r in range(self._workers) if r not in self._members or not self._members[r].attends]

    @property
    def total_steps(self) -> int:
        """Gradients that all workers together will push."""
        return sum(member.steps for member in self._members.values())

    @property
    def all_training(self) -> bool:
        """Every worker has pushed a gradient and will push another: each has one under way."""
        return len(self._members) == self._workers and all(
            0 < member.pushed < member.steps for member in self._members.values()
        )

    @property
    def all_finished(self) -> bool:
        """Every worker did all its steps."""
        return len(self._members) == self._workers and all(m.finished for m in self._members.values())

    @property
    def all_left(self) -> bool:
        """Every worker that ever attended has hung up."""
        return all(m.left for m in self._members.values() if m.attends)

    @property
    def tested_versions(self) -> set[int | None]:
        """The versions that the workers tested last."""
        return {member.tested_version for member in self._members.values()}
