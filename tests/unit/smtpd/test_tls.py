"""Certificates, contexts, and what they negotiate; all in memory."""

from __future__ import annotations

import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from OpenSSL import SSL

from relayd.model import Fault
from relayd.settings import TlsSettings
from relayd.smtpd import ServerTls, self_signed, server_tls
from tests.lab.ca import LabCA, Leaf


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def leaf(ca: LabCA) -> Leaf:
    return ca.leaf()


def handshake(server: ServerTls, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's end after a handshake.

    :raises ssl.SSLError, SSL.Error: there was none.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(incoming, outgoing, server_hostname="relay.example")
    theirs = server.serverConnectionForTLS(None)  # type: ignore[arg-type]
    theirs.set_accept_state()
    for _ in range(5):
        with suppress(ssl.SSLWantReadError):
            ours.do_handshake()
        if octets := outgoing.read():
            theirs.bio_write(octets)
        with suppress(SSL.WantReadError):
            theirs.do_handshake()
        with suppress(SSL.WantReadError):
            incoming.write(theirs.bio_read(65536))
    return ours


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
