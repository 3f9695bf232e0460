"""The clients of integrated authentication work here: so a stand-in for relayd shows, made of libraries alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import clients
from tests.lab.clients import Place, Ran
from tests.lab.directory import DirectoryLab
from tests.lab.integrated_clients import RELAY, gsasl, mutt, postfix, skewed, smtptest, windows
from tests.lab.standin import StandIn
from tests.lab.wiretap import Wiretap


def stand_in(lab: DirectoryLab, **what: str | bool) -> StandIn:
    certificate = (lab.directory / "ca" / "relay-chain.pem", lab.directory / "ca" / "relay.key")
    return StandIn(lab.keytab, lab.users, lab.netbios, certificate, **what)  # type: ignore[arg-type]


@pytest.fixture
def server(lab: DirectoryLab) -> Iterator[StandIn]:
    with stand_in(lab) as running:
        yield running


def curl(port: int, place: Place) -> Ran:
    return clients.curl(RELAY, port, auth=("", ""), mechanism="GSSAPI", place=place)


def msmtp(port: int, place: Place) -> Ran:
    return clients.msmtp(RELAY, port, auth=("alice", ""), mechanism="gssapi", place=place)


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
    def test_signs_in(self, server: StandIn, alice: Place, send: Callable[[int, Place], Ran], mechanism: str) -> None:
        send(server.port, alice).require()
        assert server.authenticated == [(mechanism, "alice@LAB.EXAMPLE")]
        assert not server.refused

    @pytest.mark.parametrize("mechanism", ["gssapi", "gss-spnego"])
    def test_postfix(self, lab: DirectoryLab, server: StandIn, tickets: Path, mechanism: str) -> None:
        postfix(lab, server.port, user="alice", tickets=tickets, mechanism=mechanism).require()
        assert server.authenticated == [(mechanism.upper(), "alice@LAB.EXAMPLE")]
        assert server.senders == ["alice@LAB.EXAMPLE"]

    def test_dotnet_with_a_password(self, server: StandIn, nowhere: Place, bob: tuple[str, str]) -> None:
        windows(server.port, nowhere, auth=bob, domain="LAB.EXAMPLE").require()
        assert server.authenticated == [("GSSAPI", "bob@LAB.EXAMPLE")]

    def test_dotnet_without_the_layer(self, lab: DirectoryLab, alice: Place) -> None:
        with stand_in(lab, layer=False) as server:
            windows(server.port, alice, default_credentials=True).require()
        assert server.senders == ["alice@LAB.EXAMPLE"]


class TestNtlm:
    def test_curl(self, server: StandIn, nowhere: Place, bob: tuple[str, str]) -> None:
        user = (f"LAB\\{bob[0]}", bob[1])
        clients.curl(RELAY, server.port, auth=user, mechanism="NTLM", place=nowhere).require()
        assert server.authenticated == [("NTLM", "LAB\\bob")]

    @pytest.mark.parametrize(
        "send",
        [
            lambda port, place, bob: clients.msmtp(RELAY, port, auth=bob, mechanism="ntlm", place=place),
            lambda port, place, bob: clients.swaks(RELAY, port, auth=bob, mechanism="NTLM", place=place),
            lambda port, place, bob: gsasl(port, place, mechanism="NTLM", user=bob[0], password=bob[1], realm="LAB"),
        ],
        ids=["msmtp", "swaks", "gsasl"],
    )
    def test_the_old_kind(
        self, server: StandIn, nowhere: Place, bob: tuple[str, str], send: Callable[[int, Place, tuple[str, str]], Ran]
    ) -> None:
        assert not send(server.port, nowhere, bob).ok
        assert server.refused == [("NTLM", "NTLMv1")]

    @pytest.mark.parametrize(("mechanisms", "used"), [("GSSAPI NTLM LOGIN", "GSSAPI"), ("NTLM LOGIN", "NTLM")])
    def test_dotnet(self, lab: DirectoryLab, nowhere: Place, bob: tuple[str, str], mechanisms: str, used: str) -> None:
        with stand_in(lab, mechanisms=mechanisms) as server:
            windows(server.port, nowhere, auth=bob, domain="LAB").require()
        assert server.authenticated == [(used, "LAB\\bob")]
        assert server.senders == ["LAB\\bob"]

    def test_dotnet_refused(self, lab: DirectoryLab, server: StandIn, nowhere: Place) -> None:
        with Wiretap(server.port) as tap:
            ran = windows(tap.port, nowhere, auth=("bob", "wrong"), domain="LAB")
        # It goes on to the next mechanism, and then without.
        assert ran.json()["status"] == 530
        assert [name for name, _ in server.refused] == ["GSSAPI", "LOGIN"]
        assert tap.said()[-1] == "MAIL FROM:<alice@lab.example>"


class TestPasswords:
    @pytest.mark.parametrize(
        ("send", "mechanism"),
        [(clients.curl, "PLAIN"), (clients.curl, "LOGIN"), (clients.swaks, "PLAIN"), (clients.swaks, "LOGIN")],
    )
    def test_signs_in_under_tls(
        self,
        lab: DirectoryLab,
        server: StandIn,
        nowhere: Place,
        bob: tuple[str, str],
        send: Callable[..., Ran],
        mechanism: str,
    ) -> None:
        send(RELAY, server.port, auth=bob, mechanism=mechanism, tls=True, ca=lab.ca, place=nowhere).require()
        assert server.authenticated == [(mechanism, "bob")]

    def test_dotnet(self, lab: DirectoryLab, nowhere: Place, bob: tuple[str, str]) -> None:
        with stand_in(lab, mechanisms="PLAIN LOGIN") as server:
            windows(server.port, nowhere, auth=bob, domain="LAB", tls=True, ca=lab.ca).require()
        assert server.authenticated == [("LOGIN", "bob")]

    def test_postfix(self, lab: DirectoryLab, server: StandIn) -> None:
        user, password = "bob", lab.users["bob"]
        postfix(lab, server.port, user=user, password=password, mechanism="plain", tls=True).require()
        assert not postfix(lab, server.port, user=user, password="wrong", mechanism="plain", tls=True).ok
        assert server.senders == ["bob"]


def test_a_wrong_clock(server: StandIn, alice: Place) -> None:
    # With a ticket for the service at hand, so that it is not the controller that complains.
    curl(server.port, alice).require()
    ran = curl(server.port, skewed(alice, "+10m"))
    assert ran.code == 67
    ((_, reason),) = server.refused
    assert "Clock skew too great" in reason


def test_winbind(lab: DirectoryLab) -> None:
    asked = lab.with_winbind("ntlm_auth", "--domain=LAB", "--username=alice", f"--password={lab.users['alice']}")
    clients.run(asked).require()
    assert "NT_STATUS_NO_SUCH_USER" in clients.run([*asked, "--username=nobody"]).output
