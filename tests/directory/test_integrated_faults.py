"""Kerberos and NTLM through the real relayd while something is wrong: whose fault it is decides the reply."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ldap3.protocol.formatters.formatters import format_sid

from tests.directory.relays import Log, integrated, running, sign_in
from tests.lab import clients, domain
from tests.lab.clients import Place, Ran
from tests.lab.clock import skewed_clock
from tests.lab.directory import DirectoryLab
from tests.lab.integrated_clients import RELAY, inside, windows
from tests.lab.net import wait_for
from tests.lab.relay import Relay

#: What is asked is asked anew, and given up soon.
IMPATIENT = 'cache = "0s"\ntimeout = "2s"'

MANY = '[authentication]\nlockout = "1000 in 1m"\nmax_failures = 100\n'


def kerberos(relay: Relay, place: Place, to: str = "bob@lab.example") -> Ran:
    return clients.curl(RELAY, relay.port(), to=to, auth=("", ""), mechanism="GSSAPI", place=place)


def ntlm(relay: Relay, lab: DirectoryLab, name: str = "bob", password: str | None = None) -> Ran:
    secret = lab.users[name] if password is None else password
    return clients.curl(RELAY, relay.port(), auth=(f"LAB\\{name}", secret), mechanism="NTLM", place=inside(lab))


def code(ran: Ran) -> int:
    """The code of the last reply to AUTH: 235, or why not."""
    replies = [line[2:5] for line in ran.output.splitlines() if line.startswith(("< 235 ", "< 454 ", "< 535 "))]
    assert replies, ran.output
    return int(replies[-1])


def uses(relay: Relay) -> tuple[int, int]:
    """How many files it has open, and how many threads."""
    assert relay.process is not None
    return len(os.listdir(f"/proc/{relay.process.pid}/fd")), len(os.listdir(f"/proc/{relay.process.pid}/task"))


class TestController:
    def test_it_dies_and_comes_back(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        alice = inside(own_lab, own_lab.kinit("alice"))
        with running(tmp_path, integrated(own_lab, MANY, IMPATIENT)) as relay:
            assert code(kerberos(relay, alice)) == 235
            assert code(ntlm(relay, own_lab)) == 235
            before = uses(relay)
            own_lab.kill()
            for _ in range(3):
                assert code(ntlm(relay, own_lab)) == 454
                assert sign_in(own_lab, relay, "bob", own_lab.users["bob"]).code == 454
                # Her ticket names her and her groups, and no rule wants to know more.
                assert code(kerberos(relay, alice)) == 235
            assert not list(relay.find("authentication-failed", reply="535 5.7.8"))
            own_lab.start()
            wait_for(lambda: code(ntlm(relay, own_lab)) == 235, "well again", 60, interval=0.5)
            wait_for(lambda: all(now <= then + 1 for now, then in zip(uses(relay), before, strict=True)), "given back")

    def test_groups_come_with_the_ticket(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        (sid,) = own_lab.attributes("Relay Users", "objectSid")["objectSid"]
        more = f'[relay]\ngroups = ["{format_sid(sid)}"]\n[[domain]]\nname = "elsewhere.example"\nkind = "remote"\n'
        places = [inside(own_lab, own_lab.kinit(name)) for name in ("alice", "bob")]
        with running(tmp_path, integrated(own_lab, more + MANY, IMPATIENT)) as relay:
            for place in places:  # so that they have tickets for the relay
                kerberos(relay, place).require()
            own_lab.kill()
            alice, bob = (kerberos(relay, place, "someone@elsewhere.example") for place in places)
            assert alice.ok, alice.output
            assert "550 5.7.1" in bob.output

    def test_it_hangs(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        with running(tmp_path, integrated(own_lab, MANY, IMPATIENT)) as relay:
            assert code(ntlm(relay, own_lab)) == 235
            own_lab.pause()
            try:
                assert code(ntlm(relay, own_lab)) == 454
                assert code(ntlm(relay, own_lab, password="wrong")) == 454
            finally:
                own_lab.resume()
            wait_for(lambda: code(ntlm(relay, own_lab)) == 235, "well again", 60, interval=0.5)


class TestOurAccounts:
    def test_the_machine_account_is_disabled_for_a_while(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        with running(tmp_path, integrated(own_lab, MANY, IMPATIENT)) as relay:
            own_lab.modify(domain.COMPUTER, userAccountControl=domain.WORKSTATION | domain.DISABLED)
            log = Log(relay)
            assert code(ntlm(relay, own_lab)) == 454
            assert domain.COMPUTER in log.one("authentication-failed")["reason"]
            own_lab.modify(domain.COMPUTER, userAccountControl=domain.WORKSTATION)
            wait_for(lambda: code(ntlm(relay, own_lab)) == 235, "well again", 90, interval=0.5)

    def test_the_machine_password_was_changed_elsewhere(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        secret = own_lab.directory / "relay01.secret"
        with running(tmp_path, integrated(own_lab, MANY, IMPATIENT)) as relay:
            own_lab.modify(domain.COMPUTER, unicodePwd='"Changed-elsewhere-9"'.encode("utf-16-le"))
            assert code(ntlm(relay, own_lab)) == 454
            secret.write_text("Changed-elsewhere-9")
            wait_for(lambda: code(ntlm(relay, own_lab)) == 235, "well again", 90, interval=0.5)

    def test_the_keytab_lacks_the_name(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        keytab = own_lab.directory / "another.keytab"
        where = f"--principal={domain.COMPUTER}"
        domain.tool(own_lab.directory, "samba-tool", "domain", "exportkeytab", str(keytab), where)
        config = integrated(own_lab, MANY, IMPATIENT).replace(f'"{own_lab.keytab}"', f'"{keytab}"')
        with running(tmp_path, config) as relay:
            log = Log(relay)
            assert code(kerberos(relay, inside(own_lab, own_lab.kinit("alice")))) == 454
            reason = log.one("authentication-failed")["reason"]
            assert "keytab has no key" in reason
            assert "smtp/relay.lab.example@LAB.EXAMPLE" in reason


class TestClock:
    @pytest.mark.parametrize("by", ["+10m", "-10m"])
    def test_a_relay_whose_clock_is_wrong(self, lab: DirectoryLab, tmp_path: Path, by: str) -> None:
        with running(tmp_path, integrated(lab), env=skewed_clock(by)) as relay:
            log = Log(relay)
            assert code(kerberos(relay, inside(lab, lab.kinit("alice")))) == 454
            assert "clock skew" in log.one("authentication-failed")["reason"]


class TestLockout:
    def test_failures_of_all_mechanisms_are_counted_together(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        nowhere = inside(own_lab)
        with running(tmp_path, integrated(own_lab, inside=IMPATIENT)) as relay:
            assert code(ntlm(relay, own_lab, "victim", "wrong")) == 535  # half of the domain's three
            tries: list[Callable[[], int]] = [
                lambda: code(ntlm(relay, own_lab, "victim", "wrong too")),
                lambda: sign_in(own_lab, relay, "victim", "guess").code,
                lambda: code(ntlm(relay, own_lab, "victim")),
            ]
            assert [attempt() for attempt in tries] == [454, 454, 454]
            # It would go on to LOGIN with the same password.
            windows(relay.port(), nowhere, auth=("victim", "wrong"), domain="LAB", tls=True, ca=own_lab.ca)
            assert own_lab.bad_password_count("victim") == 1
            # His tickets are as good as ever: nobody can guess them.
            assert code(kerberos(relay, inside(own_lab, own_lab.kinit("victim")))) == 235
