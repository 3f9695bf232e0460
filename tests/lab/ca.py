"""A certificate authority of the lab's own, and leaf certificates that it signs."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["DEFAULT_NAMES", "LabCA", "Leaf"]

DEFAULT_NAMES = ("relay.example", "localhost", "127.0.0.1", "::1")

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

    def server_context(self) -> ssl.SSLContext:
        """A TLS server context that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


class LabCA:
    """Makes a CA in `directory`; `ca.pem` there is what clients are told to trust."""

    def __init__(self, directory: Path, name: str = "relayd lab CA") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

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
    ) -> Leaf:
        """Sign a certificate for `names` (DNS names or addresses; the first is the common name).

        :param rsa_key: RSA 2048 instead of P-256, for peers that know nothing newer.
        :param days: validity from now; negative makes an expired one.
        :param client: also fit to authenticate a client (SASL EXTERNAL).
        """
        names = names or DEFAULT_NAMES
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        key = rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        start = min(datetime.datetime.now(datetime.UTC), end) - datetime.timedelta(hours=1)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        if client:
            usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False, rsa_key=rsa_key), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(authority, critical=False)
            # Nobody fetches it, but a certificate that cannot be revoked is a fault of grade HIGH to testssl.
            .add_extension(_REVOCATIONS, critical=False)
            .sign(self._key, hashes.SHA256())
        )
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
