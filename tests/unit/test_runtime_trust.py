"""Certificates and tokens in real handshakes and calls on loopback: who belongs here gets in, nobody else does."""

import socket
import ssl
import string
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import TaskEnvironmentRefused
from runtime.trust import (
    SERVER_NAME,
    TOKEN_KEY,
    TOKEN_VARIABLE,
    Identity,
    TokenCheck,
    Trust,
    token_by_hand,
)

PATIENCE = 60.0
AWAY = "10.73.0.9"
"""An address that is not on loopback: its server has a certificate unless told otherwise."""
REFUSED = "this server lets in the workers of its own experiment: the call's lockstep-token is"
TOKENS = st.text(alphabet=string.ascii_letters + string.digits + "-_", min_size=8, max_size=64)


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.make(AWAY)


@pytest.fixture(scope="module")
def another() -> Identity:
    return Identity.make(AWAY)


# What is made


@pytest.mark.parametrize(
    ("host", "tls", "expected"),
    [
        ("10.73.0.9", None, True),
        ("127.0.1.4", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("parameter-server.example", None, True),
        ("10.73.0.9", False, False),
        ("127.0.1.4", True, True),
    ],
)
def test_there_is_a_certificate_unless_on_loopback_or_told(
    host: str, tls: bool | None, expected: bool
) -> None:
    made = Identity.make(host, tls=tls)
    assert (made.trust.certificate_pem is not None) is expected
    assert (made.private_key_pem is not None) is expected
    assert (made.ssl_context() is not None) is expected
    assert len(made.trust.token) >= 43  # 32 random bytes


def test_no_two_identities_share_anything(identity: Identity, another: Identity) -> None:
    assert identity.trust.token != another.trust.token
    assert identity.trust.certificate_pem != another.trust.certificate_pem
    assert identity.private_key_pem != another.private_key_pem


def test_a_certificate_is_short_lived_and_for_nothing_but_serving(identity: Identity) -> None:
    assert identity.trust.certificate_pem
    certificate = x509.load_pem_x509_certificate(identity.trust.certificate_pem.encode())
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc < now - timedelta(minutes=50)
    assert now + timedelta(hours=26) < certificate.not_valid_after_utc < now + timedelta(hours=49)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


# Secrets


@given(token=TOKENS)
def test_neither_token_nor_key_is_ever_shown(token: str) -> None:
    trust = Trust("-----BEGIN CERTIFICATE-----", token)
    identity = Identity(trust, "-----BEGIN PRIVATE KEY-----")
    for shown in (repr(trust), str(trust), f"{identity}", repr(identity), repr([identity, trust])):
        assert token not in shown
        assert "BEGIN" not in shown


@given(token=TOKENS, other=TOKENS)
def test_one_token_is_admitted_and_no_other(token: str, other: str) -> None:
    identity = Identity(Trust(token=token))
    assert identity.admits(token)
    assert identity.admits(token.encode())
    assert identity.admits(other) is (other == token)
    assert not any(identity.admits(wrong) for wrong in ("", token[:-1], f"{token}x", token.swapcase() + "!"))


@given(shown=st.text() | st.binary())
def test_whatever_is_shown_gets_an_answer(shown: str | bytes) -> None:
    assert not Identity(Trust(token="the token")).admits(shown)  # noqa: S106 - made up
    assert Identity().admits(shown), "a server without a token asks for none"


@given(token=st.text(max_size=600))
def test_a_token_by_hand_is_taken_or_refused_without_being_shown(token: str) -> None:
    good = len(token) <= 512 and all("!" <= character <= "~" for character in token)
    if good:
        assert token_by_hand({TOKEN_VARIABLE: token}) == token
        return
    with pytest.raises(TaskEnvironmentRefused) as refused:
        token_by_hand({TOKEN_VARIABLE: token})
    assert str(refused.value) == (
        "task environment refused: 1 problem\n"
        "  - EXPERIMENT_TOKEN: must be at most 512 printable ASCII characters without spaces"
    )


def test_no_token_by_hand_is_none() -> None:
    assert token_by_hand({}) == ""
    assert Trust(token=token_by_hand({})).metadata == ()


# Plain sockets


class Echo(NamedTuple):
    """A server of one connection that sends back what it is sent."""

    address: tuple[str, int]
    errors: list[OSError]
    """Why it hung up, once it has."""


@contextmanager
def echoing(context: ssl.SSLContext | None) -> Iterator[Echo]:
    errors: list[OSError] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def serve() -> None:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            try:
                with context.wrap_socket(connection, server_side=True) if context else connection as peer:
                    while data := peer.recv(65536):
                        peer.sendall(data)
            except OSError as error:
                errors.append(error)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Echo(listener.getsockname(), errors)
        finally:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def answer(trust: Trust, address: tuple[str, int], message: bytes) -> bytes:
    """What the server sends back to a worker with `trust`."""
    raw = socket.create_connection(address, timeout=PATIENCE)
    with raw, trust.wrap(raw) as connection:
        connection.sendall(message)
        received = b""
        while len(received) < len(message) and (data := connection.recv(65536)):
            received += data
        return received


@pytest.mark.parametrize("tls", [True, False])
def test_a_worker_talks_to_its_own_server(tls: bool) -> None:
    identity = Identity.make(AWAY, tls=tls)
    message = bytes(range(256)) * 1000
    with echoing(identity.ssl_context()) as server:
        assert answer(identity.trust, server.address, message) == message


def test_a_data_connection_speaks_tls_1_3(identity: Identity) -> None:
    with echoing(identity.ssl_context()) as server:
        raw = socket.create_connection(server.address, timeout=PATIENCE)
        with raw, identity.trust.wrap(raw) as connection:
            assert isinstance(connection, ssl.SSLSocket)
            assert connection.version() == "TLSv1.3"
            connection.sendall(b"x")
            connection.recv(1)
            assert connection.session is not None
            assert not connection.session.has_ticket


def test_another_servers_certificate_is_refused(identity: Identity, another: Identity) -> None:
    with (
        echoing(another.ssl_context()) as server,
        pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate"),
    ):
        answer(identity.trust, server.address, b"secret")


def test_a_certificate_for_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.trust.SERVER_NAME", "somebody.else")
    misnamed = Identity.make(AWAY)
    monkeypatch.undo()
    with (
        echoing(misnamed.ssl_context()) as server,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        answer(misnamed.trust, server.address, b"secret")


def test_an_expired_certificate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.trust.VALIDITY", timedelta(minutes=-1))
    expired = Identity.make(AWAY)
    with (
        echoing(expired.ssl_context()) as server,
        pytest.raises(ssl.SSLCertVerificationError, match="expired"),
    ):
        answer(expired.trust, server.address, b"secret")


def test_a_server_with_a_certificate_refuses_plain_bytes(identity: Identity) -> None:
    # The worker hears an alert, or the reset that follows, whichever is here first.
    with echoing(identity.ssl_context()) as server, suppress(ConnectionResetError):
        assert b"plain" not in answer(Trust(), server.address, b"plain" * 100)
    assert [type(error) for error in server.errors] == [ssl.SSLError]


def test_a_server_with_a_certificate_refuses_old_tls(identity: Identity) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(cadata=identity.trust.certificate_pem)
    with (
        echoing(identity.ssl_context()) as server,
        socket.create_connection(server.address, timeout=PATIENCE) as raw,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        old.wrap_socket(raw, server_hostname=SERVER_NAME)


def test_a_worker_with_a_certificate_does_not_talk_to_a_plain_server(identity: Identity) -> None:
    with echoing(None) as server, pytest.raises(ssl.SSLError):
        answer(identity.trust, server.address, b"secret")


def test_the_key_is_in_no_file_and_no_descriptor_stays_open(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def watched(context: ssl.SSLContext, path: str) -> None:
        opened.append(path)
        load(context, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    before = descriptors()
    assert identity.ssl_context()
    [path] = opened
    assert path.startswith("/proc/self/fd/")
    assert descriptors() == before


def descriptors() -> list[str]:
    """What this process holds in memory in place of a file."""
    held = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            held.append(str(entry.readlink()))
    return [name for name in held if "memfd:" in name]


# gRPC

UNARY, PUSHING, PULLING, BOTH = "/test/Unary", "/test/Pushing", "/test/Pulling", "/test/Both"
MESSAGE = b"gradient" * 2**17
"""1 MiB."""


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC has no types
    """One method of each kind; counts what reaches them."""

    def __init__(self) -> None:
        self.calls = 0

    def service(self, details: Any) -> Any:
        return {
            UNARY: grpc.unary_unary_rpc_method_handler(lambda message, _: self._counted(message)),
            PUSHING: grpc.stream_unary_rpc_method_handler(lambda messages, _: self._counted(*messages)),
            PULLING: grpc.unary_stream_rpc_method_handler(lambda message, _: iter([self._counted(message)])),
            BOTH: grpc.stream_stream_rpc_method_handler(lambda messages, _: map(self._counted, messages)),
        }.get(details.method)

    def _counted(self, *messages: bytes) -> bytes:
        self.calls += 1
        return messages[-1]


@contextmanager
def serving(identity: Identity) -> Iterator[tuple[str, Handlers]]:
    handlers = Handlers()
    server = grpc.server(
        ThreadPoolExecutor(4), interceptors=[TokenCheck(identity)], handlers=[handlers], options=OPTIONS
    )
    port = identity.add_port(server, "127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", handlers
    finally:
        server.stop(0).wait(PATIENCE)


LIMIT = 2 * len(MESSAGE)
OPTIONS = [("grpc.max_receive_message_length", LIMIT), ("grpc.so_reuseport", 0)]

CALLS: dict[str, Callable[[Any, Any], bytes]] = {
    "unary": lambda channel, metadata: channel.unary_unary(UNARY)(
        MESSAGE, metadata=metadata, timeout=PATIENCE
    ),
    "pushing": lambda channel, metadata: channel.stream_unary(PUSHING)(
        iter([MESSAGE] * 3), metadata=metadata, timeout=PATIENCE
    ),
    "pulling": lambda channel, metadata: next(
        channel.unary_stream(PULLING)(MESSAGE, metadata=metadata, timeout=PATIENCE)
    ),
    "both": lambda channel, metadata: next(
        channel.stream_stream(BOTH)(iter([MESSAGE]), metadata=metadata, timeout=PATIENCE)
    ),
}


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_calls_with_the_token_are_answered(call: str, tls: bool) -> None:
    identity = Identity.make(AWAY, tls=tls)
    with (
        serving(identity) as (address, handlers),
        identity.trust.grpc_channel(address, OPTIONS) as channel,
    ):
        assert CALLS[call](channel, identity.trust.metadata) == MESSAGE
        assert handlers.calls == 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("metadata", "reason"),
    [(None, f"{REFUSED} missing"), (((TOKEN_KEY, "guessed"),), f"{REFUSED} another one's")],
    ids=["none", "wrong"],
)
def test_calls_without_it_are_refused_and_say_why(call: str, metadata: Any, reason: str) -> None:
    identity = Identity.make(AWAY)
    with (
        serving(identity) as (address, handlers),
        identity.trust.grpc_channel(address, OPTIONS) as channel,
    ):
        with pytest.raises(grpc.RpcError) as refused:
            CALLS[call](channel, metadata)
        assert (refused.value.code(), refused.value.details()) == (
            grpc.StatusCode.UNAUTHENTICATED,
            reason,
        )
        assert identity.trust.token not in repr(refused.value)
        assert handlers.calls == 0
        assert CALLS["unary"](channel, identity.trust.metadata) == MESSAGE, "the next worker is served"


def test_nothing_of_a_refused_call_is_read(identity: Identity) -> None:
    """What would be too long from a worker is not even that from a stranger."""
    with (
        serving(identity) as (address, _),
        identity.trust.grpc_channel(address, OPTIONS) as channel,
    ):
        codes = {}
        for metadata in (identity.trust.metadata, None):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(UNARY)(bytes(LIMIT + 1), metadata=metadata, timeout=PATIENCE)
            codes[metadata] = refused.value.code()
        assert codes == {
            identity.trust.metadata: grpc.StatusCode.RESOURCE_EXHAUSTED,
            None: grpc.StatusCode.UNAUTHENTICATED,
        }


def test_a_server_without_a_token_asks_for_none() -> None:
    with serving(Identity()) as (address, _), Trust().grpc_channel(address, OPTIONS) as channel:
        assert CALLS["unary"](channel, None) == MESSAGE


def test_a_channel_trusts_one_certificate_alone(identity: Identity, another: Identity) -> None:
    with serving(another) as (address, handlers):
        for trust in (identity.trust, Trust(token=another.trust.token)):
            with (
                trust.grpc_channel(address, OPTIONS) as channel,
                pytest.raises(grpc.RpcError) as refused,
            ):
                CALLS["unary"](channel, another.trust.metadata)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert handlers.calls == 0


def test_a_taken_port_is_an_error_with_and_without_tls(identity: Identity) -> None:
    with serving(identity) as (address, _):
        for same in (identity, Identity()):
            server = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
            with pytest.raises(RuntimeError):
                same.add_port(server, address)
