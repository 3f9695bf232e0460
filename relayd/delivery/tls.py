"""TLS towards next hops: one OpenSSL context for all of them, and what each handshake came to."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as File

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet._sslverify import IOpenSSLTrustRoot  # what trustRoot wants; it has no public name
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from relayd.delivery.tlsa import fault
from relayd.model import Tls, Tlsa
from relayd.settings import Delivery, OutboundTls

#: Levels at which a certificate that does not hold ends the connection.
VERIFYING = frozenset({OutboundTls.VERIFY, OutboundTls.IMPLICIT, OutboundTls.DANE})

#: Levels that this version can serve; the others stop the start (configuration) and never weaken to one of these.
SERVED = frozenset(OutboundTls) - {OutboundTls.STS}

# X509_V_ERR_* of OpenSSL's x509_vfy.h: the ones that administrators meet.
_VERIFY_ERRORS = {
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "self-signed certificate",
    19: "self-signed certificate in chain",
    20: "issuer is not known",
    21: "issuer is not known",
}


@implementer(IOpenSSLTrustRoot)
class Roots:
    """The system's CAs and those of a file: for web servers, which may be the world's or one's own.

    :raises ValueError: *ca* does not hold what it should.
    :raises OSError: it cannot be read.
    """

    def __init__(self, ca: File | None) -> None:
        self._own = _certificates(ca) if ca is not None else []

    def _addCACertsToContext(self, context: SSL.Context) -> None:
        context.set_default_verify_paths()
        store = context.get_cert_store()
        assert store is not None
        for certificate in self._own:
            store.add_cert(crypto.X509.from_cryptography(certificate))


class Untrusted(Exception):
    """The next hop's certificate does not hold for the name that was asked for. The text says why."""


class ClientTls:
    """What all TLS connections to next hops share.

    :param ca: PEM file of the CA certificates to trust; None = the system's.
    :param certificate: PEM file with the certificate (chain) to show when a next hop asks for one.
    :param key: PEM file of its private key; None = it is in *certificate*.
    :raises ValueError: a file does not hold what it should; the text names it.
    :raises OSError: a file cannot be read.
    """

    def __init__(self, ca: File | None = None, certificate: File | None = None, key: File | None = None) -> None:
        if ca is None:
            roots = platformTrust()
        else:
            roots = trustRootFromCertificates(
                [Certificate(crypto.X509.from_cryptography(trusted)) for trusted in _certificates(ca)]
            )
        self._context: SSL.Context = CertificateOptions(trustRoot=roots).getContext()
        if certificate is not None:
            self._show(_certificates(certificate), key or certificate)

    def _show(self, chain: list[x509.Certificate], key: File) -> None:
        self._context.use_certificate(chain[0])
        for issuer in chain[1:]:
            self._context.add_extra_chain_cert(issuer)
        try:
            self._context.use_privatekey(_private_key(key))
            self._context.check_privatekey()
        except SSL.Error:
            raise ValueError(f"{key}: the private key does not belong to the client certificate") from None

    @classmethod
    def of(cls, delivery: Delivery) -> ClientTls:
        return cls(delivery.ca, delivery.client_certificate, delivery.client_key)

    def handshake(self, name: str, level: OutboundTls, tlsa: tuple[Tlsa, ...] = (), also: str = "") -> Handshake:
        """One handshake with the host *name*, a DNS name or an IP address.

        :param tlsa: what the certificate is held to where *level* is DANE.
        :param also: another name that it may carry then.
        """
        if level is OutboundTls.DANE:
            return DaneHandshake(self._context, name, tlsa, also)
        return Handshake(self._context, name, must_hold=level in VERIFYING)


@implementer(IOpenSSLClientConnectionCreator)
class Handshake:
    """One TLS handshake as client: sends SNI, checks the chain, and tells afterwards what was agreed.

    The chain is checked even where nothing depends on it: whether a path *could* be verified is what an
    administrator needs to know before raising its level.
    """

    def __init__(self, context: SSL.Context, name: str, *, must_hold: bool) -> None:
        self._context = context
        self._must_hold = must_hold
        self._chain_fault = ""
        try:
            self._address = str(ip_address(name))
            self._name = ""
        except ValueError:
            self._address = ""
            self._name = name if name.isascii() else name.encode("idna").decode("ascii")

    @property
    def fault(self) -> str:
        """What is wrong with the certificate's chain, once it was seen; "" where nothing is."""
        return self._chain_fault

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._name:  # RFC 6066 3: no address literals
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        connection.set_verify(SSL.VERIFY_PEER, self._verify)
        return connection

    def _verify(self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        if not ok and not self._chain_fault:
            self._chain_fault = _VERIFY_ERRORS.get(
                error, f"certificate fails verification (error {error}, depth {depth})"
            )
        return bool(ok) or not self._must_hold

    def finished(self, connection: SSL.Connection) -> Tls:
        """What a completed handshake agreed on.

        :raises Untrusted: the certificate must hold, and does not.
        """
        why = self._chain_fault or self._name_fault(connection)
        if why and self._must_hold:
            raise Untrusted(why)
        return Tls(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name() or "",
            peer_name=self._name or self._address,
            verified=not why,
            distrust=why,
        )

    def _name_fault(self, connection: SSL.Connection) -> str:
        try:
            if self._name:
                verify_hostname(connection, self._name)
            else:
                verify_ip_address(connection, self._address)
        except (VerificationError, CertificateError):
            return f"certificate is not for {self._name or self._address}"
        except ValueError:  # a host name that no certificate can carry
            return f"{self._name!r} cannot stand in a certificate"
        return ""


class DaneHandshake(Handshake):
    """One that is held to TLSA records, whatever the CAs that are trusted say (RFC 7672 3.1).

    :param also: see :meth:`ClientTls.handshake`.
    """

    def __init__(self, context: SSL.Context, name: str, tlsa: tuple[Tlsa, ...], also: str) -> None:
        super().__init__(context, name, must_hold=False)
        self._tlsa = tlsa
        self._names = [self._name, also] if also else [self._name]

    def finished(self, connection: SSL.Connection) -> Tls:
        try:
            chain = [certificate.to_cryptography() for certificate in connection.get_peer_cert_chain() or ()]
            why = fault(self._tlsa, chain, self._names, time.time())
        except Exception as error:  # a stranger's certificate, of whatever kind: what cannot be read does not hold
            raise Untrusted(f"certificate cannot be read: {error}") from error
        if why:
            raise Untrusted(why)
        return replace(super().finished(connection), verified=True, distrust="")


def _certificates(file: File) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: holds no PEM certificates") from error


def _private_key(file: File) -> RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{file}: holds no PEM private key without a passphrase") from error
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey):
        raise ValueError(f"{file}: holds a key of a kind that TLS does not use")
    return key
