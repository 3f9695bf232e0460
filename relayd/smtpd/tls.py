"""The server side of TLS: contexts, and the self-signed certificate of a first start."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as File
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from relayd.auth.secret_file import keeper, write
from relayd.channel_binding import end_point_binding
from relayd.model import Fault, Reply, Tls
from relayd.settings import TlsSettings
from relayd.smtpd.client_certificates import ClientCertificates, Judgement

_VERSIONS: Final = {
    "1.0": SSL.TLS1_VERSION,
    "1.1": SSL.TLS1_1_VERSION,
    "1.2": SSL.TLS1_2_VERSION,
    "1.3": SSL.TLS1_3_VERSION,
}
# TLS 1.2: forward secrecy and AEAD alone. TLS 1.3 has nothing else, and keeps OpenSSL's own list.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
# Devices that need a minimum below 1.2 need CBC, RSA key exchange and SHA-1 signatures too; OpenSSL 3 has these at
# level 0 alone. What it offers first is still the best both can do.
_OLD_CIPHERS: Final = _CIPHERS + b":ECDHE+AES:DHE+AES:AES:!aNULL:!eNULL:!PSK:!SRP:@SECLEVEL=0"

_MODERN: Final = ("1.2", "1.3")

_OPTIONS: Final = (
    SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_IGNORE_UNEXPECTED_EOF
)
_TLS_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "TLS not available")
_VALID: Final = datetime.timedelta(days=3650)
#: A self-signed certificate with less left than this is replaced at the next start.
_TOO_OLD: Final = datetime.timedelta(days=30)
#: The self-signed pair: certificate and key in one file, so that they can only change together.
SELF_SIGNED: Final = "self-signed.pem"


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Makes the server side of TLS connections from one context.

    :param certificate: PEM: the certificate, then the chain that leads to its CA.
    :param key: PEM; may be the same file.
    :param minimum: ``1.0``, ``1.1``, ``1.2`` or ``1.3``.
    :param clients: judges the certificates that clients are then asked for; None: they are not asked.
    :ivar binding: what clients bind to (RFC 5929 4.1); empty: the certificate defines nothing.
    :raises Fault: a file is not readable, holds no certificate or no key, or the two do not belong together. Its
        detail names the file.
    """

    def __init__(
        self, certificate: File, key: File, minimum: str = "1.2", clients: ClientCertificates | None = None
    ) -> None:
        self.context = context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(_VERSIONS[minimum])
        context.set_options(_OPTIONS)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets do it
        context.set_session_id(b"relayd")
        context.set_cipher_list(_CIPHERS if minimum in _MODERN else _OLD_CIPHERS)
        _load(context, certificate, key)
        self._clients = clients
        if clients is not None:
            # A certificate is judged in a handshake that shows it, by the CRL of that moment: no session is resumed.
            context.set_options(SSL.OP_NO_TICKET)
            clients.trust(context)
            context.set_verify(SSL.VERIFY_PEER, _judge)
        self.binding = _binding(context)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        judged = self._clients.judgement() if self._clients is not None else None
        return _Accepting(self.context, self.binding, judged)


class _Accepting(SSL.Connection):
    """The server's end of one connection, with what goes with it through its handshake. (Its app data are Twisted's.)

    :ivar judged: what is found of the client's certificates; None: it is not asked for any.
    """

    def __init__(self, context: SSL.Context, binding: bytes, judged: Judgement | None) -> None:
        super().__init__(context, None)
        self.binding = binding
        self.judged = judged


def negotiated(connection: SSL.Connection) -> Tls:
    """What a handshake led to."""
    tls = Tls(connection.get_protocol_version_name(), connection.get_cipher_name() or "")
    if not isinstance(connection, _Accepting):  # made by another than ServerTls
        return tls
    tls = replace(tls, binding=connection.binding)
    return tls if connection.judged is None else connection.judged.over(connection, tls)


def _judge(connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
    """OpenSSL's word on one certificate of the chain. The handshake goes on whatever it is."""
    if isinstance(connection, _Accepting) and connection.judged is not None:
        connection.judged.note(certificate, error, depth)
    return True


def _binding(context: SSL.Context) -> bytes:
    own = SSL.Connection(context, None).get_certificate()
    return end_point_binding(own.to_cryptography()) if own is not None else b""


def _load(context: SSL.Context, certificate: File, key: File) -> None:
    for file, what, load in (
        (certificate, "certificate", context.use_certificate_chain_file),
        (key, "private key", context.use_privatekey_file),
    ):
        try:
            file.read_bytes()  # says why a file cannot be read; OpenSSL does not
            load(os.fspath(file))
        except OSError as error:
            raise _fault(f"{file}: {error.strerror or error}") from error
        except SSL.Error as error:
            if "mismatch" in str(error):
                raise _fault(f"{key}: the key does not belong to {certificate}") from error
            raise _fault(f"{file}: no usable {what}: {_first(error)}") from error


def _first(error: SSL.Error) -> str:
    """OpenSSL's own word for what went wrong first."""
    try:
        return str(error.args[0][0][2]) or "not PEM"
    except (IndexError, TypeError):
        return "not PEM"


def _fault(detail: str) -> Fault:
    return Fault(_TLS_UNAVAILABLE, detail)


def server_tls(settings: TlsSettings, directory: File, hostname: str) -> ServerTls:
    """The server side of TLS as an administrator set it up; without a certificate, with a self-signed one.

    :param directory: where the self-signed certificate is, or shall be.
    :raises Fault: see :class:`ServerTls`; or the self-signed certificate cannot be written.
    """
    if settings.certificate is not None:
        certificate, key = settings.certificate, settings.key or settings.certificate
    else:
        certificate = key = self_signed(directory, hostname)
    clients = None
    # Below 1.2 OpenSSL's security level 0 would take a client's certificate with an MD5 signature.
    if settings.client_ca is not None and settings.minimum in _MODERN:
        try:
            clients = ClientCertificates(settings.client_ca, settings.client_crl)
        except ValueError as error:
            raise _fault(str(error)) from None
    return ServerTls(certificate, key, settings.minimum, clients)


def self_signed(directory: File, hostname: str) -> File:
    """The self-signed certificate for *hostname* with its key, made if there is none that serves (mode 0600)."""
    file = directory / SELF_SIGNED
    try:
        if not _serves(file, hostname):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(file, _pair(hostname), keeper(directory))
    except OSError as error:
        raise _fault(f"{error.filename or file}: {error.strerror or error}") from error
    return file


def _serves(file: File, hostname: str) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
        return False
    soon = datetime.datetime.now(datetime.UTC) + _TOO_OLD
    return _general_name(hostname) in names and certificate.not_valid_after_utc > soon


def _pair(hostname: str) -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # RSA: old devices know nothing else
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([_general_name(hostname)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _general_name(hostname: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(hostname))
    except ValueError:
        return x509.DNSName(hostname.encode("idna").decode() if not hostname.isascii() else hostname)
