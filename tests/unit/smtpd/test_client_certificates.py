"""Client certificates in the handshake: which are good, which are not, and what is nobody's fault but ours."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from relayd.model import Fault, Tls
from relayd.settings import TlsSettings
from relayd.smtpd import ServerTls, server_tls
from relayd.smtpd.client_certificates import ClientCertificates
from tests.lab.ca import SMART_CARD_LOGON, LabCA, Leaf, together
from tests.unit.smtpd.test_tls import Handshake

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Setting:
    """A server's certificate, a root that its clients' certificates come from, and an issuing CA below that."""

    def __init__(self, directory: Path) -> None:
        self.server_ca = LabCA(directory / "server")
        self.server = self.server_ca.leaf()
        self.root = LabCA(directory / "root", "client root")
        self.issuing = LabCA(directory / "issuing", "client issuing", issuer=self.root)
        self.good = self.root.leaf("alice", filename="good", client=True)
        self.below = self.issuing.leaf("alice", filename="below", client=True)

    def tls(self, ca: Path | None = None, crl: Path | None = None) -> ServerTls:
        return ServerTls(
            self.server.chain, self.server.key, clients=ClientCertificates(self.root.path if ca is None else ca, crl)
        )

    def judged(self, server: ServerTls, shown: Leaf | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Tls:
        """What the server knows after a handshake, which a certificate never breaks."""
        context = ssl.create_default_context(cafile=str(self.server_ca.path))
        context.minimum_version = context.maximum_version = version
        if shown is not None:
            context.load_cert_chain(shown.chain, shown.key)
        done = Handshake(server, context)
        assert done.ours.version() is not None
        done.theirs.write(b"250 on it goes\r\n")
        return done.negotiated

    def crls(self, file: Path, *lists: Path) -> Path:
        return together(file, lists)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("clients"))


def der(leaf: Leaf) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert.read_text())


def assert_good(tls: Tls, leaf: Leaf) -> None:
    assert (tls.certificate, tls.distrust, tls.undecided) == (der(leaf), "", "")
    assert tls.external


def assert_bad(tls: Tls, why: str) -> None:
    assert (tls.certificate, tls.distrust, tls.undecided) == (b"", why, "")
    assert not tls.external


def assert_undecided(tls: Tls, why: str) -> None:
    assert (tls.certificate, tls.distrust, tls.undecided) == (b"", "", why)
    assert tls.external


@pytest.mark.parametrize("version", VERSIONS)
class TestChains:
    def test_good(self, setting: Setting, version: ssl.TLSVersion) -> None:
        tls = setting.judged(setting.tls(), setting.good, version)
        assert_good(tls, setting.good)
        assert tls.binding.startswith(b"tls-server-end-point:")

    def test_good_below_an_intermediate_that_the_client_shows(self, setting: Setting, version: ssl.TLSVersion) -> None:
        assert_good(setting.judged(setting.tls(), setting.below, version), setting.below)

    def test_no_certificate(self, setting: Setting, version: ssl.TLSVersion) -> None:
        tls = setting.judged(setting.tls(), None, version)
        assert (tls.certificate, tls.distrust, tls.undecided) == (b"", "", "")

    def test_not_asked(self, setting: Setting, version: ssl.TLSVersion) -> None:
        server = ServerTls(setting.server.chain, setting.server.key)
        tls = setting.judged(server, setting.good, version)
        assert (tls.certificate, tls.distrust, tls.undecided) == (b"", "", "")

    def test_expired(self, setting: Setting, version: ssl.TLSVersion) -> None:
        leaf = setting.root.leaf("alice", filename="expired", client=True, days=-2)
        assert_bad(setting.judged(setting.tls(), leaf, version), "CN=alice: it has expired")

    def test_another_ca(self, setting: Setting, version: ssl.TLSVersion, tmp_path: Path) -> None:
        """Even of the same name."""
        leaf = LabCA(tmp_path, "client root").leaf("alice", client=True)
        tls = setting.judged(setting.tls(), leaf, version)
        assert tls.certificate == b""
        assert tls.distrust
        assert_bad(
            setting.judged(setting.tls(), setting.server_ca.leaf("mallory", filename="mallory", client=True), version),
            "CN=mallory: CN=relayd lab CA: its CA is not client_ca",
        )

    def test_self_signed(self, setting: Setting, version: ssl.TLSVersion) -> None:
        """The CA itself shows up as a client: its certificate is not for that."""
        key = setting.root.directory / "root.key"
        key.write_bytes(setting.root.key_pem)
        root = Leaf(setting.root.path, setting.root.path, key, key)
        tls = setting.judged(setting.tls(ca=setting.server_ca.path), root, version)
        assert_bad(tls, "CN=client root: it is self-signed")

    def test_a_leaf_that_signs(self, setting: Setting, version: ssl.TLSVersion, tmp_path: Path) -> None:
        """Whoever has a certificate could make others, if nobody looked."""
        forger = LabCA.of(tmp_path, setting.good)
        leaf = forger.leaf("administrator", client=True)
        tls = setting.judged(setting.tls(), leaf, version)
        assert tls.certificate == b""
        assert tls.distrust

    @pytest.mark.parametrize(
        ("name", "usages", "good"),
        [
            ("none", (), True),
            ("both", (SMART_CARD_LOGON, ExtendedKeyUsageOID.CLIENT_AUTH), True),
            ("server", (ExtendedKeyUsageOID.SERVER_AUTH,), False),
            ("smartcard", (SMART_CARD_LOGON,), False),
            ("mail", (ExtendedKeyUsageOID.EMAIL_PROTECTION,), False),
        ],
    )
    def test_usages(
        self, setting: Setting, version: ssl.TLSVersion, name: str, usages: tuple[object, ...], good: bool
    ) -> None:
        leaf = setting.root.leaf("alice", filename=f"usage-{name}", usages=usages)  # type: ignore[arg-type]
        tls = setting.judged(setting.tls(), leaf, version)
        if good:
            assert_good(tls, leaf)
        else:
            assert_bad(tls, "CN=alice: it is not for client authentication")


class TestTrust:
    def test_an_intermediate_alone_may_be_the_anchor(self, setting: Setting) -> None:
        server = setting.tls(ca=setting.issuing.path)
        assert_good(setting.judged(server, setting.below), setting.below)
        assert setting.judged(server, setting.good).distrust  # its issuer's issuer is not trusted

    def test_several_anchors(self, setting: Setting, tmp_path: Path) -> None:
        other = LabCA(tmp_path / "other", "other root")
        server = setting.tls(ca=together(tmp_path / "anchors.pem", [other.path, setting.root.path]))
        theirs = other.leaf("bob", client=True)
        assert_good(setting.judged(server, theirs), theirs)
        assert_good(setting.judged(server, setting.good), setting.good)

    def test_clients_are_told_which_cas(self, setting: Setting) -> None:
        context = ssl.create_default_context(cafile=str(setting.server_ca.path))
        done = Handshake(setting.tls(), context)
        assert [name.CN for name in done.theirs.get_client_ca_list()] == ["client root"]

    def test_wrong_names_are_short_and_printable_in_the_log(self, setting: Setting) -> None:
        leaf = setting.root.leaf("evil\r\n535 \x1b[2J", filename="evil", usages=(SMART_CARD_LOGON,), dns=False)
        distrust = setting.judged(setting.tls(), leaf).distrust
        assert distrust.isprintable()
        assert len(distrust) < 300


class TestRevocation:
    def test_not_revoked(self, setting: Setting) -> None:
        server = setting.tls(crl=setting.root.crl(filename="empty.crl"))
        assert_good(setting.judged(server, setting.good), setting.good)

    @pytest.mark.parametrize("as_der", [False, True])
    def test_revoked(self, setting: Setting, as_der: bool) -> None:
        server = setting.tls(crl=setting.root.crl(setting.good, filename=f"revoked-{as_der}.crl", der=as_der))
        assert_bad(setting.judged(server, setting.good), "CN=alice: it is revoked")

    def test_revoked_on_a_list_that_has_expired(self, setting: Setting) -> None:
        server = setting.tls(crl=setting.root.crl(setting.good, filename="old-revoked.crl", days=-1))
        assert_bad(setting.judged(server, setting.good), "CN=alice: it is revoked")

    def test_a_list_that_has_expired_is_our_fault(self, setting: Setting) -> None:
        server = setting.tls(crl=setting.root.crl(filename="expired.crl", days=-1))
        why = "CN=alice: the list of its issuer in client_crl has expired"
        assert_undecided(setting.judged(server, setting.good), why)

    def test_an_expired_list_makes_no_bad_certificate_undecided(self, setting: Setting) -> None:
        server = setting.tls(crl=setting.root.crl(filename="expired-2.crl", days=-1))
        leaf = setting.root.leaf("alice", filename="expired-2", client=True, days=-2)
        assert_bad(setting.judged(server, leaf), "CN=alice: it has expired")

    def test_no_list_of_the_intermediates(self, setting: Setting) -> None:
        server = setting.tls(crl=setting.root.crl(filename="root-alone.crl"))
        assert_undecided(setting.judged(server, setting.below), "CN=alice: client_crl has no list of its issuer")

    def test_no_list_of_the_roots(self, setting: Setting) -> None:
        server = setting.tls(crl=setting.issuing.crl(filename="issuing-alone.crl"))
        assert_undecided(
            setting.judged(server, setting.below), "CN=alice: CN=client issuing: client_crl has no list of its issuer"
        )

    def test_lists_of_both(self, setting: Setting, tmp_path: Path) -> None:
        both = [setting.root.crl(filename="r.crl"), setting.issuing.crl(filename="i.crl")]
        server = setting.tls(crl=together(tmp_path / "both.crl", both))
        assert_good(setting.judged(server, setting.below), setting.below)

    def test_an_anchor_needs_no_list(self, setting: Setting) -> None:
        server = setting.tls(ca=setting.issuing.path, crl=setting.issuing.crl(filename="anchor.crl"))
        assert_good(setting.judged(server, setting.below), setting.below)
        server = setting.tls(ca=setting.issuing.path, crl=setting.issuing.crl(setting.below, filename="anchor.crl"))
        assert_bad(setting.judged(server, setting.below), "CN=alice: it is revoked")

    def test_what_is_below_an_anchor_does(self, setting: Setting) -> None:
        server = setting.tls(ca=setting.issuing.path, crl=setting.root.crl(filename="above.crl"))
        assert setting.judged(server, setting.below).undecided

    def test_with_its_root_beside_it_an_intermediate_can_be_revoked(self, setting: Setting, tmp_path: Path) -> None:
        both = [setting.root.crl(setting.issuing, filename="r3.crl"), setting.issuing.crl(filename="i3.crl")]
        anchors = together(tmp_path / "anchors.pem", [setting.issuing.path, setting.root.path])
        server = setting.tls(ca=anchors, crl=together(tmp_path / "both.crl", both))
        assert_bad(setting.judged(server, setting.below), "CN=alice: CN=client issuing: it is revoked")

    def test_a_revoked_intermediate(self, setting: Setting, tmp_path: Path) -> None:
        both = [setting.root.crl(setting.issuing, filename="r2.crl"), setting.issuing.crl(filename="i2.crl")]
        server = setting.tls(crl=together(tmp_path / "both.crl", both))
        assert_bad(setting.judged(server, setting.below), "CN=alice: CN=client issuing: it is revoked")

    def test_a_list_by_another_of_the_same_name(self, setting: Setting, tmp_path: Path) -> None:
        forged = LabCA(tmp_path, "client root").crl(setting.good)
        tls = setting.judged(setting.tls(crl=forged), setting.good)
        assert tls.certificate == b""
        assert tls.undecided

    def test_a_certificate_among_the_lists_is_no_anchor(self, setting: Setting, tmp_path: Path) -> None:
        other = LabCA(tmp_path / "other", "other root")
        lists = [setting.root.crl(filename="a.crl"), other.crl(), other.path]
        server = setting.tls(crl=together(tmp_path / "lists.crl", lists))
        assert setting.judged(server, other.leaf("mallory", client=True)).distrust


class TestRenewal:
    """The file is replaced every night, and relayd runs on."""

    def replaced(self, file: Path, new: Path) -> None:
        os.replace(new, file)

    def test_revoked_from_now_on(self, setting: Setting) -> None:
        file = setting.root.crl(filename="nightly.crl")
        server = setting.tls(crl=file)
        assert_good(setting.judged(server, setting.good), setting.good)
        self.replaced(file, setting.root.crl(setting.good, filename="next.crl", number=2))
        assert_bad(setting.judged(server, setting.good), "CN=alice: it is revoked")

    def test_the_same_again(self, setting: Setting) -> None:
        file = setting.root.crl(filename="same.crl")
        server = setting.tls(crl=file)
        self.replaced(file, together(setting.root.directory / "copy.crl", [file]))
        assert_good(setting.judged(server, setting.good), setting.good)

    def test_expired_and_renewed(self, setting: Setting) -> None:
        file = setting.root.crl(filename="late.crl", days=-1)
        server = setting.tls(crl=file)
        assert setting.judged(server, setting.good).undecided
        self.replaced(file, setting.root.crl(filename="next.crl", number=2))
        assert_good(setting.judged(server, setting.good), setting.good)

    @pytest.mark.parametrize("broken", [b"", b"half of a li", None])
    def test_what_cannot_be_read_leaves_the_last_in_force(self, setting: Setting, broken: bytes | None) -> None:
        file = setting.root.crl(setting.good, filename="broken.crl")
        server = setting.tls(crl=file)
        if broken is None:
            file.unlink()
        else:
            file.write_bytes(broken)
        assert_bad(setting.judged(server, setting.good), "CN=alice: it is revoked")
        other = setting.root.leaf("bob", filename="bob", client=True)
        assert_good(setting.judged(server, other), other)
        self.replaced(file, setting.root.crl(setting.good, other, filename="next.crl", number=2))
        assert_bad(setting.judged(server, other), "CN=bob: it is revoked")

    def test_the_log_says_why_a_list_was_not_renewed(self, setting: Setting) -> None:
        file = setting.root.crl(filename="stale.crl", days=-1)
        server = setting.tls(crl=file)
        file.write_bytes(b"nonsense")
        assert f"{file}: no usable certificate revocation list" in setting.judged(server, setting.good).undecided

    def test_a_file_that_comes_back_is_read(self, setting: Setting, tmp_path: Path) -> None:
        file = setting.root.crl(filename="moved.crl", days=-1)
        server = setting.tls(crl=file)
        os.rename(file, tmp_path / "away")
        assert "No such file" in setting.judged(server, setting.good).undecided
        os.rename(tmp_path / "away", file)
        assert "No such file" not in setting.judged(server, setting.good).undecided


class TestResumption:
    """A certificate is judged in the handshake that shows it, so a session is not resumed where clients are asked."""

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("asked", [True, False])
    def test_resumption(self, setting: Setting, version: ssl.TLSVersion, asked: bool) -> None:
        server = setting.tls() if asked else ServerTls(setting.server.chain, setting.server.key)
        context = setting.good.client_context(setting.server_ca.path)
        context.minimum_version = context.maximum_version = version
        first = Handshake(server, context)
        first.read()
        again = Handshake(server, context, first.ours.session)
        assert again.ours.session_reused is not asked
        assert bool(again.negotiated.certificate) is asked

    def test_a_session_that_is_resumed_all_the_same_proves_nothing(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SSL, "OP_NO_TICKET", 0)
        server = setting.tls()
        bad = setting.root.leaf("alice", filename="resumed", client=True, days=-2)
        for leaf in (setting.good, bad):
            context = leaf.client_context(setting.server_ca.path)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            again = Handshake(server, context, Handshake(server, context).ours.session)
            assert again.ours.session_reused
            assert not again.negotiated.external


class TestSettings:
    def made(self, setting: Setting, **more: object) -> ServerTls:
        settings = TlsSettings(setting.server.chain, setting.server.key, **more)  # type: ignore[arg-type]
        return server_tls(settings, Path(), "")

    def test_as_an_administrator_wrote_it(self, setting: Setting) -> None:
        crl = setting.root.crl(setting.good, filename="settings.crl")
        server = self.made(setting, client_ca=setting.root.path, client_crl=crl)
        assert_bad(setting.judged(server, setting.good), "CN=alice: it is revoked")

    @pytest.mark.parametrize("minimum", ["1.0", "1.1"])
    def test_an_old_listener_asks_nobody(self, setting: Setting, minimum: str) -> None:
        """Its security level would take certificates with MD5 signatures."""
        server = self.made(setting, client_ca=setting.root.path, minimum=minimum)
        tls = setting.judged(server, setting.good)
        assert (tls.certificate, tls.distrust) == (b"", "")

    @pytest.mark.parametrize("key", ["client_ca", "client_crl"])
    @pytest.mark.parametrize("write", [None, lambda file: file.write_text("hello"), lambda file: file.write_text("")])
    def test_files_that_are_none(
        self, setting: Setting, tmp_path: Path, key: str, write: Callable[[Path], object] | None
    ) -> None:
        file = tmp_path / "file"
        if write is not None:
            write(file)
        with pytest.raises(Fault) as refused:
            self.made(setting, **{"client_ca": setting.root.path, key: file})
        assert refused.value.temporary
        assert refused.value.detail.startswith(f"{file}: ")
