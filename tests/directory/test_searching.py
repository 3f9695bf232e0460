"""The keytab's own account searches, by Kerberos; and what happens when Kerberos is what fails."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import krb5
import pytest
from twisted.internet.defer import Deferred, DeferredList

from relayd import settings
from relayd.directory import Directory, Unavailable, User
from relayd.directory.tickets import KerberosError, NoAnswer, Tickets
from relayd.events import ControllerRests, Event, Events
from tests.directory.conftest import StartLab
from tests.lab import domain
from tests.lab.directory import DirectoryLab
from tests.lab.net import free_port, wait_for
from tests.unit.directory.conftest import FakeDns, descriptors, fired
from tests.unit.test_resolver import ThreadedClock

LDAPS = f"ldaps://{domain.HOST}"
CATALOG = f"ldaps://{domain.HOST}:3269"
OWN = f"{domain.COMPUTER}@{domain.REALM}"


class Searching:
    """Clients of a lab's directory that search by a keytab, on a clock that stands still.

    :ivar keytab: holds the computer account's own key.
    :ivar events: what the clients said.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ThreadedClock()
        self.events: list[Event] = []
        self.keytab = folder / "own.keytab"
        self._folder = folder
        self._patch = monkeypatch
        self._made: list[Directory] = []

    def use(self, lab: DirectoryLab) -> None:
        self.lab = lab
        self.export()
        self.configure()

    def export(self, principal: str = domain.COMPUTER) -> None:
        """Puts the keys that the account has now in place of the keytab, in one step."""
        new = self._folder / "new.keytab"
        domain.tool(self.lab.directory, "samba-tool", "domain", "exportkeytab", str(new), f"--principal={principal}")
        os.replace(new, self.keytab)

    def configure(self, kdc: str = "", more: str = "") -> None:
        """Kerberos' configuration.

        :param kdc: where its controller is; empty: where it really is.
        :param more: further lines of ``[libdefaults]``.
        """
        text = self.lab.krb5_conf.read_text()
        if kdc:
            text = text.replace(f"kdc = {self.lab.address}", f"kdc = {kdc}")
        file = self._folder / "krb5.conf"
        file.write_text(text.replace("[libdefaults]\n", f"[libdefaults]\n{more}\n"))
        self._patch.setenv("KRB5_CONFIG", str(file))

    def directory(self, *servers: str, keytab: Path | None = None, timeout: float = 5.0) -> Directory:
        dns = FakeDns()
        for name in (domain.HOST, "dc2.lab.example"):
            dns.known[name] = (ip_address(self.lab.address),)
        told = Events()
        told.subscribe(lambda at, event: self.events.append(event))
        values = settings.Directory(servers=servers or (LDAPS,), ca=self.lab.ca, timeout=timeout, cache=0.0)
        made = Directory(values, dns, self.clock, told, keytab=keytab or self.keytab, clock=self.clock.seconds)
        self._made.append(made)
        return made

    def find(self, directory: Directory, name: str = "alice") -> User:
        user = self.clock.result(directory.find(name), timeout=60)
        assert user is not None
        return user

    def fails(self, directory: Directory) -> str:
        """Why *directory* cannot be asked."""
        with pytest.raises(Unavailable) as caught:
            self.clock.result(directory.find("alice"), timeout=60)
        assert str(caught.value.reply).startswith("454 4.7.0")
        return str(caught.value)

    def close(self) -> None:
        for each in self._made:
            self.clock.result(fired(each.close()), timeout=60)
        self._made.clear()


@pytest.fixture
def searching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Searching]:
    made = Searching(tmp_path, monkeypatch)
    yield made
    made.close()
    wait_for(lambda: not any("directory" in thread.name for thread in threading.enumerate()), "the threads ended")


@pytest.fixture
def joined(searching: Searching, lab: DirectoryLab) -> Searching:
    """In the domain that all tests share."""
    searching.use(lab)
    return searching


class TestWell:
    def test_it_searches(self, joined: Searching) -> None:
        directory = joined.directory()
        alice = joined.find(directory)
        assert alice.upn == "alice@lab.example"
        assert {"Relay Users", "LAB\\Staff"} <= alice.groups
        assert directory.searcher == OWN

    def test_groups_by_sid(self, joined: Searching) -> None:
        directory = joined.directory()
        (staff,) = [sid for sid in joined.find(directory).group_sids if _is_called(joined, directory, sid, "Staff")]
        named = joined.clock.result(directory.named_groups([staff]))
        assert named == {staff, "Staff", "LAB\\Staff", joined.lab.dn("Staff")}

    def test_passwords_are_still_bound(self, joined: Searching) -> None:
        directory = joined.directory()
        alice = joined.find(directory)
        assert joined.clock.result(directory.verify(alice, joined.lab.users["alice"].encode())) is None

    def test_a_ticket_serves_many_connections(self, joined: Searching) -> None:
        directory = joined.directory()
        joined.find(directory)
        joined.configure(kdc=f"127.0.0.1:{free_port()}")  # nobody is there
        joined.clock.advance(61)  # idle connections end
        wait_for(lambda: _age(directory), "connections aged", interval=0.01)
        assert joined.find(directory, "bob").name == "bob"

    def test_nothing_is_left(self, joined: Searching) -> None:
        joined.find(joined.directory())  # what libraries open once
        joined.close()
        before = descriptors()
        for _ in range(3):
            joined.find(joined.directory())
            joined.close()
        wait_for(lambda: descriptors() <= before, "descriptors closed")

    def test_probe(self, joined: Searching) -> None:
        (probe,) = joined.clock.result(joined.directory().probe())
        assert not probe.fault
        assert min(probe.connect, probe.bind, probe.search) > 0
        assert probe.expires > time.time()


def _asking() -> list[threading.Thread]:
    """The threads that wait for Kerberos."""
    return [thread for thread in threading.enumerate() if thread.name == "directory tickets"]


def _is_called(searching: Searching, directory: Directory, sid: str, name: str) -> bool:
    return name in searching.clock.result(directory.named_groups([sid]))


def _age(directory: Directory) -> bool:
    """Ends idle connections as time does."""
    return directory._controllers.prune(time.monotonic() + 1) == 0


class TestCatalog:
    """Samba's has one domain; what several change is tested without a controller."""

    @pytest.mark.parametrize("name", ["alice", "LAB\\alice", "alice@lab.example", "alice@LAB"])
    def test_users(self, joined: Searching, name: str) -> None:
        alice = joined.find(joined.directory(CATALOG), name)
        assert alice == joined.find(joined.directory(), name)

    def test_recipients_and_suffixes(self, joined: Searching) -> None:
        directory = joined.directory(CATALOG)
        assert joined.clock.result(directory.has_recipient("sales@corp.example"))
        assert not joined.clock.result(directory.has_recipient("nobody@corp.example"))
        assert joined.find(directory, "carol@corp.example").name == "carol"

    def test_the_whole_forest_is_searched(self, joined: Searching) -> None:
        own = joined.clock.result(joined.directory(CATALOG).domain())
        assert (own.base, own.root, own.netbios, own.others) == ("", domain.BASE_DN, "LAB", ())


class TestKeytab:
    def test_without_the_accounts_own_key(self, joined: Searching) -> None:
        why = joined.fails(joined.directory(keytab=joined.lab.keytab))
        assert "no key of an account's own" in why
        assert f"smtp/{domain.RELAY}@{domain.REALM}" in why
        assert not joined.events  # no controller is to blame

    @pytest.mark.parametrize("content", [None, b"", b"\5\2", b"\5\2\0\0\0\x20garbage", b"no keytab\n"])
    def test_no_keytab(self, joined: Searching, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "other.keytab"
        if content is not None:
            file.write_bytes(content)
        assert str(file) in joined.fails(joined.directory(keytab=file))
        assert not joined.events

    def test_the_systems_own(self, joined: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KRB5_KTNAME", f"FILE:{joined.keytab}")
        directory = joined.directory()
        made = Directory(directory.settings, FakeDns(), joined.clock, Events(), clock=joined.clock.seconds)
        assert OWN in (made._connector._searcher._account.secret() and made.searcher)
        joined.clock.result(fired(made.close()))

    def test_one_that_appears_is_used(self, joined: Searching) -> None:
        kept = joined.keytab.rename(joined.keytab.with_suffix(".away"))
        directory = joined.directory()
        assert "No such file" in joined.fails(directory)
        kept.rename(joined.keytab)
        assert joined.find(directory)

    def test_services_come_before_the_account(self, joined: Searching) -> None:
        shutil.copy(joined.lab.keytab, joined.keytab)
        domain.tool(
            joined.lab.directory,
            *("samba-tool", "domain", "exportkeytab", str(joined.keytab), f"--principal={domain.COMPUTER}"),
        )
        directory = joined.directory()
        joined.find(directory)
        assert directory.searcher == OWN


class TestKdc:
    """Kerberos is away, and the directory is there."""

    def test_away(self, joined: Searching) -> None:
        joined.configure(kdc=f"127.0.0.1:{free_port()}")
        directory = joined.directory()
        assert "Cannot contact any KDC" in joined.fails(directory)
        assert "not tried again yet" in joined.fails(directory)
        assert not joined.events
        joined.configure()
        joined.clock.advance(5)
        assert joined.find(directory)

    def test_it_hangs(self, joined: Searching) -> None:
        """Whoever asks hears in time, however many there are; no controller of the directory rests for it."""
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            joined.configure(kdc=f"127.0.0.1:{hanging.getsockname()[1]}")
            directory = joined.directory(timeout=1.0)
            asked: list[Deferred[Any]]
            asked = [Deferred.fromCoroutine(directory.find(f"user{number}")) for number in range(8)]
            results = joined.clock.result(fired(DeferredList(asked, consumeErrors=True)), timeout=30)
            assert all(not success and failure.check(Unavailable) for success, failure in results)
            assert any("no answer from Kerberos" in str(failure.value) for _, failure in results)
            assert "not tried again yet" in joined.fails(directory)
            assert len(_asking()) == 1
            joined.clock.advance(5)
            assert "no answer from Kerberos" in joined.fails(directory)
            assert len(_asking()) == 1
            joined.configure()
        # It was hung up on, so it gives up.
        wait_for(
            lambda: not any(t.name == "directory tickets" for t in threading.enumerate()), "the end of the wait", 60
        )
        joined.clock.advance(61)
        assert joined.find(directory)

    def test_a_controller_that_kerberos_does_not_know(self, joined: Searching) -> None:
        """Its certificate is good, and it is no account: another controller does."""
        directory = joined.directory("ldaps://dc2.lab.example", LDAPS)
        assert joined.find(directory)
        (rests,) = joined.events
        assert isinstance(rests, ControllerRests)
        assert "ldap/dc2.lab.example" in rests.reason

    def test_starttls_is_no_way(self, joined: Searching) -> None:
        assert "on LDAPS alone" in joined.fails(joined.directory(f"ldap://{domain.HOST}"))


class TestTime:
    """Tickets end, and nobody notices."""

    @pytest.fixture
    def tickets(self, joined: Searching) -> Iterator[Tickets]:
        made = Tickets(OWN, f"FILE:{joined.keytab}")
        _initiate(made)
        yield made
        made.forget()

    def test_new_ones_come_at_half_time(self, joined: Searching, tickets: Tickets) -> None:
        context = krb5.init_context()
        cache = krb5.cc_resolve(context, tickets.cache.encode())

        def due() -> float:
            return float(krb5.cc_get_config(context, cache, None, b"refresh_time"))

        def make_due() -> None:
            krb5.cc_set_config(context, cache, None, b"refresh_time", None)  # type: ignore[arg-type]  # None: removed
            krb5.cc_set_config(context, cache, None, b"refresh_time", b"%d" % (time.time() - 1))

        assert due() > time.time() + 3600
        make_due()
        joined.configure(kdc=f"127.0.0.1:{free_port()}")
        _initiate(tickets)  # the old ones are still good
        assert due() < time.time() + 60
        make_due()
        joined.configure()
        _initiate(tickets)
        assert due() > time.time() + 3600

    def test_what_has_ended_is_got_again(self, joined: Searching, tickets: Tickets) -> None:
        context = krb5.init_context()
        options = krb5.get_init_creds_opt_alloc(context)
        krb5.get_init_creds_opt_set_tkt_life(options, 1)
        principal = krb5.parse_name_flags(context, OWN.encode())
        keys = krb5.kt_resolve(context, f"FILE:{joined.keytab}".encode())
        short = krb5.get_init_creds_keytab(context, principal, options, keys)
        cache = krb5.cc_resolve(context, tickets.cache.encode())
        krb5.cc_initialize(context, cache, principal)
        krb5.cc_store_cred(context, cache, short)
        wait_for(lambda: time.time() > short.times.endtime, "the end of the ticket")
        _initiate(tickets)

    def test_forgotten_ones_are_got_again(self, joined: Searching, tickets: Tickets) -> None:
        tickets.forget()
        joined.configure(kdc=f"127.0.0.1:{free_port()}")
        with pytest.raises(KerberosError, match="Cannot contact any KDC"):
            _initiate(tickets)
        joined.configure()
        _initiate(tickets)


def _initiate(tickets: Tickets) -> None:
    _, token = tickets.initiate(domain.HOST, None, time.monotonic() + 30)
    assert token


class TestAccount:
    """Each has a domain of its own: the account changes."""

    @pytest.fixture
    def own(self, searching: Searching, start_lab: StartLab) -> Searching:
        searching.use(start_lab())
        return searching

    def test_a_password_that_was_rotated(self, own: Searching) -> None:
        directory = own.directory()
        own.find(directory)
        _set_password(own.lab, "Rotated-relay01-1")
        assert own.find(directory, "bob")  # the open connection, and the ticket, are still good
        late = own.directory()
        assert "52e" in own.fails(late)
        assert "not tried again yet" in own.fails(late)
        assert own.lab.bad_password_count(domain.COMPUTER) <= 1
        assert not own.events
        own.export()
        assert own.find(late)
        assert own.find(directory)

    def test_disabled(self, own: Searching) -> None:
        own.lab.modify(domain.COMPUTER, userAccountControl=0x1002)
        directory = own.directory()
        assert "533" in own.fails(directory)
        own.lab.modify(domain.COMPUTER, userAccountControl=0x1000)
        own.clock.advance(60)  # and not a quarter of an hour
        assert own.find(directory)

    def test_deleted_and_made_again(self, own: Searching) -> None:
        """The kept tickets are of an account that is no more."""
        directory = own.directory()
        own.find(directory)
        dn = own.lab.dn(domain.COMPUTER)
        own.lab.administrator().delete(dn)
        _age(directory)
        own.lab.administrator().add(
            dn,
            "computer",
            {
                "sAMAccountName": domain.COMPUTER,
                "userAccountControl": 0x1000,
                "unicodePwd": '"Again-relay01-1"'.encode("utf-16-le"),
                "msDS-SupportedEncryptionTypes": domain.AES,
            },
        )
        own.export()
        assert own.find(directory)

    def test_a_controller_that_dies_and_comes_back(self, own: Searching) -> None:
        directory = own.directory()
        own.find(directory)
        own.lab.kill()
        own.fails(directory)
        own.lab.start()
        own.clock.advance(61)
        assert own.find(directory)

    def test_a_controller_that_hangs(self, own: Searching) -> None:
        directory = own.directory(timeout=1.0)
        own.find(directory)
        own.lab.pause()
        assert "timed out" in own.fails(directory)
        own.lab.resume()
        own.clock.advance(61)
        assert own.find(directory)


def _set_password(lab: DirectoryLab, password: str) -> None:
    lab.modify(domain.COMPUTER, unicodePwd=f'"{password}"'.encode("utf-16-le"))


def test_somebody_who_waits_does_not_wait_for_ever() -> None:
    """The thread that asks Kerberos does not keep the process from ending."""
    # libkrb5 waits half a minute; a daemon that stops does not.

    started, go_on = threading.Event(), threading.Event()

    class Slow(Tickets):
        def _initiate(self, host: str, binding: object) -> tuple[object, bytes]:
            started.set()
            go_on.wait(60)
            return None, b""

    tickets = Slow(OWN, "FILE:/nonexistent")
    try:
        with pytest.raises(NoAnswer):
            tickets.initiate("dc1", None, time.monotonic() + 0.05)
        assert started.is_set()
        with pytest.raises(NoAnswer):
            tickets.initiate("dc1", None, time.monotonic() + 0.05)
        assert [thread.daemon for thread in _asking()] == [True]
    finally:
        go_on.set()
    wait_for(lambda: not _asking(), "its end")
    assert tickets.initiate("dc1", None, time.monotonic() + 10) == (None, b"")
