"""PLAIN and LOGIN against a real Active Directory, through the real relayd."""

from __future__ import annotations

import contextlib
import os
import smtplib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.directory.conftest import StartLab
from tests.directory.relays import joined, running, sign_in, signed_in
from tests.lab import clients, domain
from tests.lab.directory import DirectoryLab
from tests.lab.net import wait_for
from tests.lab.relay import Relay

MESSAGE = "Subject: hello\r\n\r\nIt works.\r\n"


@pytest.fixture(scope="module")
def relay(spoilt: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A relay that asks the spoilt domain, and keeps no answers, so that each test sees the directory as it is."""
    # Whoever fails here is not to be stopped by relayd before the directory's answer is seen.
    more = '[authentication]\nlockout = "1000 in 1m"\nmax_failures = 100\n'
    with running(tmp_path_factory.mktemp("relay"), joined(spoilt, more, 'cache = "0s"')) as relay:
        yield relay


#: account state x password -> reply, the reason in the log, whether the directory counted a failure.
GOLDEN = [
    ("alice", None, 235, "", 0),
    ("bob", "wrong", 535, "52e unknown account or wrong password", 1),
    ("disabled", None, 535, "533 account disabled", 0),
    ("disabled", "wrong", 535, "52e unknown account or wrong password", 1),
    ("expired", None, 535, "701 account expired", 0),
    ("expired", "wrong", 535, "52e unknown account or wrong password", 1),
    ("lapsed", None, 535, "532 password expired", 0),
    ("mustchange", None, 535, "773 password must be changed", 0),
    ("mustchange", "wrong", 535, "52e unknown account or wrong password", 1),
    ("nights", None, 535, "530 not at this time of day", 0),
    ("locked", None, 535, "775 account locked", 0),
    ("locked", "wrong", 535, "775 account locked", 0),
    (domain.COMPUTER, None, 235, "", 0),
]


class TestAccountStates:
    @pytest.mark.parametrize(("name", "password", "code", "reason", "counted"), GOLDEN)
    def test_each_state(
        self,
        spoilt: DirectoryLab,
        relay: Relay,
        name: str,
        password: str | None,
        code: int,
        reason: str,
        counted: int,
    ) -> None:
        before = spoilt.bad_password_count(name)
        seen = len(relay.events)
        answer = sign_in(spoilt, relay, f"LAB\\{name}", spoilt.users[name] if password is None else password)
        assert answer.code == code
        assert spoilt.bad_password_count(name) - before == counted
        if code == 535:
            assert answer.text == "5.7.8 Authentication credentials invalid"
            relay.wait_until(
                lambda: any(e["event"] == "authentication-failed" for e in relay.events[seen:]),
                "the failure in the log",
            )
            (failed,) = (e for e in relay.events[seen:] if e["event"] == "authentication-failed")
            assert failed["reason"] == reason
            assert failed["user"] == f"LAB\\{name}"

    def test_unknown(self, spoilt: DirectoryLab, relay: Relay) -> None:
        assert sign_in(spoilt, relay, "nobody", "secret").code == 535
        relay.wait_for("authentication-failed", user="nobody", reason="unknown account")

    def test_an_empty_password(self, spoilt: DirectoryLab, relay: Relay) -> None:
        assert sign_in(spoilt, relay, "alice", "").code == 535
        assert spoilt.bad_password_count("alice") == 0


class TestNames:
    @pytest.mark.parametrize(
        ("name", "account"),
        [
            ("alice", "alice"),
            ("ALICE", "alice"),
            ("LAB\\alice", "alice"),
            ("lab.example\\alice", "alice"),
            ("alice@lab.example", "alice"),
            ("alice@LAB", "alice"),
            ("carol@corp.example", "carol"),
            ("carol@lab.example", "carol"),
            ("jörg", "jörg"),
            ("jo\u0308rg@lab.example", "jörg"),
            ("LAB\\RELAY01$", "RELAY01$"),
            ("RELAY01$", "RELAY01$"),
        ],
    )
    def test_names(self, spoilt: DirectoryLab, relay: Relay, name: str, account: str) -> None:
        assert sign_in(spoilt, relay, name, spoilt.users[account]).code == 235

    @pytest.mark.parametrize("name", ["OTHER\\alice", "alice@corp.example", "*", "alice)(objectClass=*", "Engineers"])
    def test_no_names(self, spoilt: DirectoryLab, relay: Relay, name: str) -> None:
        assert sign_in(spoilt, relay, name, spoilt.users["alice"]).code == 535

    def test_default_domain(self, spoilt: DirectoryLab, tmp_path: Path) -> None:
        more = '[authentication]\ndefault_domain = "corp.example"\n'
        with running(tmp_path, joined(spoilt, more)) as relay:
            assert sign_in(spoilt, relay, "carol", spoilt.users["carol"]).code == 235
            assert sign_in(spoilt, relay, "alice", spoilt.users["alice"]).code == 535
            assert sign_in(spoilt, relay, "LAB\\alice", spoilt.users["alice"]).code == 235


class TestPolicy:
    """What the directory says of people decides what they may."""

    def may_relay(self, lab: DirectoryLab, relay: Relay, name: str) -> int:
        with contextlib.closing(signed_in(lab, relay, name, lab.users[name])) as client:
            client.mail("x@lab.example")
            return client.rcpt("someone@elsewhere.example")[0]

    @pytest.mark.parametrize("spelled", ["name", "netbios", "dn", "sid"])
    def test_groups_nested_by_any_of_their_names(self, lab: DirectoryLab, tmp_path: Path, spelled: str) -> None:
        from relayd.directory.entries import sid_text

        (sid,) = lab.attributes("Relay Users", "objectSid")["objectSid"]
        group = {
            "name": "relay users",
            "netbios": r"lab\\Relay Users",
            "dn": lab.dn("Relay Users"),
            "sid": sid_text(sid),
        }[spelled]
        with running(tmp_path, joined(lab, f'[relay]\ngroups = ["{group}"]\n')) as relay:
            assert self.may_relay(lab, relay, "alice") == 250  # Engineers < Staff < Relay Users
            assert self.may_relay(lab, relay, "bob") == 550

    def test_own_addresses(self, lab: DirectoryLab, tmp_path: Path) -> None:
        more = '[relay]\nsend_as = "own"\nsend_as_groups = {"Send As Anyone" = ["*@apps.example"]}\n'
        with running(tmp_path, joined(lab, more)) as relay:
            for name, sender, code in [
                ("alice", "Alice.Liddell@lab.example", 250),
                ("alice", "sales@corp.example", 250),
                ("alice", "bob@lab.example", 550),
                ("bob", "bob@lab.example", 250),
                ("bob", "x@apps.example", 250),
                ("alice", "x@apps.example", 550),
                ("carol", "carol@corp.example", 550),  # her name, and no address of hers
            ]:
                with contextlib.closing(signed_in(lab, relay, name, lab.users[name])) as client:
                    assert client.mail(sender)[0] == code, (name, sender)

    def test_recipients(self, lab: DirectoryLab, tmp_path: Path) -> None:
        more = 'aliases = ["alias.example"]\n'
        with running(tmp_path, joined(lab, more, "verify_recipients = true")) as relay:
            with contextlib.closing(smtplib.SMTP("127.0.0.1", relay.port(), timeout=30)) as client:
                client.ehlo()
                client.mail("x@elsewhere.example")
                for recipient, code in [
                    ("alice@lab.example", 250),
                    ("ALICE.LIDDELL@lab.example", 250),
                    ("alice@alias.example", 250),
                    ("nobody@lab.example", 550),
                    ("*@lab.example", 550),
                    ("postmaster@lab.example", 250),
                    ("postmaster", 250),
                ]:
                    assert client.rcpt(recipient)[0] == code, recipient
                assert client.rcpt("nobody@lab.example")[1].startswith(b"5.1.1 ")
                assert client.data(MESSAGE.encode())[0] == 250
            relay.wait_for("refused", recipient="nobody@lab.example", rule="directory.verify_recipients (line 32)")


class TestClients:
    """With clients nobody here wrote."""

    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
    @pytest.mark.parametrize("send", [clients.curl, clients.msmtp, clients.swaks])
    def test_sends(self, lab: DirectoryLab, tmp_path: Path, send: Callable[..., clients.Ran], mechanism: str) -> None:
        with running(tmp_path, joined(lab, "[authentication]\nanonymous = false\n")) as relay:
            where = ("localhost", relay.port(), "alice@lab.example", "bob@lab.example")
            auth = ("alice@lab.example", lab.users["alice"])
            said = mechanism.lower() if send is clients.msmtp else mechanism
            done = send(*where, auth=auth, mechanism=said, tls=True, ca=lab.ca)
            assert done.ok, done.output
            relay.wait_for("authenticated", mechanism=mechanism, source="ldap", user="alice@lab.example")
            relay.wait_for("accepted", user="alice@lab.example")
            assert not send(*where, auth=(auth[0], "wrong"), mechanism=said, tls=True, ca=lab.ca).ok


class TestLockout:
    """The lab's threshold is 3, and patient's 5, which svc-search may not read: it counts as 3."""

    def test_relayd_does_not_lock_accounts(self, start_lab: StartLab, tmp_path: Path) -> None:
        lab = start_lab()
        with running(tmp_path, joined(lab, "[authentication]\nmax_failures = 100\n")) as relay:
            assert sign_in(lab, relay, "victim", lab.users["victim"], "127.0.0.2").code == 235
            codes = [
                sign_in(lab, relay, name, f"guess{number}", f"127.0.0.{source}").code
                for number, (name, source) in enumerate(
                    (name, source)
                    for name in ("victim", "LAB\\victim", "victim@lab.example")
                    for source in (3, 4, 5, 2)
                )
            ]
            assert codes.count(535) == 2  # one of strangers, one of the client that is known
            assert codes.count(454) == len(codes) - 2
            assert lab.bad_password_count("victim") == 2
            assert sign_in(lab, relay, "patient", "guess").code == 535
            assert sign_in(lab, relay, "patient", "guess again").code == 454
            # Not locked in the directory.
            lab.connect("victim").unbind()

    def test_strangers_do_not_lock_a_service_out(self, start_lab: StartLab, tmp_path: Path) -> None:
        lab = start_lab()
        with running(tmp_path, joined(lab, inside='cache = "0s"')) as relay:
            assert sign_in(lab, relay, "victim", lab.users["victim"], "127.0.0.2").code == 235
            for number in range(5):
                sign_in(lab, relay, "victim", f"guess{number}", f"127.0.0.{number + 3}")
            assert sign_in(lab, relay, "victim", lab.users["victim"], "127.0.0.9").code == 454
            assert sign_in(lab, relay, "victim", lab.users["victim"], "127.0.0.2").code == 235

    def test_last_years_password_costs_one_failure(self, start_lab: StartLab, tmp_path: Path) -> None:
        lab = start_lab()
        more = '[authentication]\nlockout = "100 in 1m"\nmax_failures = 100\n'
        with running(tmp_path, joined(lab, more)) as relay:
            for _ in range(10):
                assert sign_in(lab, relay, "victim", "last year's").code == 535
            assert lab.bad_password_count("victim") == 1


class TestFaults:
    def test_a_controller_that_dies_and_comes_back(self, start_lab: StartLab, tmp_path: Path) -> None:
        lab = start_lab()
        with running(tmp_path, joined(lab, inside='cache = "0s"\ntimeout = "2s"')) as relay:
            assert sign_in(lab, relay, "alice", lab.users["alice"]).code == 235
            process = relay.process
            assert process is not None
            before = len(os.listdir(f"/proc/{process.pid}/fd"))
            lab.kill()
            for _ in range(3):
                assert sign_in(lab, relay, "alice", lab.users["alice"]).code == 454
            relay.wait_for("controller-rests")
            wait_for(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) <= before, "descriptors given back")
            lab.start()
            wait_for(
                lambda: sign_in(lab, relay, "alice", lab.users["alice"]).code == 235, "well again", 60, interval=0.5
            )

    def test_a_controller_that_hangs(self, start_lab: StartLab, tmp_path: Path) -> None:
        lab = start_lab()
        with running(tmp_path, joined(lab, inside='cache = "0s"\ntimeout = "2s"')) as relay:
            assert sign_in(lab, relay, "alice", lab.users["alice"]).code == 235
            lab.pause()
            try:
                assert sign_in(lab, relay, "alice", lab.users["alice"]).code == 454
                assert sign_in(lab, relay, "bob", lab.users["bob"]).code == 454
            finally:
                lab.resume()
            wait_for(
                lambda: sign_in(lab, relay, "alice", lab.users["alice"]).code == 235, "well again", 60, interval=0.5
            )

    def test_recipients_while_the_controller_is_away(self, start_lab: StartLab, tmp_path: Path) -> None:
        lab = start_lab()
        with running(tmp_path, joined(lab, inside='verify_recipients = true\ntimeout = "2s"')) as relay:
            lab.kill()
            with contextlib.closing(smtplib.SMTP("127.0.0.1", relay.port(), timeout=30)) as client:
                client.ehlo()
                client.mail("x@elsewhere.example")
                assert client.rcpt("alice@lab.example")[0] == 451
                assert client.rcpt("postmaster@lab.example")[0] == 250

    def test_another_authority(self, lab: DirectoryLab, tmp_path: Path) -> None:
        from tests.lab.ca import LabCA

        other = LabCA(tmp_path / "other")
        (tmp_path / "relay").mkdir()
        config = joined(lab)
        assert config.count(f'ca = "{lab.ca}"') == 1
        with running(tmp_path / "relay", config.replace(f'ca = "{lab.ca}"', f'ca = "{other.path}"')) as relay:
            assert sign_in(lab, relay, "alice", lab.users["alice"]).code == 454
            failed = relay.wait_for("authentication-failed", user="alice")
            assert "certificate verify failed" in failed["reason"]

    def test_the_searching_accounts_password_was_changed(self, lab: DirectoryLab, tmp_path: Path) -> None:
        """It is not locked by relayd, and nobody is refused."""
        secret = tmp_path / "secret"
        secret.write_text("changed elsewhere")
        secret.chmod(0o600)
        (tmp_path / "relay").mkdir()
        before = lab.bad_password_count("svc-search")
        config = joined(lab).replace(f"{lab.directory}/svc-search.secret", str(secret))
        with running(tmp_path / "relay", config) as relay:
            for name in ("alice", "bob", "carol", "jörg") * 2:
                assert sign_in(lab, relay, name, lab.users[name]).code == 454
            failed = relay.wait_for("authentication-failed", user="alice")
            assert "bind_user svc-search@lab.example is refused: 52e" in failed["reason"]
            assert lab.bad_password_count("svc-search") - before == 1
            secret.write_text(lab.users["svc-search"])
            assert sign_in(lab, relay, "alice", lab.users["alice"]).code == 235
