"""One relay, joined to a domain, through everything that goes wrong around it: it is never restarted.

Whatever is not the client's fault is answered by 454, and the log says what and where; the session goes on, mail flows,
nothing is left behind, and once the fault is gone, everybody signs in again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.directory.exchanges import gss_spnego, gssapi_kerberos
from tests.directory.joined import BY_DIRECTORY, BY_NETLOGON, BY_TICKET, Joined, joined_relay
from tests.directory.relays import Log
from tests.lab import domain
from tests.lab.ca import LabCA
from tests.lab.directory import DirectoryLab
from tests.lab.footprint import DYNAMIC, unread
from tests.lab.net import wait_for
from tests.lab.spoil import empty, fill_with_garbage, put_a_directory
from tests.lab.tickets import skewed

#: How many responses come before the one by which it is told who signs in.
BEFORE = {"PLAIN": 0, "LOGIN": 1, "EXTERNAL": 0, "NTLM": 1, "GSSAPI/NTLM": 1, "GSSAPI": 0, "GSS-SPNEGO": 0}
#: Who of the controller is asked then.
TASK = {**dict.fromkeys(BY_DIRECTORY, "ldap"), **dict.fromkeys(BY_NETLOGON, "rpc")}


@pytest.fixture(scope="module")
def sick() -> Iterator[DirectoryLab]:
    """A domain that may be hurt."""
    with DirectoryLab() as running:
        yield running


@pytest.fixture(scope="module")
def only(sick: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    with joined_relay(sick, tmp_path_factory.mktemp("relay")) as joined:
        yield joined


@pytest.fixture
def joined(only: Joined) -> Iterator[Joined]:
    """The relay, which must be as well after the test as it was before."""
    yield only
    only.mended()


@contextlib.contextmanager
def paused(lab: DirectoryLab, task: str) -> Iterator[Callable[[], None]]:
    """The controller's processes for one *task*, ``ldap``, ``rpc`` or ``dns``, do not run.

    What it gives waits until they were asked something.
    """
    port = {"ldap": 636, "rpc": DYNAMIC, "dns": 53}[task]
    pids = [pid for pid in lab.controller.pids() if f"task[{task}]" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: wait_for(lambda: unread(lab.address, port), f"a question to {task}")
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class TestController:
    @pytest.mark.parametrize("name", BY_NETLOGON)
    def test_killed_between_challenge_and_answer(self, joined: Joined, name: str) -> None:
        log = Log(joined.relay)
        with joined.session() as raw:
            begun = joined.exchanges[name].on(raw, 1)
            assert begun.code == 334
            joined.lab.kill()
            assert begun.answer().startswith(b"454 4.7.0 ")
            assert joined.lab.host in log.one("authentication-failed")["reason"]
            joined.send(raw)
            joined.lab.start()
            wait_for(lambda: joined.code(name) == 235, "well again", 60, interval=0.5)
            assert joined.exchanges[name].on(raw).code == 235  # the session goes on
            joined.send(raw)

    @pytest.mark.parametrize("name", ["PLAIN", "EXTERNAL", *BY_NETLOGON])
    def test_killed_while_it_is_asked(self, joined: Joined, name: str) -> None:
        log = Log(joined.relay)
        with joined.session(name) as raw, paused(joined.lab, TASK[name]) as asked:
            begun = joined.exchanges[name].on(raw, BEFORE[name])
            begun.send(begun.next())
            asked()
            joined.lab.kill()
            assert raw.reply().startswith(b"454 4.7.0 ")
            assert joined.lab.host in log.one("authentication-failed")["reason"]
            joined.send(raw)

    @pytest.mark.parametrize("name", ["PLAIN", "EXTERNAL", *BY_NETLOGON])
    def test_slow(self, joined: Joined, name: str) -> None:
        """Who has to wait is let in all the same."""
        with joined.session(name) as raw:
            begun = joined.exchanges[name].on(raw, BEFORE[name])
            with paused(joined.lab, TASK[name]) as asked:
                begun.send(begun.next())
                asked()
            assert raw.reply().startswith(b"235")

    def test_hangs(self, joined: Joined) -> None:
        """It keeps nobody from what needs no controller."""
        joined.lab.pause()
        with joined.session("PLAIN") as waiting, joined.session("NTLM") as too:
            for name, raw in (("PLAIN", waiting), ("NTLM", too)):
                begun = joined.exchanges[name].on(raw, BEFORE[name])
                begun.send(begun.next())
            for name in BY_TICKET:
                assert joined.code(name) == 235
            joined.send()
            for raw in (waiting, too):
                assert raw.reply().startswith(b"454 4.7.0 ")
                joined.send(raw)
        for name in (*BY_DIRECTORY, *BY_NETLOGON):
            joined.deferred(name, joined.lab.host)

    def test_away(self, joined: Joined) -> None:
        joined.lab.kill()
        for name in (*BY_DIRECTORY, *BY_NETLOGON):
            joined.deferred(name)
        for name in BY_TICKET:
            assert joined.code(name) == 235

    def test_clients_that_leave_while_it_hangs(self, joined: Joined) -> None:
        joined.lab.pause()
        for name in joined.exchanges:
            for leave in (lambda raw: raw.close(), lambda raw: raw.abort()):
                raw = joined.session(name)
                begun = joined.exchanges[name].on(raw, BEFORE[name])
                begun.send(begun.next())
                leave(raw)

    @pytest.mark.parametrize("end", ["hangs", "killed"])
    def test_a_stop_in_the_middle(self, joined: Joined, tmp_path: Path, end: str) -> None:
        """It waits for what is under way, and no longer than that may take."""
        other = joined.twin(tmp_path)
        with other.running(), contextlib.ExitStack() as stack:
            for name in other.exchanges:
                assert other.code(name) == 235
            sessions = [(name, stack.enter_context(other.session(name))) for name in other.exchanges for _ in range(3)]
            begun = [other.exchanges[name].on(raw, BEFORE[name]) for name, raw in sessions]
            other.lab.pause()
            for each in begun[::2]:
                each.send(each.next())
            if end == "killed":
                other.lab.kill()
            assert other.relay.process is not None
            other.relay.process.terminate()
            for _, raw in sessions:
                assert b"421 4.3.2 " in raw.rest()
                raw.close()
            assert other.relay.stop() == -signal.SIGTERM


class TestMachineAccount:
    """It is checked when a channel is opened, hence anew when the controller comes back."""

    NEW = "Changed-elsewhere-{}"

    def renew(self, lab: DirectoryLab, number: int) -> str:
        password = self.NEW.format(number)
        lab.modify(domain.COMPUTER, unicodePwd=f'"{password}"'.encode("utf-16-le"))
        return password

    @pytest.fixture(autouse=True)
    def _as_it_was(self, sick: DirectoryLab, only: Joined, joined: Joined) -> Iterator[None]:
        yield
        only.well()
        password = sick.users[domain.COMPUTER]
        sick.modify(domain.COMPUTER, unicodePwd=f'"{password}"'.encode("utf-16-le"))

    def test_its_password_changed_elsewhere(self, joined: Joined) -> None:
        for number in range(2):  # the one before the last may be good for a while
            password = self.renew(joined.lab, number)
        joined.lab.kill()
        joined.lab.start()
        for name in BY_NETLOGON:
            joined.deferred(name, domain.COMPUTER, joined.lab.host)
        for name in (*BY_DIRECTORY, *BY_TICKET):
            assert joined.code(name) == 235
        joined.secret.write_text(password)
        for name in BY_NETLOGON:
            wait_for(lambda name=name: joined.code(name) == 235, "well again", 30, interval=0.3)  # type: ignore[misc]

    def test_disabled(self, joined: Joined) -> None:
        joined.lab.modify(domain.COMPUTER, userAccountControl=domain.WORKSTATION | domain.DISABLED)
        joined.lab.kill()
        joined.lab.start()
        for name in BY_NETLOGON:
            joined.deferred(name, domain.COMPUTER, joined.lab.host, "c000018b")
        joined.lab.modify(domain.COMPUTER, userAccountControl=domain.WORKSTATION)
        # Another secret is tried at once; test_integrated_faults waits for the same one.
        joined.secret.write_text(self.renew(joined.lab, 2))

    def test_deleted_and_made_again(self, joined: Joined) -> None:
        lab = joined.lab
        lab.administrator().delete(lab.dn(domain.COMPUTER))
        lab.kill()
        lab.start()
        try:
            for name in BY_NETLOGON:
                joined.deferred(name, domain.COMPUTER, lab.host, "c000018b")
        finally:
            account = next(each for each in domain.ACCOUNTS if each.name == domain.COMPUTER)
            again = {
                "objectClass": "computer",
                "sAMAccountName": account.name,
                "unicodePwd": f'"{account.password}"'.encode("utf-16-le"),
                "userAccountControl": domain.WORKSTATION,
            }
            lab.administrator().add(account.dn, attributes=again)
            joined.secret.write_text(self.renew(lab, 3))


SPOILT = [Path.unlink, empty, fill_with_garbage, put_a_directory]


class TestFiles:
    """Files that relayd reads again each time they are needed."""

    @pytest.mark.parametrize("spoil", SPOILT)
    def test_the_keytab(self, joined: Joined, spoil: Callable[[Path], None]) -> None:
        spoil(joined.keytab)
        for name in BY_TICKET:
            joined.deferred(name, str(joined.keytab))
        for name in (*BY_DIRECTORY, *BY_NETLOGON):
            assert joined.code(name) == 235

    def test_the_keytab_goes_in_mid_exchange(self, joined: Joined) -> None:
        """What was begun by its keys goes on."""
        for name in BY_TICKET:
            with joined.session() as raw:
                begun = joined.exchanges[name].on(raw, 1)
                joined.keytab.unlink()
                while begun.code == 334:
                    begun.answer()
                assert begun.code == 235
            joined.mend()

    def test_the_keytab_is_another_accounts(self, joined: Joined) -> None:
        another = joined.directory / "another.keytab"
        another.unlink(missing_ok=True)
        of = f"--principal={domain.COMPUTER}"
        domain.tool(joined.lab.directory, "samba-tool", "domain", "exportkeytab", str(another), of)
        another.replace(joined.keytab)
        for name in BY_TICKET:
            joined.deferred(name, "keytab has no key", "smtp/relay.lab.example@LAB.EXAMPLE")

    @pytest.mark.parametrize("spoil", SPOILT)
    def test_the_secret(self, joined: Joined, spoil: Callable[[Path], None]) -> None:
        spoil(joined.secret)
        # It is read when a channel is opened.
        joined.lab.kill()
        joined.lab.start()
        for name in BY_NETLOGON:
            joined.deferred(name, str(joined.secret))
        for name in (*BY_DIRECTORY, *BY_TICKET):
            wait_for(lambda name=name: joined.code(name) == 235, "well again", 30, interval=0.3)  # type: ignore[misc]


class TestDescriptors:
    def test_none_is_left(self, joined: Joined) -> None:
        """For the sessions that are there: there are no others."""
        joined.lab.kill()
        joined.lab.start()  # so that what was kept is of no use
        sessions = {name: joined.session(name) for name in joined.exchanges}
        pid = joined.footprint.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (10, before[1]))
        try:
            for name, raw in sessions.items():
                log = Log(joined.relay)
                assert joined.exchanges[name].on(raw).code == 454, name
                assert "Too many open files" in log.one("authentication-failed")["reason"]
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for raw in sessions.values():
            joined.send(raw)
            raw.close()


class TestClock:
    def test_a_client_whose_clock_is_wrong(self, joined: Joined) -> None:
        cache = skewed(joined.tickets, 600)
        for exchange in (gssapi_kerberos(cache), gss_spnego(cache)):
            joined.deferred(exchange, "clock skew")


def test_replays_cannot_be_noted(sick: DirectoryLab, only: Joined, tmp_path: Path) -> None:
    """A replay cache that cannot be written; libkrb5 finds it by the relay's environment."""
    joined, cache = only.twin(tmp_path), tmp_path / "noted" / "replays"
    with joined.running(env={"KRB5RCACHENAME": f"file2:{cache}"}):
        for name in BY_TICKET:
            joined.deferred(name, str(cache))
        cache.parent.mkdir()
        for name in BY_TICKET:
            assert joined.code(name) == 235
        cache.unlink()
        cache.mkdir()
        for name in BY_TICKET:
            joined.deferred(name, str(cache))


def test_no_dns(sick: DirectoryLab, only: Joined, tmp_path: Path) -> None:
    """A relay that never learned where its controllers are."""
    joined = only.twin(tmp_path)
    with joined.running():
        with paused(sick, "dns"):
            for name in (*BY_DIRECTORY, *BY_NETLOGON):
                joined.deferred(name, "_ldap._tcp.dc._msdcs.lab.example", "DNS")
            for name in BY_TICKET:
                assert joined.code(name) == 235
        for name in joined.exchanges:
            wait_for(lambda name=name: joined.code(name) == 235, "well again", 60, interval=0.3)  # type: ignore[misc]


def test_another_authority(sick: DirectoryLab, only: Joined, tmp_path: Path) -> None:
    """A relay that does not trust its controllers; what needs no trust in certificates goes on."""
    joined = only.twin(tmp_path)
    with joined.running(ca=LabCA(tmp_path / "other").path):
        for name in BY_DIRECTORY:
            joined.deferred(name, "certificate verify failed", sick.host)
        for name in BY_TICKET:
            assert joined.code(name) == 235
        joined.send()
