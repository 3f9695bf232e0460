"""Certificate authorities of the lab's own, the leaf certificates that they sign, and those they revoke."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["DEFAULT_NAMES", "SMART_CARD_LOGON", "LabCA", "Leaf", "together"]

DEFAULT_NAMES = ("relay.example", "localhost", "127.0.0.1", "::1")

SMART_CARD_LOGON = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")
"""An extended key usage of Active Directory's."""
_UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_SECURITY = x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2")  # [MS-WCCE] 2.2.2.7.7.4

_REVOCATIONS = x509.CRLDistributionPoints(
    [x509.DistributionPoint([x509.UniformResourceIdentifier("http://ca.lab.example/lab.crl")], None, None, None)]
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate and its key, as PEM files.

    :ivar cert: the leaf alone; `chain` is the leaf with the CA behind it (what a server usually sends).
    :ivar key: unencrypted PKCS #8, mode 0600.
    :ivar bundle: key and chain in one file.
    """

    cert: Path
    chain: Path
    key: Path
    bundle: Path

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert.read_bytes())

    def client_context(self, ca: Path) -> ssl.SSLContext:
        """A TLS client context that shows this certificate, and trusts `ca`."""
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(self.chain, self.key)
        return context

    def server_context(self) -> ssl.SSLContext:
        """A TLS server context that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


class LabCA:
    """Makes a CA in `directory`; `ca.pem` there is what clients are told to trust.

    :param name: its common name, or its whole name.
    :param issuer: the CA that signs this one's certificate; none: itself, it is a root.
    """

    def __init__(self, directory: Path, name: str | x509.Name = "relayd lab CA", *, issuer: Self | None = None) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        if isinstance(name, str):
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._name = name
        signer = self if issuer is None else issuer
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(signer._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1 if issuer is None else 0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer._key.public_key()), critical=False)
            .sign(signer._key, hashes.SHA256())
        )
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    @classmethod
    def of(cls, directory: Path, leaf: Leaf) -> Self:
        """Somebody with the certificate and key of `leaf` who signs certificates all the same."""
        forger = cls(directory)
        key = serialization.load_pem_private_key(leaf.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        forger._key, forger._certificate = key, leaf.certificate
        forger._name = forger._certificate.subject
        forger.path.write_bytes(leaf.chain.read_bytes())
        return forger

    @property
    def key_pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def client_context(self) -> ssl.SSLContext:
        """A TLS client context that trusts this CA alone."""
        return ssl.create_default_context(cafile=str(self.path))

    def leaf(
        self,
        *names: str,
        filename: str = "leaf",
        rsa_key: bool = False,
        days: int = 90,
        client: bool = False,
        usages: Sequence[x509.ObjectIdentifier] | None = None,
        dns: bool = True,
        sid: str = "",
        upn: str = "",
    ) -> Leaf:
        """Sign a certificate for `names` (DNS names or addresses; the first is the common name).

        :param rsa_key: RSA 2048 instead of P-256, for peers that know nothing newer.
        :param days: validity from now; negative makes an expired one.
        :param client: also fit to authenticate a client (SASL EXTERNAL).
        :param usages: the extended key usages in place of these; none: the certificate has no such extension.
        :param dns: `names` are more than the common name.
        :param sid: of an account, in the extension that AD CS writes.
        :param upn: of an account, as a further name.
        """
        names = names or DEFAULT_NAMES
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        key = rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        start = min(datetime.datetime.now(datetime.UTC), end) - datetime.timedelta(hours=1)
        if usages is None:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])]
        alternatives = [_general_name(name) for name in names] if dns else []
        if upn:
            alternatives.append(x509.OtherName(_UPN, _der(0x0C, upn.encode())))  # UTF8String
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False, rsa_key=rsa_key), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(authority, critical=False)
            # Nobody fetches it, but a certificate that cannot be revoked is a fault of grade HIGH to testssl.
            .add_extension(_REVOCATIONS, critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if sid:
            builder = builder.add_extension(x509.UnrecognizedExtension(_SECURITY, _security(sid)), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = Leaf(*(self.directory / f"{filename}{end}" for end in (".pem", "-chain.pem", ".key", "-all.pem")))
        made.cert.write_bytes(pem)
        made.chain.write_bytes(pem + self.path.read_bytes())
        for path, content in ((made.key, secret), (made.bundle, secret + pem + self.path.read_bytes())):
            path.touch(mode=0o600)
            path.write_bytes(content)
        return made

    def crl(
        self, *revoked: Leaf | Self, filename: str = "lab.crl", days: float = 7, number: int = 1, der: bool = False
    ) -> Path:
        """Sign a list of the certificates that are revoked, of leaves or of CAs below this one.

        :param days: till the next one is due; negative makes an expired one.
        :param number: later lists have greater ones.
        """
        now = datetime.datetime.now(datetime.UTC)
        end = now + datetime.timedelta(days=days)
        start = min(now, end) - datetime.timedelta(hours=1) + datetime.timedelta(minutes=number)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(start)
            .next_update(end)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for one in revoked:
            certificate = one.certificate if isinstance(one, Leaf) else one._certificate
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(start)
            builder = builder.add_revoked_certificate(entry.build())
        signed = builder.sign(self._key, hashes.SHA256())
        file = self.directory / filename
        file.write_bytes(signed.public_bytes(serialization.Encoding.DER if der else serialization.Encoding.PEM))
        return file


def together(file: Path, parts: Iterable[Path]) -> Path:
    """`file` with the PEM of all `parts`."""
    file.write_bytes(b"".join(part.read_bytes() for part in parts))
    return file


def _der(tag: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes((tag, len(content))) + content


def _security(sid: str) -> bytes:
    """The extension in which AD CS says whose certificate it is: GeneralNames with one otherName."""
    kind = _der(0x06, bytes((0x2B, 6, 1, 4, 1, 0x82, 0x37, 25, 2, 1)))  # 1.3.6.1.4.1.311.25.2.1
    return _der(0x30, _der(0xA0, kind + _der(0xA0, _der(0x04, sid.encode()))))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(signs_certificates: bool, rsa_key: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=rsa_key,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
