"""One worker's exchange with the server: gradients come in block by block, parameters leave block by block.

Runs in the parameter server; knows nothing of how connections are made, or of what becomes of a gradient.
"""

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from torch import Tensor

from runtime.compression import Codec, PayloadRefused
from runtime.exchange import Ready, Ticket
from runtime.frames import ConnectionClosed, Frame, Outgoing, Stream, WireRefused, name_of
from runtime.membership import Rejection
from runtime.parameters import count_non_finite, memory_of
from runtime.shared_memory import SharedVectors
from runtime.state import ServerState, TrainingEnded
from runtime.wire.parameter_server_pb2 import ANSWER, BLOCK, PULL, PUSH, REFUSED, Answer, Push, Refused


class Session:
    """A pair of connections of one worker, `up` from it and `down` to it, until either closes.

    Where pushes wait for each other, answers leave from a thread of their own, so that the next blocks can come
    in meanwhile. Where none ever waits, each block is answered by the thread that took it: a handover to
    another thread would take longer than applying a small gradient.
    """

    def __init__(
        self,
        state: ServerState,
        codec: Codec,
        *,
        rank: int,
        up: Stream,
        down: Stream,
        shared: SharedVectors | None = None,
    ) -> None:
        """`codec`: how blocks travel, both ways; `shared`: the worker's own vectors, where nothing needs to travel."""
        self._state = state
        self._rank = rank
        self._up = up
        self._down = down
        self._codec = codec
        self._shared = shared
        self._blocks = state.aggregator.blocks
        self._pool = state.aggregator.pool
        if codec.name != "none":
            self._payload = memoryview(bytearray(codec.max_bytes(self._blocks[0].stop)))
        self._answers: SimpleQueue[_Reply | None] = SimpleQueue()
        self._latest: _Reply | None = None
        self._down_lock = threading.Lock()
        self._retired = False

    @property
    def received_bytes(self) -> int:
        """From the worker."""
        return self._up.received_bytes + self._down.received_bytes

    @property
    def sent_bytes(self) -> int:
        """To the worker."""
        return self._up.sent_bytes + self._down.sent_bytes

    def run(self) -> None:
        """Serve the worker until it closes its connections or training ends."""
        if not self._state.answers_at_once:
            threading.Thread(target=self._answer_all, name=f"answers-{self._rank}", daemon=True).start()
        try:
            while True:
                self._serve(self._up.receive())
        except (ConnectionClosed, TrainingEnded):
            pass  # whoever attends is told why
        except (Rejection, WireRefused) as error:
            self._refuse(str(error))
            if isinstance(error, _GradientRefused):
                # After the worker was told: training that ends closes its connections.
                self._state.give_up(str(error))
        finally:
            self._answers.put(None)
            self.hang_up()

    def hang_up(self) -> None:
        """Close both connections. What the worker holds is then another session's business, if it comes back."""
        self._up.hang_up()
        self._down.hang_up()
        with self._down_lock:
            self._retired = True

    # Up.

    def _serve(self, frame: Frame) -> None:
        if self._latest is not None and self._latest.missing:
            # Answers to whoever asks on and on, and takes none, would queue up.
            raise WireRefused(f"{name_of(frame.kind)} before all of the answer before had left")
        ready: Ready = SimpleQueue()
        if frame.kind == PULL:
            self._latest = _Reply(self._state.pull(self._rank, ready), ready, len(self._blocks), whole=True)
            self._pull(self._latest)
        elif frame.kind == PUSH:
            push = self._checked(self._up.receive_message(frame, Push()))
            with self._down_lock:
                if self._retired:
                    # The answer goes to who begins last: it must not come to where nobody takes it.
                    raise ConnectionClosed("this session is over: the worker may have come again")
                ticket = self._state.begin(self._rank, push.step, push.version, ready)
            # Who pushes again may not have got the first answer: differences would start from what it lacks.
            self._latest = _Reply(ticket, ready, len(self._blocks), whole=push.attempt > 0)
            self._push(self._latest)
        else:
            raise WireRefused(f"{name_of(frame.kind)}; expected PUSH or PULL")

    def _checked(self, push: Push) -> Push:
        where = f"worker {self._rank}, step {push.step}"
        if push.compression != self._codec.name:
            raise WireRefused(f"{where}: compression is '{push.compression}'; expected {self._codec.name}")
        if push.length != self._state.length:
            raise WireRefused(
                f"{where}: {push.length} elements; expected {self._state.length}:"
                " both sides need the same model"
            )
        return push

    def _pull(self, reply: "_Reply") -> None:
        if self._state.answers_at_once:
            self._complete(reply)
        else:
            self._answers.put(reply)

    def _push(self, reply: "_Reply") -> None:
        at_once = self._state.answers_at_once
        if not at_once:
            self._answers.put(reply)
        for index, block in enumerate(self._blocks):
            gradient = self._gradient(reply.ticket, index, block)
            kept = self._state.take(reply.ticket, index, gradient, lasting=self._shared is not None)
            if not kept and self._shared is None:
                self._pool.give(gradient)
            if at_once:
                while not reply.ready.empty():
                    self._send_next(reply)
        if at_once:
            self._complete(reply)

    def _gradient(self, ticket: Ticket, index: int, block: slice) -> Tensor:
        """A block of a gradient, fit to be added."""
        try:
            if self._shared is not None:
                gradient = self._shared.gradient[block]
            else:
                gradient = self._receive_block(index, block.stop - block.start)
            if bad := count_non_finite(gradient):
                raise WireRefused(
                    f"{bad} of {gradient.numel()} values are NaN or infinite; lower the learning rate"
                )
        except (WireRefused, PayloadRefused) as error:
            raise _GradientRefused(
                f"worker {self._rank}, step {ticket.step}: gradient refused: {error}"
            ) from error
        return gradient

    def _receive_block(self, index: int, length: int) -> Tensor:
        frame = self._up.receive()
        if frame.kind != BLOCK or frame.block != index:
            raise WireRefused(f"{name_of(frame.kind)} {frame.block}; expected BLOCK {index}")
        largest = self._codec.max_bytes(length)
        if self._codec.name == "none" and frame.length != largest:
            raise WireRefused(f"block {index} of {frame.length} bytes; expected {largest}")
        if frame.length > largest:
            raise WireRefused(f"block {index} of {frame.length} bytes; expected at most {largest}")
        # Memory for the block is taken once there is something to write to it: a worker may be slow.
        if self._codec.name == "none":
            gradient = self._pool.take(length)
            self._up.receive_into(memory_of(gradient))
            return gradient
        payload = self._payload[: frame.length]
        self._up.receive_into(payload)
        gradient = self._pool.take(length)
        self._codec.decode(payload, gradient)
        return gradient

    # Down.

    def _answer_all(self) -> None:
        while (reply := self._answers.get()) is not None:
            try:
                self._complete(reply)
            except ConnectionClosed:
                return

    def _complete(self, reply: "_Reply") -> None:
        """Send what is left of a reply, as soon as it may leave; unless it goes elsewhere, or training ends."""
        while reply.missing:
            if not self._send_next(reply):
                return

    def _send_next(self, reply: "_Reply") -> bool:
        """Send the next block that may leave, and the answer with the last; False where no more will leave."""
        index = reply.ready.get()
        if index is None:
            return False
        reply.missing -= 1
        with self._down_lock:
            if self._retired:
                return False
            answer = [] if reply.missing else [Outgoing.of(ANSWER, reply.answer())]
            if self._shared is not None:
                self._read(reply, index, self._shared.parameters[self._blocks[index]])
                if answer:
                    self._down.send(*answer)
            elif self._rank in self._state.copies.held:
                self._send_to_copy(reply, index, answer)
            else:
                self._send_straight(index, answer)
        return True

    def _send_straight(self, index: int, answer: Sequence[Outgoing]) -> None:
        """Send a block of the parameters from where it is; what the worker is not ready for is copied."""
        with self._state.aggregator.reading(index) as parameters:
            rest = self._down.send_at_once(Outgoing(BLOCK, parameters, index), *answer)
            rest = [bytes(piece) for piece in rest]
        self._down.send_rest(rest)

    def _send_to_copy(self, reply: "_Reply", index: int, answer: Sequence[Outgoing]) -> None:
        """Send a block of the parameters, or of what has changed of them since the worker got them."""
        copies, block = self._state.copies, self._blocks[index]
        if self._codec.name != "none" and not reply.whole:
            read = self._state.aggregator.read
            payload = copies.difference(self._rank, index, reply.version, read)
            self._down.send(Outgoing(BLOCK, payload, index), *answer)
            return
        with self._pool.lent(block.stop - block.start) as parameters:
            self._read(reply, index, parameters)
            self._down.send(Outgoing(BLOCK, memory_of(parameters), index), *answer)

    def _read(self, reply: "_Reply", index: int, out: Tensor) -> None:
        self._state.copies.whole(self._rank, index, reply.version, self._state.aggregator.read, out)

    def _refuse(self, reason: str) -> None:
        try:
            with self._down_lock:
                self._down.send(Outgoing.of(REFUSED, Refused(reason=reason)))
        except ConnectionClosed:
            return


class _GradientRefused(WireRefused):
    """A gradient cannot be applied, and its worker will not push another in its place."""


class _Reply:
    """An answer on its way: which blocks may leave, and how many have not left."""

    def __init__(self, ticket: Ticket, ready: Ready, blocks: int, *, whole: bool) -> None:
        """`whole`: the parameters themselves leave, not what has changed of them."""
        self.ticket = ticket
        self.ready = ready
        self.missing = blocks
        self.whole = whole

    @property
    def version(self) -> int:
        """Of the parameters that leave."""
        return self.ticket.released_version

    def answer(self) -> Answer:
        """What goes with the last block."""
        answer = self.ticket.answer
        if answer is None:
            raise AssertionError("blocks leave once the worker may go on")
        return Answer(version=answer.version, waited_seconds=answer.waited_seconds, dropped=answer.dropped)
