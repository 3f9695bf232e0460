"""Kerberos and NTLM against a real Active Directory, by clients that others wrote, through the real relayd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.directory.relays import Log, integrated, running
from tests.lab import clients, domain
from tests.lab.clients import Place, Ran
from tests.lab.directory import DirectoryLab
from tests.lab.integrated_clients import RELAY, gsasl, inside, mutt, postfix, skewed, smtptest, windows
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink
from tests.lab.wiretap import Wiretap

#: Everybody must sign in. Who fails here is not to be stopped by relayd before the directory's answer is seen.
SETTINGS = """\
[authentication]
anonymous = false
lockout = "1000 in 1m"
max_failures = 100

[relay]
groups = ["Relay Users", "Relay Hosts"]

[[listener]]
name = "kerberos"
address = "127.0.0.1"
port = 0
ntlm = false

[[listener]]
name = "passwords"
address = "127.0.0.1"
port = 0
integrated = false

[[domain]]
name = "elsewhere.example"
kind = "remote"
route = ["127.0.0.1:{sink}"]
"""

ELSEWHERE = "someone@elsewhere.example"

Send = Callable[[int, Place], Ran]


@pytest.fixture(scope="module")
def sink() -> Iterator[RecordingSink]:
    with RecordingSink() as running:
        yield running


@pytest.fixture(scope="module")
def relay(spoilt: DirectoryLab, sink: RecordingSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    config = integrated(spoilt, SETTINGS.format(sink=sink.port), 'cache = "0s"')
    with running(tmp_path_factory.mktemp("relay"), config) as relay:
        yield relay


@pytest.fixture
def log(relay: Relay) -> Log:
    return Log(relay)


@pytest.fixture(scope="module")
def lab(spoilt: DirectoryLab) -> DirectoryLab:
    """Who signs in here, and where, is of the domain that may be failed with."""
    return spoilt


def curl(port: int, place: Place, **what: object) -> Ran:
    return clients.curl(RELAY, port, auth=("", ""), mechanism="GSSAPI", place=place, **what)  # type: ignore[arg-type]


def msmtp(port: int, place: Place) -> Ran:
    return clients.msmtp(RELAY, port, auth=("alice", ""), mechanism="gssapi", place=place)


def ntlm(port: int, place: Place, name: str, password: str, **what: object) -> Ran:
    """curl, by NTLMv2."""
    user = (f"LAB\\{name}", password)
    return clients.curl(RELAY, port, auth=user, mechanism="NTLM", place=place, **what)  # type: ignore[arg-type]


class TestKerberos:
    @pytest.mark.parametrize(
        ("send", "mechanism"),
        [
            (curl, "GSSAPI"),
            (msmtp, "GSSAPI"),
            (gsasl, "GSSAPI"),
            (mutt, "GSSAPI"),
            (smtptest, "GSSAPI"),
            (lambda port, alice: smtptest(port, alice, mechanism="GSS-SPNEGO"), "GSS-SPNEGO"),
            (lambda port, alice: windows(port, alice, default_credentials=True), "GSSAPI"),
        ],
        ids=["curl", "msmtp", "gsasl", "mutt", "smtptest", "smtptest-spnego", "dotnet"],
    )
    def test_clients(self, relay: Relay, log: Log, alice: Place, send: Send, mechanism: str) -> None:
        send(relay.port(), alice).require()
        log.signed_in(mechanism, "alice@lab.example", "kerberos")

    @pytest.mark.parametrize("mechanism", ["gssapi", "gss-spnego"])
    def test_postfix(self, spoilt: DirectoryLab, relay: Relay, log: Log, tickets: Path, mechanism: str) -> None:
        postfix(spoilt, relay.port(), user="alice", tickets=tickets, mechanism=mechanism).require()
        log.signed_in(mechanism.upper(), "alice@lab.example", "kerberos")

    def test_under_tls(self, spoilt: DirectoryLab, relay: Relay, log: Log, alice: Place) -> None:
        curl(relay.port(), alice, tls=True, ca=spoilt.ca).require()
        log.signed_in("GSSAPI", "alice@lab.example", "kerberos")

    def test_dotnet_with_a_password(self, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]) -> None:
        windows(relay.port(), nowhere, auth=bob, domain="LAB.EXAMPLE").require()
        log.signed_in("GSSAPI", "bob@lab.example", "kerberos")

    def test_what_dotnet_sends(self, relay: Relay, alice: Place) -> None:
        with Wiretap(relay.port()) as tap:
            windows(tap.port, alice, default_credentials=True, count=2).require()
        said = tap.said()
        # Two empty lines for one response, twice.
        assert [line for line in said if line.startswith("AUTH gssapi ")]
        assert said.count("") >= 4
        assert not [line for line in tap.said("S") if line.startswith("5")]

    def test_a_computer(self, spoilt: DirectoryLab, relay: Relay, log: Log) -> None:
        place = inside(spoilt, spoilt.kinit(domain.COMPUTER))
        curl(relay.port(), place, to=ELSEWHERE).require()
        log.signed_in("GSSAPI", f"{domain.COMPUTER}@lab.example", "kerberos")

    def test_a_name_that_is_not_ascii(self, spoilt: DirectoryLab, relay: Relay, log: Log) -> None:
        curl(relay.port(), inside(spoilt, spoilt.kinit("jörg"))).require()
        log.signed_in("GSSAPI", "jörg@lab.example", "kerberos")

    def test_an_alternate_upn_suffix(self, spoilt: DirectoryLab, relay: Relay, log: Log) -> None:
        curl(relay.port(), inside(spoilt, spoilt.kinit("carol@corp.example", spoilt.users["carol"]))).require()
        log.signed_in("GSSAPI", "carol@corp.example", "kerberos")

    def test_without_tickets(self, relay: Relay, log: Log, nowhere: Place) -> None:
        assert not curl(relay.port(), nowhere).ok
        assert not log.all("authenticated")

    def test_dotnet_without_tickets(self, relay: Relay, log: Log, nowhere: Place) -> None:
        ran = windows(relay.port(), nowhere, default_credentials=True)
        assert not ran.ok
        assert not log.all("authenticated")

    def test_a_client_whose_clock_is_wrong(self, relay: Relay, log: Log, alice: Place) -> None:
        curl(relay.port(), alice).require()  # so that it has a ticket for the service
        later = Log(relay)
        assert not curl(relay.port(), skewed(alice, "+10m")).ok
        assert "clock skew" in later.one("authentication-failed")["reason"]


class TestGroups:
    def test_nested_ones_of_the_ticket_may_relay(
        self, relay: Relay, sink: RecordingSink, alice: Place, log: Log
    ) -> None:
        before = len(sink.mails)
        curl(relay.port(), alice, to=ELSEWHERE).require()
        relay.wait_until(lambda: len(sink.mails) > before, "the message at the next hop")
        assert b"with ESMTPA" in sink.mails[-1].content

    def test_nested_ones_of_the_controllers_answer_may_relay(
        self, spoilt: DirectoryLab, relay: Relay, nowhere: Place
    ) -> None:
        ntlm(relay.port(), nowhere, "alice", spoilt.users["alice"], to=ELSEWHERE).require()

    def test_others_may_not(self, spoilt: DirectoryLab, relay: Relay, nowhere: Place, bob: tuple[str, str]) -> None:
        for ran in (
            curl(relay.port(), inside(spoilt, spoilt.kinit("bob")), to=ELSEWHERE),
            ntlm(relay.port(), nowhere, *bob, to=ELSEWHERE),
        ):
            assert ran.code == 55
            assert "550 5.7.1" in ran.output

    def test_addresses_are_the_accounts_own(
        self, spoilt: DirectoryLab, nowhere: Place, alice: Place, tmp_path: Path
    ) -> None:
        with running(tmp_path, integrated(spoilt, '[relay]\nsend_as = "own"\n')) as relay:
            curl(relay.port(), alice, from_="sales@corp.example").require()
            assert not curl(relay.port(), alice, from_="bob@lab.example").ok
            password = spoilt.users["alice"]
            ntlm(relay.port(), nowhere, "alice", password, from_="sales@corp.example").require()
            assert not ntlm(relay.port(), nowhere, "alice", password, from_="bob@lab.example").ok


class TestNtlm:
    def test_curl(self, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]) -> None:
        ntlm(relay.port(), nowhere, *bob).require()
        log.signed_in("NTLM", "bob@lab.example", "ntlm")

    def test_with_an_initial_response(self, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]) -> None:
        ntlm(relay.port(), nowhere, *bob, more=["--sasl-ir"]).require()
        log.signed_in("NTLM", "bob@lab.example", "ntlm")

    def test_under_tls(
        self, spoilt: DirectoryLab, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]
    ) -> None:
        ntlm(relay.port(), nowhere, *bob, tls=True, ca=spoilt.ca).require()
        log.signed_in("NTLM", "bob@lab.example", "ntlm")

    def test_dotnet_in_negotiate(self, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]) -> None:
        windows(relay.port(), nowhere, auth=bob, domain="LAB").require()
        log.signed_in("GSSAPI", "bob@lab.example", "ntlm")

    def test_dotnet_by_its_name(
        self, spoilt: DirectoryLab, nowhere: Place, bob: tuple[str, str], tmp_path: Path
    ) -> None:
        # A relay without Kerberos: with it, .NET asks for GSSAPI alone.
        _, heading, tables = spoilt.toml().partition("[ntlm]")
        with running(tmp_path, integrated(spoilt, own=heading + tables)) as relay:
            log = Log(relay)
            windows(relay.port(), nowhere, auth=bob, domain="LAB").require()
            log.signed_in("NTLM", "bob@lab.example", "ntlm")

    @pytest.mark.parametrize(
        "send",
        [
            lambda port, place, bob: clients.msmtp(RELAY, port, auth=bob, mechanism="ntlm", place=place),
            lambda port, place, bob: clients.swaks(RELAY, port, auth=bob, mechanism="NTLM", place=place),
            lambda port, place, bob: gsasl(port, place, mechanism="NTLM", user=bob[0], password=bob[1], realm="LAB"),
        ],
        ids=["msmtp", "swaks", "gsasl"],
    )
    def test_version_1_is_refused(
        self,
        spoilt: DirectoryLab,
        relay: Relay,
        log: Log,
        nowhere: Place,
        bob: tuple[str, str],
        send: Callable[[int, Place, tuple[str, str]], Ran],
    ) -> None:
        before = spoilt.bad_password_count("bob")
        ran = send(relay.port(), nowhere, bob)
        assert not ran.ok
        assert "535 5.7.8" in ran.output
        failed = log.one("authentication-failed")
        assert failed["reason"].startswith("NTLMv1 response")
        assert failed["mechanism"] == "NTLM"
        assert spoilt.bad_password_count("bob") == before

    @pytest.mark.parametrize("more", [[], ["-o", "ntlm_v2=yes"]])
    def test_what_cyrus_sends_is_refused(
        self, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str], more: list[str]
    ) -> None:
        user, password = bob
        ran = smtptest(relay.port(), nowhere, mechanism="NTLM", user=user, password=password, more=more)
        assert "535 5.7.8" in ran.output
        reason = log.one("authentication-failed")["reason"]
        assert reason.startswith(("NTLMv1 response", "LM response alone"))

    #: account state x password -> the status in the log, and whether the directory counted a failure.
    GOLDEN = (
        ("alice", None, "", 0),
        ("bob", "wrong", "c000006a", 1),
        ("disabled", None, "c0000072", 0),
        ("disabled", "wrong", "c000006a", 1),
        ("expired", None, "c0000193", 0),
        ("expired", "wrong", "c000006a", 1),
        ("lapsed", None, "c0000071", 0),
        ("mustchange", None, "c0000224", 0),
        ("mustchange", "wrong", "c000006a", 1),
        ("nights", None, "c000006f", 0),
        ("locked", None, "c0000234", 0),
        ("locked", "wrong", "c0000234", 0),
        (domain.COMPUTER, None, "", 0),
    )

    @pytest.mark.parametrize(("name", "password", "status", "counted"), GOLDEN)
    def test_each_state(
        self,
        spoilt: DirectoryLab,
        relay: Relay,
        log: Log,
        nowhere: Place,
        name: str,
        password: str | None,
        status: str,
        counted: int,
    ) -> None:
        before = spoilt.bad_password_count(name)
        ran = ntlm(relay.port(), nowhere, name, spoilt.users[name] if password is None else password)
        assert spoilt.bad_password_count(name) - before == counted
        if status:
            assert "< 535 5.7.8 Authentication credentials invalid" in ran.output
            assert status in log.one("authentication-failed")["reason"]
        else:
            ran.require()
            # A computer has no user principal name in the directory.
            log.signed_in("NTLM", name if name == domain.COMPUTER else f"{name}@lab.example", "ntlm")

    def test_unknown(self, relay: Relay, log: Log, nowhere: Place) -> None:
        assert ntlm(relay.port(), nowhere, "nobody", "secret").code == 67
        assert "unknown account" in log.one("authentication-failed")["reason"]

    def test_winbind(self, spoilt: DirectoryLab, nowhere: Place, bob: tuple[str, str], tmp_path: Path) -> None:
        config = integrated(spoilt, own='[ntlm]\nbackend = "winbind"\n')
        with running(tmp_path, config, prefix=spoilt.with_winbind()) as relay:
            log = Log(relay)
            ntlm(relay.port(), nowhere, *bob).require()
            log.signed_in("NTLM", "bob@lab.example", "ntlm")
            log = Log(relay)
            assert ntlm(relay.port(), nowhere, "bob", "wrong").code == 67
            assert "NT_STATUS_LOGON_FAILURE" in log.one("authentication-failed")["reason"]
            windows(relay.port(), nowhere, auth=bob, domain="LAB").require()


class TestPasswords:
    """What these clients send is no different with integrated authentication about."""

    @pytest.mark.parametrize(
        ("send", "mechanism"),
        [(clients.curl, "PLAIN"), (clients.curl, "LOGIN"), (clients.swaks, "PLAIN"), (clients.swaks, "LOGIN")],
    )
    def test_under_tls(
        self,
        spoilt: DirectoryLab,
        relay: Relay,
        log: Log,
        nowhere: Place,
        bob: tuple[str, str],
        send: Callable[..., Ran],
        mechanism: str,
    ) -> None:
        send(RELAY, relay.port(), auth=bob, mechanism=mechanism, tls=True, ca=spoilt.ca, place=nowhere).require()
        log.signed_in(mechanism, "bob@lab.example", "ldap")

    def test_postfix(self, spoilt: DirectoryLab, relay: Relay, log: Log, bob: tuple[str, str]) -> None:
        user, password = bob
        postfix(spoilt, relay.port(), user=user, password=password, mechanism="plain", tls=True).require()
        log.signed_in("PLAIN", "bob@lab.example", "ldap")

    def test_dotnet_where_nothing_else_is_offered(
        self, spoilt: DirectoryLab, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]
    ) -> None:
        windows(relay.port("passwords"), nowhere, auth=bob, domain="LAB", tls=True, ca=spoilt.ca).require()
        log.signed_in("LOGIN", "bob@lab.example", "ldap")

    def test_dotnet_goes_on_to_login_where_ntlm_is_off(
        self, spoilt: DirectoryLab, relay: Relay, log: Log, nowhere: Place, bob: tuple[str, str]
    ) -> None:
        windows(relay.port("kerberos"), nowhere, auth=bob, domain="LAB", tls=True, ca=spoilt.ca).require()
        assert log.one("authentication-failed")["mechanism"] == "GSSAPI"
        signed_in = log.one("authenticated")
        assert (signed_in["mechanism"], signed_in["user"]) == ("LOGIN", "bob@lab.example")


class TestRefusals:
    def test_dotnet_goes_on_without(self, spoilt: DirectoryLab, relay: Relay, log: Log, nowhere: Place) -> None:
        with Wiretap(relay.port()) as tap:
            ran = windows(tap.port, nowhere, auth=("bob", "wrong"), domain="LAB")
        # It says nothing of the 535; what its user reads is the answer to MAIL.
        assert ran.json()["status"] == 530
        assert "Authentication required" in ran.json()["error"]
        assert tap.said()[-1].startswith("MAIL FROM:")
        assert log.one("authentication-failed")["mechanism"] == "GSSAPI"

    def test_dotnet_tries_login_too(self, spoilt: DirectoryLab, relay: Relay, log: Log, nowhere: Place) -> None:
        before = spoilt.bad_password_count("victim")
        ran = windows(relay.port(), nowhere, auth=("victim", "wrong"), domain="LAB", tls=True, ca=spoilt.ca)
        assert ran.json()["status"] == 530
        relay.wait_until(lambda: len(log.all("authentication-failed")) == 2, "two failures in the log")
        assert [event["mechanism"] for event in log.all("authentication-failed")] == ["GSSAPI", "LOGIN"]
        assert spoilt.bad_password_count("victim") - before == 2
