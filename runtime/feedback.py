"""What makes good for the loss of compression: feedback for gradients, replicas for parameters.

Pure; runs on both sides. Knows nothing of connections.
"""

import torch
from torch import Tensor

from runtime.compression import Codec, PayloadRefused


class ErrorFeedback:
    """What an encoding left out of a vector is added to what is sent next: in the end, all of it is sent.

    corrected = values + residual; sent = decoded(encoded(corrected)); residual = corrected - sent. Where what was sent
    does not count, residual = residual + sent - values: what it was before, but for rounding.
    Sources: Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (arXiv:1901.09847).
    """

    def __init__(self, length: int, codec: Codec) -> None:
        """Of a vector of `length` elements; `none` leaves nothing out and keeps nothing."""
        self._codec = codec
        self.residual = torch.zeros(0 if codec.name == "none" else length)

    def encode(self, block: slice, values: Tensor) -> memoryview:
        """The payload of the values (unchanged) of a block of the vector.

        What must be sent again is the same payload: encoding anew would count the first one as received.
        Values that are not finite are sent to be refused; the residual then stays what it was.
        """
        if self._codec.name == "none":
            return self._codec.encode(values)
        residual = self.residual[block]
        corrected = residual + values
        payload = self._codec.encode(corrected)
        sent = torch.empty(len(corrected))
        if _as_received(self._codec, payload, sent):
            torch.sub(corrected, sent, out=residual)
        return payload

    def take_back(self, block: slice, values: Tensor, payload: memoryview) -> None:
        """What `encode` gave last for a block did not count: what earlier values left there must come again."""
        if self._codec.name == "none":
            return
        sent = torch.empty(len(values))
        if _as_received(self._codec, payload, sent):
            self.residual[block].add_(sent).sub_(values)

    def reset(self) -> None:
        """Forget what was left out."""
        self.residual.zero_()


class Replica:
    """What the receiver of a vector holds: it is sent the difference to that, and both add what it decodes.

    Both copies stay the same, bit for bit. What an encoding left out is in the next difference by itself.
    """

    def __init__(self, held: Tensor, codec: Codec) -> None:
        """`held`: flat, fp32; changed in place, also by who knows that the receiver got something else."""
        self._codec = codec
        self.held = held

    def difference(self, block: slice, current: Tensor, scratch: Tensor) -> memoryview:
        """The payload that takes the receiver towards the current values of a block of the vector.

        It must get there. Values that are not finite are sent to be refused. `current` and `scratch`: as long as the
        block; both are overwritten.
        """
        held = self.held[block]
        payload = self._codec.encode(current.sub_(held))
        if _as_received(self._codec, payload, scratch):
            held.add_(scratch)
        return payload


def apply_difference(codec: Codec, payload: memoryview, held: Tensor, scratch: Tensor) -> None:
    """Add the difference that came to what the receiver holds of a block. Raises PayloadRefused before it does.

    `scratch`: flat, fp32, at least as long as the block; overwritten.
    """
    decoded = scratch[: len(held)]
    codec.decode(payload, decoded)
    held.add_(decoded)


def _as_received(codec: Codec, payload: memoryview, out: Tensor) -> bool:
    """Write what the receiver will decode to `out`; False if it will refuse."""
    try:
        codec.decode(payload, out)
    except PayloadRefused:
        return False
    return True
