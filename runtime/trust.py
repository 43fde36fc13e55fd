"""Who is let in: the certificate and token that a server makes at its start, and a worker's side of both.

Runs in both roles; knows nothing of AWS, of how a worker learns of them (rendezvous.py), or of what is then said.
"""

import hmac
import ipaddress
import os
import re
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contract.errors import TaskEnvironmentRefused

SERVER_NAME: Final = "parameter-server.lockstep"
"""The name in every server's certificate. Workers check this one, whatever address they dial."""

TOKEN_KEY: Final = "lockstep-token"  # noqa: S105 - a name
"""gRPC metadata in which a call carries the token."""

TOKEN_VARIABLE: Final = "EXPERIMENT_TOKEN"  # noqa: S105 - a name
"""The token of a server and workers that are started by hand. No field of TaskEnvironment: that one is printed."""

VALIDITY: Final = timedelta(days=2)
"""Of a certificate: longer than any experiment, too short for anything else."""

CLOCK_SKEW: Final = timedelta(hours=1)
"""By how much a worker's clock may be behind the server's."""

_TOKEN = re.compile(r"[!-~]{0,512}")
"""What gRPC carries as metadata unchanged."""


@dataclass(frozen=True, repr=False)
class Trust:
    """What a worker needs: the certificate that its server shows, and the token that it shows itself."""

    certificate_pem: str | None = None
    """None: the server speaks no TLS."""

    token: str = ""
    """Empty: the server asks for none."""

    def __repr__(self) -> str:
        return _described(self)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata that every call to the server carries."""
        return ((TOKEN_KEY, self.token),) if self.token else ()

    def grpc_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> Any:
        """A channel to the server at `address` (host:port): over TLS where it has a certificate."""
        if self.certificate_pem is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(
            address,
            grpc.ssl_channel_credentials(root_certificates=self.certificate_pem.encode()),
            options=[*options, ("grpc.ssl_target_name_override", SERVER_NAME)],
        )

    def wrap(self, connection: socket.socket) -> socket.socket:
        """A connected socket once the server has shown its certificate; `connection` itself where it has none.

        The handshake takes the socket's timeout. Raises OSError (ssl.SSLError) if it fails. Over TLS a read gives
        at most 16 KiB, one record, and the two directions must not be used by two threads at once (OpenSSL).
        """
        if self.certificate_pem is None:
            return connection
        # This protocol checks certificate and name by itself; the certificate is the only root.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.certificate_pem)
        return context.wrap_socket(connection, server_hostname=SERVER_NAME)


@dataclass(frozen=True, repr=False)
class Identity:
    """What a server shows its workers, the key to it, and the token that it asks them for."""

    trust: Trust = field(default_factory=Trust)
    private_key_pem: str | None = None

    @classmethod
    def make(cls, host: str, *, tls: bool | None = None) -> Self:
        """A new identity for a server that workers reach at `host`, with a token that nobody could guess.

        `tls`: None for a certificate unless `host` is on loopback, where nobody listens in.
        """
        token = secrets.token_urlsafe(32)
        if not (tls if tls is not None else not _is_loopback(host)):
            return cls(Trust(token=token))
        private_key_pem, certificate_pem = _self_signed(datetime.now(UTC))
        return cls(Trust(certificate_pem, token), private_key_pem)

    def __repr__(self) -> str:
        return _described(self.trust, "Identity")

    def admits(self, token: str | bytes) -> bool:
        """Whether who shows `token` is let in; takes as long whatever part of it is right."""
        return hmac.compare_digest(_encoded(token), self.trust.token.encode()) or not self.trust.token

    def add_port(self, server: Any, address: str) -> int:
        """Let the gRPC `server` listen on `address` (host:port); returns the port. Raises RuntimeError if it cannot."""
        if self.trust.certificate_pem is None or self.private_key_pem is None:
            return int(server.add_insecure_port(address))
        pair = (self.private_key_pem.encode(), self.trust.certificate_pem.encode())
        return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))

    def ssl_context(self) -> ssl.SSLContext | None:
        """For the server's end of plain sockets; None where it speaks no TLS."""
        if self.trust.certificate_pem is None or self.private_key_pem is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Nobody resumes a session; unread tickets would turn the close of a worker that only writes into a reset.
        context.num_tickets = 0
        with _in_memory(f"{self.private_key_pem}{self.trust.certificate_pem}") as path:
            context.load_cert_chain(path)
        return context


class TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc]  # gRPC has no types
    """Refuses calls without the server's token as UNAUTHENTICATED, before anything of them is read."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        shown = f"this server lets in the workers of its own experiment: the call's {TOKEN_KEY}"
        self._missing = _refusal(f"{shown} is missing")
        self._wrong = _refusal(f"{shown} is another one's")

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The call's own handler, or one that refuses it."""
        shown = dict(details.invocation_metadata).get(TOKEN_KEY, "")
        if self._identity.admits(shown):
            return continuation(details)
        return self._wrong if shown else self._missing


def token_by_hand(environ: Mapping[str, str]) -> str:
    """The token of tasks that no state machine started; may be empty. Raises TaskEnvironmentRefused."""
    token = environ.get(TOKEN_VARIABLE, "")
    if not _TOKEN.fullmatch(token):
        raise TaskEnvironmentRefused(
            [f"{TOKEN_VARIABLE}: must be at most 512 printable ASCII characters without spaces"]
        )
    return token


def _refusal(reason: str) -> Any:
    """A handler for any call; as one of streams it is called before a message is read, and reads none."""

    def refuse(_: Iterator[Any], context: Any) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _described(trust: Trust, name: str = "Trust") -> str:
    return f"{name}(tls={trust.certificate_pem is not None}, token={'hidden' if trust.token else 'none'})"


def _encoded(token: str | bytes) -> bytes:
    return token if isinstance(token, bytes) else token.encode(errors="surrogatepass")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _self_signed(now: datetime) -> tuple[str, str]:
    """A new private key and the certificate of it, both PEM. It signs no other: it is root and leaf in one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()


@contextmanager
def _in_memory(content: str) -> Iterator[str]:
    """The path of a file with `content` that never lies on a disk: ssl reads keys from files alone."""
    descriptor = os.memfd_create("identity")
    try:
        os.write(descriptor, content.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
