"""Why training ended early, in the words that all processes of an experiment share.

Runs on both sides; knows nothing of how the news travels.
"""

from typing import NamedTuple

from contract.errors import LockstepError, PeerLost, TrainingFailed


class VanishedPeer(PeerLost):
    """PeerLost that says which peer vanished, or gave up, first: "server" or "worker 2"."""

    def __init__(self, reason: str, peer: str, *, told: bool = False) -> None:
        super().__init__(reason)
        self.peer = peer
        self.told = told


class NotLetIn(TrainingFailed):
    """The server takes this worker for a stranger: wrongly started, or told of the server before this one."""


class Ending(NamedTuple):
    """The first reason that became known; later ones follow from it."""

    reason: str
    lost_peer: str = ""
    """Whose failure it follows from; empty where it follows from nobody else's."""
    told: bool = False
    """The server has said so itself: no other one will go on."""

    def error(self) -> LockstepError:
        """The error that ends this process."""
        if self.lost_peer:
            return VanishedPeer(self.reason, self.lost_peer, told=self.told)
        return TrainingFailed(self.reason)
