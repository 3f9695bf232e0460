"""AUTH EXTERNAL against a real Active Directory: which account a client certificate is, and whether it may come in."""

from __future__ import annotations

import contextlib
import os
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred

from relayd import settings
from relayd.auth.certificate import CertificateChecker, strong_mappings
from relayd.auth.credentials import ClientCertificate
from relayd.directory import Directory
from relayd.directory.entries import sid_text
from relayd.events import Events
from relayd.model import Client, Peer, Principal, Tls
from tests.directory.relays import joined
from tests.directory.test_passwords import running
from tests.lab import clients, domain
from tests.lab.ca import SMART_CARD_LOGON, LabCA, Leaf
from tests.lab.directory import DirectoryLab
from tests.lab.relay import Relay
from tests.unit.directory.conftest import FakeDns, fired
from tests.unit.test_resolver import ThreadedClock

CA_NAME = x509.Name(
    [
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "example"),
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "lab"),
        x509.NameAttribute(NameOID.COMMON_NAME, "Lab Client CA"),
    ]
)
DELETED = "S-1-5-21-1-2-3-4711"


@pytest.fixture(scope="module")
def mapped() -> Iterator[DirectoryLab]:
    """A domain whose accounts may be given mappings."""
    with DirectoryLab() as running:
        yield running


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("clients"), CA_NAME)


def sid_of(lab: DirectoryLab, name: str) -> str:
    (sid,) = lab.attributes(name, "objectSid")["objectSid"]
    return sid_text(sid)


Login = Callable[..., Principal]


@pytest.fixture
def login(mapped: DirectoryLab) -> Iterator[Login]:
    """Has the checker judge a verified certificate by the lab's directory, as it is now."""
    clock, dns = ThreadedClock(), FakeDns()
    dns.known[mapped.host] = (ip_address(mapped.address),)
    directory = Directory(
        settings.Directory(
            domain=mapped.domain,
            servers=(f"ldaps://{mapped.host}",),
            ca=mapped.ca,
            bind_user=f"svc-search@{mapped.domain}",
            bind_password_file=mapped.directory / "svc-search.secret",
            timeout=10.0,
            cache=0.0,
        ),
        dns,
        clock,
        Events(),
    )

    async def ask(checker: CertificateChecker, credentials: ClientCertificate) -> Principal:
        return await checker.requestAvatarId(credentials)

    def judged(leaf: Leaf, authorise: str = "", client_map: str = "sid") -> Principal:
        tls = Tls("TLSv1.3", "", certificate=leaf.certificate.public_bytes(Encoding.DER))
        client = Client(Peer(ip_address("127.0.0.1")), "smtp", tls=tls)
        checker = CertificateChecker(directory, client_map, lambda listener: "")
        return clock.result(ask(checker, ClientCertificate(authorise, client)), timeout=30)

    yield judged
    ended: Deferred[list[None]] = directory.close()
    clock.result(fired(ended), timeout=30)


def refusal(login: Login, *arguments: object, **more: object) -> str:
    with pytest.raises(UnauthorizedLogin) as refused:
        login(*arguments, **more)
    return str(refused.value)


#: account -> why it is refused
STATES = [
    ("alice", ""),
    ("disabled", "account disabled"),
    ("expired", "account expired"),
    ("locked", "account locked"),
    ("mustchange", ""),
    ("lapsed", ""),
    ("nights", "not at this time of day"),
    (domain.COMPUTER, ""),
]


class TestSid:
    @pytest.mark.parametrize(("name", "why"), STATES)
    def test_each_state(self, mapped: DirectoryLab, ca: LabCA, login: Login, name: str, why: str) -> None:
        leaf = ca.leaf("somebody", client=True, sid=sid_of(mapped, name))
        before = mapped.bad_password_count(name)
        if why:
            assert refusal(login, leaf) == f"{why}: {name} of CN=somebody"
        else:
            principal = login(leaf)
            assert (principal.name, principal.source, principal.mechanism) == (name, "certificate", "EXTERNAL")
            assert principal.sid == sid_of(mapped, name)
        assert mapped.bad_password_count(name) == before

    def test_groups_and_addresses_come_from_the_directory(self, mapped: DirectoryLab, ca: LabCA, login: Login) -> None:
        principal = login(ca.leaf("somebody", client=True, sid=sid_of(mapped, "alice")))
        assert {"LAB\\Relay Users", mapped.dn("Relay Users"), sid_of(mapped, "Relay Users")} <= principal.groups
        assert "alice.liddell@lab.example" in principal.addresses

    def test_of_a_deleted_account(self, mapped: DirectoryLab, ca: LabCA, login: Login) -> None:
        dn = f"CN=leaver,CN=Users,{mapped.base_dn}"
        mapped.administrator().add(dn, attributes={"objectClass": "user", "sAMAccountName": "leaver"})
        leaf = ca.leaf("leaver", client=True, sid=sid_of(mapped, "leaver"), upn="alice@lab.example")
        assert refusal(login, leaf) == "account disabled: leaver of CN=leaver"  # as it is made
        mapped.administrator().delete(dn)
        assert refusal(login, leaf) == "no account for CN=leaver by sid"

    @pytest.mark.parametrize("who", ["Relay Users", "nobody"])
    def test_of_no_account(self, mapped: DirectoryLab, ca: LabCA, login: Login, who: str) -> None:
        sid = DELETED if who == "nobody" else sid_of(mapped, who)
        assert refusal(login, ca.leaf("x", client=True, sid=sid)) == "no account for CN=x by sid"

    @pytest.mark.parametrize("own", ["alice", "LAB\\alice", "alice@lab.example", "ALICE"])
    def test_acts_for_itself(self, mapped: DirectoryLab, ca: LabCA, login: Login, own: str) -> None:
        assert login(ca.leaf("x", client=True, sid=sid_of(mapped, "alice")), own).name == "alice"

    @pytest.mark.parametrize("other", ["bob", "nobody", "*", "OTHER\\alice"])
    def test_and_for_nobody_else(self, mapped: DirectoryLab, ca: LabCA, login: Login, other: str) -> None:
        leaf = ca.leaf("x", client=True, sid=sid_of(mapped, "alice"))
        assert refusal(login, leaf, other) == f"asks to act as {other!r}, and is alice"


class TestMappings:
    @pytest.fixture(autouse=True)
    def unmapped(self, mapped: DirectoryLab) -> Iterator[None]:
        yield
        for name in ("bob", "alice"):
            mapped.modify(name, altSecurityIdentities=None)

    @pytest.mark.parametrize(
        "kind", ["X509:<I>DC=example,DC=lab,CN=Lab Client CA<SR>", "X509:<SKI>", "X509:<SHA1-PUKEY>"]
    )
    @pytest.mark.parametrize("case", [str, str.upper])
    def test_each_strong_one(
        self, mapped: DirectoryLab, ca: LabCA, login: Login, kind: str, case: Callable[[str], str]
    ) -> None:
        leaf = ca.leaf("somebody", client=True)
        mapping = next(one for one in strong_mappings(leaf.certificate) if one.startswith(kind))
        mapped.modify("bob", altSecurityIdentities=f"{kind}{case(mapping.removeprefix(kind))}")
        assert login(leaf).name == "bob"
        # Another certificate of the same name by the same CA is nobody's.
        assert refusal(login, ca.leaf("somebody", client=True)) == "no account for CN=somebody by sid"

    @pytest.mark.parametrize(
        "weak",
        [
            "X509:<I>DC=example,DC=lab,CN=Lab Client CA<S>CN=bob",
            "X509:<S>CN=bob",
            "X509:<RFC822>bob@lab.example",
            "Kerberos:bob@LAB.EXAMPLE",
            "X509:<I>DC=example,DC=lab,CN=Lab Client CA<SR>*",
            "*",
        ],
    )
    def test_no_weak_one(self, mapped: DirectoryLab, ca: LabCA, login: Login, weak: str) -> None:
        mapped.modify("bob", altSecurityIdentities=weak)
        leaf = ca.leaf("bob", client=True, upn="bob@lab.example")
        assert refusal(login, leaf) == "no account for CN=bob by sid"

    def test_of_two_accounts(self, mapped: DirectoryLab, ca: LabCA, login: Login) -> None:
        leaf = ca.leaf("somebody", client=True)
        one, other, *_ = strong_mappings(leaf.certificate)
        mapped.modify("bob", altSecurityIdentities=one)
        mapped.modify("alice", altSecurityIdentities=other)
        assert refusal(login, leaf) == "no account for CN=somebody by sid"

    def test_of_a_disabled_account(self, mapped: DirectoryLab, ca: LabCA, login: Login) -> None:
        leaf = ca.leaf("somebody", client=True)
        mapped.modify("disabled", altSecurityIdentities=strong_mappings(leaf.certificate)[0])
        assert refusal(login, leaf) == "account disabled: disabled of CN=somebody"

    def test_a_certificate_with_a_sid_has_no_need_of_one(self, mapped: DirectoryLab, ca: LabCA, login: Login) -> None:
        leaf = ca.leaf("somebody", client=True, sid=sid_of(mapped, "alice"))
        mapped.modify("bob", altSecurityIdentities=strong_mappings(leaf.certificate)[0])
        assert login(leaf).name == "alice"


class TestUpn:
    @pytest.mark.parametrize(
        ("upn", "name"),
        [
            ("alice@lab.example", "alice"),
            ("ALICE@LAB.EXAMPLE", "alice"),
            ("carol@corp.example", "carol"),
            ("jörg@lab.example", "jörg"),
        ],
    )
    def test_upns(self, ca: LabCA, login: Login, upn: str, name: str) -> None:
        assert login(ca.leaf("somebody", client=True, upn=upn), client_map="upn").name == name

    @pytest.mark.parametrize("upn", ["", "alice@corp.example", "alice", "*@lab.example", "alice.liddell@lab.example"])
    def test_none(self, ca: LabCA, login: Login, upn: str) -> None:
        """The last is an address of alice's, and addresses are no names."""
        leaf = ca.leaf("alice", "alice@lab.example", client=True, upn=upn)
        assert refusal(login, leaf, client_map="upn") == "no account for CN=alice by upn"

    @pytest.mark.parametrize("name", ["disabled", "expired", "locked"])
    def test_states(self, ca: LabCA, login: Login, name: str) -> None:
        leaf = ca.leaf("somebody", client=True, upn=f"{name}@lab.example")
        assert refusal(login, leaf, client_map="upn") == f"account {name}: {name} of CN=somebody"


# ---- through relayd --------------------------------------------------------------------------------------------

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
IMPLICIT = '[[listener]]\nname = "smtps"\naddress = "127.0.0.1"\nport = 0\ntls = "implicit"\n'


def config(lab: DirectoryLab, ca: LabCA, crl: Path | None = None, inside: str = "") -> str:
    keys = f'client_ca = "{ca.path}"\n' + (f'client_crl = "{crl}"\n' if crl else "") + inside
    return joined(lab, IMPLICIT, 'cache = "0s"').replace("[tls]\n", f"[tls]\n{keys}", 1)


@pytest.fixture(scope="module")
def crl(ca: LabCA) -> Path:
    return ca.crl()


@pytest.fixture(scope="module")
def relay(mapped: DirectoryLab, ca: LabCA, crl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with running(tmp_path_factory.mktemp("relay"), config(mapped, ca, crl)) as relay:
        yield relay


@contextlib.contextmanager
def connected(
    lab: DirectoryLab, relay: Relay, leaf: Leaf | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Iterator[smtplib.SMTP]:
    """A session under TLS that said EHLO."""
    context = ssl.create_default_context(cafile=str(lab.ca))
    context.minimum_version = context.maximum_version = version
    if leaf is not None:
        context.load_cert_chain(leaf.chain, leaf.key)
    with contextlib.closing(smtplib.SMTP("127.0.0.1", relay.port(), timeout=30)) as client:
        client.starttls(context=context)
        client.ehlo()
        yield client


def offers(client: smtplib.SMTP) -> list[str]:
    return client.esmtp_features.get("auth", "").split()


class TestRelay:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize(("name", "why"), STATES)
    def test_each_state(
        self, mapped: DirectoryLab, ca: LabCA, relay: Relay, version: ssl.TLSVersion, name: str, why: str
    ) -> None:
        leaf = ca.leaf(name, client=True, sid=sid_of(mapped, name))
        with connected(mapped, relay, leaf, version) as client:
            assert offers(client)[0] == "EXTERNAL"
            code, text = client.docmd("AUTH", "EXTERNAL =")
            if not why:
                assert code == 235
                relay.wait_for("authenticated", source="certificate", mechanism="EXTERNAL")
                assert client.mail("x@lab.example")[0] == 250
                assert client.rcpt("someone@elsewhere.example")[0] == 250
            else:
                assert (code, text) == (535, b"5.7.8 Authentication credentials invalid")
                relay.wait_for("authentication-failed", reason=f"{why}: {name} of CN={name}", mechanism="EXTERNAL")

    @pytest.mark.parametrize("version", VERSIONS)
    def test_a_client_without_one_is_not_disturbed(
        self, mapped: DirectoryLab, relay: Relay, version: ssl.TLSVersion
    ) -> None:
        with connected(mapped, relay, None, version) as client:
            assert "EXTERNAL" not in offers(client)
            assert client.docmd("AUTH", "EXTERNAL =")[0] == 504
            client.login("alice@lab.example", mapped.users["alice"])
            assert client.sendmail("x@lab.example", ["y@lab.example"], "Subject: x\r\n\r\nx\r\n") == {}

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("bad", ["expired", "wrong CA", "smart card alone", "server"])
    def test_a_bad_one_does_not_end_the_session(
        self, mapped: DirectoryLab, ca: LabCA, relay: Relay, tmp_path: Path, version: ssl.TLSVersion, bad: str
    ) -> None:
        sid = sid_of(mapped, "alice")
        leaf, why = {
            "expired": lambda: (ca.leaf("a", client=True, sid=sid, days=-2), "it has expired"),
            "wrong CA": lambda: (LabCA(tmp_path, CA_NAME).leaf("a", client=True, sid=sid), ""),
            "smart card alone": lambda: (
                ca.leaf("a", usages=(SMART_CARD_LOGON,), sid=sid),
                "it is not for client authentication",
            ),
            "server": lambda: (ca.leaf("a", sid=sid), "it is not for client authentication"),
        }[bad]()
        seen = len(relay.events)
        with connected(mapped, relay, leaf, version) as client:
            assert "EXTERNAL" not in offers(client)
            assert client.docmd("AUTH", "EXTERNAL =")[0] == 504
            client.login("alice@lab.example", mapped.users["alice"])
        (started,) = [event for event in relay.events[seen:] if event["event"] == "tls-started"]
        assert started["distrust"].endswith(why)

    def test_by_upn(self, mapped: DirectoryLab, ca: LabCA, tmp_path: Path) -> None:
        with running(tmp_path, config(mapped, ca, inside='client_map = "upn"\n')) as relay:
            for upn, code in (("carol@corp.example", 235), ("nobody@lab.example", 535)):
                leaf = ca.leaf("x", client=True, upn=upn, sid=sid_of(mapped, "alice"))
                with connected(mapped, relay, leaf) as client:
                    assert client.docmd("AUTH", "EXTERNAL =")[0] == code
            relay.wait_for("authenticated", user="carol@corp.example")

    def test_a_controller_that_is_away_is_no_refusal(self, mapped: DirectoryLab, ca: LabCA, relay: Relay) -> None:
        leaf = ca.leaf("a", client=True, sid=sid_of(mapped, "alice"))
        mapped.stop()
        try:
            with connected(mapped, relay, leaf) as client:
                assert client.docmd("AUTH", "EXTERNAL =")[0] == 454
        finally:
            mapped.start()


class TestRevocation:
    def test_from_one_session_to_the_next(self, mapped: DirectoryLab, ca: LabCA, tmp_path: Path) -> None:
        """relayd reads the list that is there when a client comes."""
        file = ca.crl(filename="nightly.crl")
        leaf = ca.leaf("a", filename="revoked", client=True, sid=sid_of(mapped, "alice"))
        steps = [
            (ca.crl(filename="1.crl", number=2), 235, ""),
            (ca.crl(leaf, filename="2.crl", number=3), 504, "CN=a: it is revoked"),
            (ca.crl(filename="3.crl", number=4, der=True), 235, ""),
        ]
        with running(tmp_path, config(mapped, ca, file)) as relay:
            for number, (new, code, why) in enumerate(steps):
                os.replace(new, file)
                with connected(mapped, relay, leaf) as client:
                    assert client.docmd("AUTH", "EXTERNAL =")[0] == code, number
                if why:
                    relay.wait_for("tls-started", distrust=why)

    @pytest.mark.parametrize("lacking", ["expired", "missing"])
    def test_lists_that_are_not_there_are_our_fault(
        self, mapped: DirectoryLab, ca: LabCA, tmp_path: Path, lacking: str
    ) -> None:
        issuing = LabCA(tmp_path / "issuing", "Lab Issuing CA", issuer=ca)
        leaf = (issuing if lacking == "missing" else ca).leaf("a", client=True, sid=sid_of(mapped, "alice"))
        file = ca.crl(filename=f"{lacking}.crl", days=7 if lacking == "missing" else -1)
        (tmp_path / "relay").mkdir()
        with running(tmp_path / "relay", config(mapped, ca, file)) as relay:
            with connected(mapped, relay, leaf) as client:
                assert offers(client)[0] == "EXTERNAL"
                assert [client.docmd("AUTH", "EXTERNAL =")[0] for _ in range(5)] == [454] * 5
                client.login("alice@lab.example", mapped.users["alice"])
            failed = relay.wait_for("authentication-failed")
            assert "client_crl" in failed["reason"]


class TestResumption:
    """With OpenSSL's own client: where certificates are asked for, each handshake is a whole one."""

    def s_client(self, lab: DirectoryLab, relay: Relay, *more: str | Path, listener: str = "smtps") -> str:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port(listener)}", "-CAfile", str(lab.ca)]
        if listener == "smtp":
            command += ["-starttls", "smtp"]
        # It reads till the server has answered QUIT.
        done = subprocess.run(
            [*command, "-crlf", "-ign_eof", *map(str, more)],
            input="EHLO client.example\nAUTH EXTERNAL =\nQUIT\n",
            text=True,
            capture_output=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    @pytest.mark.parametrize("listener", ["smtp", "smtps"])
    @pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
    def test_a_kept_session(
        self, mapped: DirectoryLab, ca: LabCA, relay: Relay, tmp_path: Path, version: str, listener: str
    ) -> None:
        leaf = ca.leaf("a", client=True, sid=sid_of(mapped, "alice"))
        shown = ["-cert", leaf.cert, "-key", leaf.key, version]
        session = tmp_path / "session"
        first = self.s_client(mapped, relay, *shown, "-sess_out", session, listener=listener)
        assert "235 2.7.0" in first
        if version == "-tls1_2":
            assert not session.exists()  # there is none to keep; in TLS 1.3 there always is
            return
        again = self.s_client(mapped, relay, *shown, "-sess_in", session, listener=listener)
        assert "\nNew, TLSv1" in again
        assert "\nReused, TLSv1" not in again
        assert "235 2.7.0" in again
        # Whoever got hold of the session has no certificate.
        stolen = self.s_client(mapped, relay, version, "-sess_in", session, listener=listener)
        assert "504 5.5.4" in stolen

    def test_reconnecting(self, mapped: DirectoryLab, ca: LabCA, relay: Relay) -> None:
        leaf = ca.leaf("a", client=True, sid=sid_of(mapped, "alice"))
        said = self.s_client(mapped, relay, "-cert", leaf.cert, "-key", leaf.key, "-tls1_2", "-reconnect")
        assert said.count("\nNew, TLSv1.2") == 6
        assert "\nReused, TLSv1.2" not in said
        assert "235 2.7.0" in said

    @pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
    def test_elsewhere_sessions_are_resumed(self, mapped: DirectoryLab, tmp_path: Path, version: str) -> None:
        """So the tests above would notice."""
        session = tmp_path / "session"
        (tmp_path / "relay").mkdir()
        with running(tmp_path / "relay", joined(mapped, IMPLICIT)) as relay:
            self.s_client(mapped, relay, version, "-sess_out", session)
            assert "\nReused, TLSv1" in self.s_client(mapped, relay, version, "-sess_in", session)


class TestClients:
    """With clients nobody here wrote."""

    def test_curl(self, mapped: DirectoryLab, ca: LabCA, relay: Relay) -> None:
        leaf = ca.leaf("curl", filename="curl", client=True, sid=sid_of(mapped, "alice"))
        for name, ok in (("alice@lab.example", True), ("bob@lab.example", False)):
            done = clients.curl(
                "localhost",
                relay.port(),
                auth=(name, ""),
                mechanism="EXTERNAL",
                tls=True,
                ca=mapped.ca,
                more=("--cert", str(leaf.chain), "--key", str(leaf.key)),
            )
            assert done.ok is ok, done.output
        relay.wait_for("accepted", user="alice@lab.example")

    def test_msmtp(self, mapped: DirectoryLab, ca: LabCA, relay: Relay) -> None:
        leaf = ca.leaf("msmtp", filename="msmtp", client=True, sid=sid_of(mapped, "alice"))
        for name, ok in (("alice", True), ("bob", False)):
            done = clients.msmtp(
                "localhost",
                relay.port(),
                auth=(name, ""),
                mechanism="external",
                tls=True,
                ca=mapped.ca,
                more=(f"--tls-cert-file={leaf.chain}", f"--tls-key-file={leaf.key}"),
            )
            assert done.ok is ok, done.output
