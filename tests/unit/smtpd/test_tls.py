"""Certificates, contexts, and what they negotiate; all in memory."""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from relayd.channel_binding import end_point_binding
from relayd.model import Fault, Tls
from relayd.settings import TlsSettings
from relayd.smtpd import ServerTls, self_signed, server_tls
from relayd.smtpd.tls import negotiated
from tests.lab.ca import LabCA, Leaf


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def leaf(ca: LabCA) -> Leaf:
    return ca.leaf()


class Handshake:
    """Both ends after a handshake in memory.

    :param session: offered for resumption.
    :raises ssl.SSLError, SSL.Error: there was none.
    """

    def __init__(self, server: ServerTls, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ours = client.wrap_bio(incoming, outgoing, server_hostname="relay.example", session=session)
        self.theirs = server.serverConnectionForTLS(None)  # type: ignore[arg-type]
        self.theirs.set_accept_state()
        self._incoming = incoming
        for _ in range(5):
            with suppress(ssl.SSLWantReadError):
                self.ours.do_handshake()
            if octets := outgoing.read():
                self.theirs.bio_write(octets)
            with suppress(SSL.WantReadError):
                self.theirs.do_handshake()
            with suppress(SSL.WantReadError):
                incoming.write(self.theirs.bio_read(65536))

    def read(self) -> bytes:
        """The client's end reads what the server's end wrote, and the session tickets before that."""
        self.theirs.write(b"220 hello")
        self._incoming.write(self.theirs.bio_read(65536))
        return self.ours.read()

    @property
    def negotiated(self) -> Tls:
        return negotiated(self.theirs)


def handshake(server: ServerTls, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's end after a handshake."""
    return Handshake(server, client).ours


def self_signed_by(key: Any, algorithm: Any) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay.example")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1))
    return builder.sign(key, algorithm)


def client(maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED, ciphers: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = maximum
    if ciphers:
        context.set_ciphers(ciphers)
    return context


class TestSelfSigned:
    def test_is_made_once(self, tmp_path: Path) -> None:
        file = self_signed(tmp_path / "tls", "relay.example")
        before = file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert os.listdir(file.parent) == [file.name]
        assert self_signed(tmp_path / "tls", "relay.example").read_bytes() == before

    def test_names_the_host(self, tmp_path: Path) -> None:
        certificate = x509.load_pem_x509_certificate(self_signed(tmp_path, "relay.example").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["relay.example"]

    @pytest.mark.parametrize("hostname", ["other.example", "192.0.2.1", "bücher.example", "x" * 63 + "." + "y" * 63])
    def test_is_made_anew_for_another_name(self, tmp_path: Path, hostname: str) -> None:
        before = self_signed(tmp_path, "relay.example").read_bytes()
        file = self_signed(tmp_path, hostname)
        assert file.read_bytes() != before
        ServerTls(file, file)

    def test_is_made_anew_when_it_is_broken(self, tmp_path: Path) -> None:
        file = self_signed(tmp_path, "relay.example")
        file.write_bytes(file.read_bytes()[:100])
        ServerTls(self_signed(tmp_path, "relay.example"), file)

    def test_a_client_can_trust_it(self, tmp_path: Path) -> None:
        file = self_signed(tmp_path, "relay.example")
        context = ssl.create_default_context(cafile=os.fspath(file))
        assert handshake(ServerTls(file, file), context).version() == "TLSv1.3"

    def test_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "tls").write_text("a file")
        with pytest.raises(Fault) as refused:
            self_signed(tmp_path / "tls", "relay.example")
        assert str(tmp_path / "tls") in refused.value.detail


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
class TestNegotiation:
    def test_the_chain_is_sent(self, ca: LabCA, leaf: Leaf) -> None:
        context = ssl.create_default_context(cafile=os.fspath(ca.path))
        assert handshake(server_tls(TlsSettings(leaf.chain, leaf.key), Path(), ""), context).version() == "TLSv1.3"

    def test_one_file_may_hold_both(self, leaf: Leaf) -> None:
        assert handshake(server_tls(TlsSettings(leaf.bundle), Path(), ""), client()).version() == "TLSv1.3"

    def test_tls_1_2_has_forward_secrecy_and_aead_alone(self, leaf: Leaf) -> None:
        server = ServerTls(leaf.chain, leaf.key)
        cipher = handshake(server, client(ssl.TLSVersion.TLSv1_2)).cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE-")
        for ciphers in ("AES128-GCM-SHA256", "ECDHE+AES+SHA1:ECDHE+AES+SHA256:!AESGCM:!CHACHA20", "DHE"):
            with pytest.raises((ssl.SSLError, SSL.Error)):
                handshake(server, client(ssl.TLSVersion.TLSv1_2, ciphers))

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
    def test_old_versions_only_where_asked_for(self, leaf: Leaf, version: ssl.TLSVersion) -> None:
        old = client(version, "ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, SSL.Error)):
            handshake(ServerTls(leaf.chain, leaf.key, "1.2"), old)
        assert handshake(ServerTls(leaf.chain, leaf.key, "1.0"), old).version() in ("TLSv1", "TLSv1.1")

    def test_a_modern_client_gets_the_best_of_an_old_listener(self, leaf: Leaf) -> None:
        server = ServerTls(leaf.chain, leaf.key, "1.0")
        assert handshake(server, client()).version() == "TLSv1.3"
        cipher = handshake(server, client(ssl.TLSVersion.TLSv1_2, "AES128-SHA:ECDHE+AESGCM")).cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE-")

    def test_1_1_is_the_least(self, leaf: Leaf) -> None:
        server = ServerTls(leaf.chain, leaf.key, "1.1")
        with pytest.raises((ssl.SSLError, SSL.Error)):
            handshake(server, client(ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"))

    def test_1_3_is_the_least(self, leaf: Leaf) -> None:
        with pytest.raises((ssl.SSLError, SSL.Error)):
            handshake(ServerTls(leaf.chain, leaf.key, "1.3"), client(ssl.TLSVersion.TLSv1_2))


class TestChannelBinding:
    """RFC 5929 4.1."""

    def test_every_handshake_has_it(self, ca: LabCA, leaf: Leaf, tmp_path: Path) -> None:
        for chain, key in ((leaf.chain, leaf.key), (self_signed(tmp_path, "relay.example"),) * 2):
            own = x509.load_pem_x509_certificate(chain.read_bytes())
            wanted = b"tls-server-end-point:" + own.fingerprint(hashes.SHA256())
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                assert Handshake(ServerTls(chain, key), client(version)).negotiated.binding == wanted

    @pytest.mark.parametrize("signed", [hashes.MD5(), hashes.SHA1(), hashes.SHA256(), hashes.SHA384()])
    def test_weak_hashes_become_sha_256(self, signed: hashes.HashAlgorithm) -> None:
        class Certificate:
            signature_hash_algorithm = signed

            def fingerprint(self, algorithm: hashes.HashAlgorithm) -> bytes:
                return algorithm.name.encode()

        wanted = b"sha384" if signed.name == "sha384" else b"sha256"
        assert end_point_binding(Certificate()) == b"tls-server-end-point:" + wanted  # type: ignore[arg-type]

    def test_the_hash_is_the_signatures(self) -> None:
        certificate = self_signed_by(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384())
        hashed = hashlib.sha384(certificate.public_bytes(Encoding.DER)).digest()
        assert end_point_binding(certificate) == b"tls-server-end-point:" + hashed

    def test_is_undefined_without_a_hash(self) -> None:
        assert end_point_binding(self_signed_by(ed25519.Ed25519PrivateKey.generate(), None)) == b""


class TestBadPairs:
    def refused(self, certificate: Path, key: Path) -> str:
        with pytest.raises(Fault) as refused:
            ServerTls(certificate, key)
        assert refused.value.temporary
        return refused.value.detail

    def test_another_key(self, ca: LabCA, leaf: Leaf) -> None:
        other = ca.leaf(filename="other")
        assert self.refused(leaf.chain, other.key) == f"{other.key}: the key does not belong to {leaf.chain}"

    def test_not_there(self, leaf: Leaf, tmp_path: Path) -> None:
        assert self.refused(tmp_path / "no.pem", leaf.key) == f"{tmp_path}/no.pem: No such file or directory"
        assert self.refused(leaf.chain, tmp_path / "no.key") == f"{tmp_path}/no.key: No such file or directory"

    def test_not_pem(self, leaf: Leaf, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("hello")
        assert self.refused(tmp_path / "x", leaf.key).startswith(f"{tmp_path}/x: no usable certificate: ")
        assert self.refused(leaf.chain, tmp_path / "x").startswith(f"{tmp_path}/x: no usable private key: ")

    def test_the_wrong_way_round(self, leaf: Leaf) -> None:
        assert "no usable certificate" in self.refused(leaf.key, leaf.chain)
