"""How soon a vanished peer is noticed: the deadlines and gRPC options of both sides.

Every process must notice within 15 s. A killed peer's socket closes at once; a frozen or cut-off one is found by
pings. All three options are needed: without ping_timeout, a stopped process was noticed after 64 s, not 6 s. Where
only the data connections are cut off, they are made anew after 16 s.
"""

from typing import Final

from contract.limits import LAUNCH_SECONDS

HEARTBEAT_SECONDS: Final = 2.0
"""How often the server says on each Attend stream that it lives."""

SILENCE_SECONDS: Final = 10.0
"""A worker that heard nothing for so long gives the server up."""

CALL_SECONDS: Final = 30.0
"""Deadline of a call."""

NEWS_SECONDS: Final = 1.0
"""How long a worker whose call failed waits for the notice that says why."""

STUCK_SECONDS: Final = 3.0
"""How long a worker may go on computing once training has ended: a step can last longer than patience."""

JOIN_CALL_SECONDS: Final = 5.0
"""Deadline of one attempt to join."""

JOIN_RETRY_SECONDS: Final = 30.0
"""How long a worker tries to reach a server that does not listen yet."""

JOIN_SECONDS: Final = float(LAUNCH_SECONDS)
"""How long the server waits for all workers: as long as each may be on its way."""

REJOIN_SECONDS: Final = 180.0
"""How long the server of an experiment that goes on without lost workers waits when it has lost all of them.

A Fargate task that is started again has to be noticed, placed and given its image: a minute or two."""

RETURN_SECONDS: Final = 300.0
"""How long a worker waits for a server that keeps checkpoints to be started again: that may fail once, too.

And how long such a server waits for those that were there."""

LOOK_AGAIN_SECONDS: Final = 3.0
"""How long such a worker tries one address, before it asks again where the server is."""

RETURN_PAUSE_SECONDS: Final = 0.2
"""And then pauses, so as not to ask too often."""

DATA_PROBE_SECONDS: Final = 4
"""How often the kernel probes the peer of a data connection on which nothing comes."""

DATA_PROBES: Final = 3
"""After so many probes without an answer the connection is dead: 16 s after the last that came."""

LEAVE_SECONDS: Final = 3.0
"""How long a server that gave up waits for its workers to hang up."""

LAST_PULL_SECONDS: Final = 60.0
"""How long a server whose workers are done waits at least: the last one has parameters to pull, and the experiment's
own deadline may be near."""

FAREWELL_SECONDS: Final = 1.0
"""How long calls that are under way then have to end: each is being told why."""

_PING_MS = 4000
_PONG_MS = 4000

_KEEPALIVE = (
    ("grpc.keepalive_time_ms", _PING_MS),
    ("grpc.keepalive_timeout_ms", _PONG_MS),
    ("grpc.http2.ping_timeout_ms", _PONG_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


_MESSAGE_BYTES = 64 * 1024
_MESSAGE_LIMITS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
)
"""Tensors do not travel in messages: no peer can make us allocate."""


def channel_options() -> list[tuple[str, int]]:
    """Options of a worker's channel."""
    return [
        *_KEEPALIVE,
        *_MESSAGE_LIMITS,
        # Workers start before or with their server: try again soon, not after a minute.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Peers are addressed directly; a proxy in the environment is for other things.
        ("grpc.enable_http_proxy", 0),
    ]


def server_options() -> list[tuple[str, int]]:
    """Options of the server."""
    return [
        *_KEEPALIVE,
        *_MESSAGE_LIMITS,
        # Workers ping a server that may have nothing to say for long: never call that abuse.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        # A port that another server holds is an error, not a port to share.
        ("grpc.so_reuseport", 0),
    ]
