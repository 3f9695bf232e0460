"""One channel for all, opened where it is not: controllers that fail, rest and are asked again."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults

from relayd import settings
from relayd.directory import Domain, Unavailable
from relayd.events import ControllerRests, Event, Events
from relayd.model import Fault, IPAddress
from relayd.netlogon import Logon, LogonRefused, Netlogon, netlogon_missing
from relayd.netlogon import netlogon as module
from relayd.netlogon.faults import CannotTell, ChannelFault, MachineFault
from relayd.netlogon.logon import NetworkLogon
from tests.lab.net import wait_for
from tests.unit.directory.conftest import fired
from tests.unit.test_resolver import ThreadedClock

ALICE = Logon("alice", "LAB", "S-1-5-21-1-2-3-1103", frozenset(), bytes(range(16)))
ANSWER = bytes(16) + b"\x01\x01" + bytes(60)


class FakeController:
    """What it does next: each item is a fault to raise or a call to make; without one it answers."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.opening: list[Any] = []
        self.answering: list[Any] = []
        self.channels: list[FakeChannel] = []
        self.passwords: list[bytes] = []

    def open(self, password: bytes, until: float) -> FakeChannel:
        self.passwords.append(password)
        _next(self.opening, until)
        self.channels.append(FakeChannel(self))
        return self.channels[-1]


class FakeChannel:
    def __init__(self, controller: FakeController) -> None:
        self.host = controller.host
        self.used = time.monotonic()
        self.stale = False
        self.closed = False
        self.threads: set[int] = set()
        self.logons: list[NetworkLogon] = []
        self._controller = controller
        self._aborted = threading.Event()

    def logon(self, asked: NetworkLogon, until: float) -> Logon:
        assert not self.closed
        self.threads.add(threading.get_ident())
        self.logons.append(asked)
        _next(self._controller.answering, until, self._aborted)
        return ALICE

    def confirm(self, until: float) -> None:
        assert not self.closed
        _next(self._controller.answering, until, self._aborted)

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        self.closed = True


def _next(script: list[Any], until: float, aborted: threading.Event | None = None) -> None:
    if not script:
        return
    step = script.pop(0)
    if isinstance(step, Exception):
        raise step
    step(until, aborted or threading.Event())


def hangs(until: float, aborted: threading.Event) -> None:
    if aborted.wait(max(0.0, until - time.monotonic())):
        raise ChannelFault("aborted", asked=1)
    raise ChannelFault("timed out", timed_out=True, asked=1)


def lost() -> ChannelFault:
    return ChannelFault("connection lost", asked=1)


class FakeForest:
    """Knows the controllers, and opens channels to them."""

    def __init__(self) -> None:
        self.settings = settings.Directory(domain="lab.example", timeout=5.0)
        self.dc1, self.dc2 = FakeController("dc1"), FakeController("dc2")
        self.broken = False
        self.asked = 0
        self.domains: list[str] = []

    async def hosts(self) -> tuple[tuple[str, tuple[IPAddress, ...]], ...]:
        self.asked += 1
        if self.broken:
            raise Unavailable("DNS is broken")
        return (("dc1", (IPv4Address("192.0.2.1"),)), ("dc2", (IPv4Address("192.0.2.2"),)))

    async def domain(self) -> Domain:
        if self.broken:
            raise Unavailable("LDAP is broken")
        return Domain("DC=lab,DC=example", "DC=lab,DC=example", dns="lab.example", netbios="LAB")

    def opens(
        self, host: str, address: IPAddress, account: str, domain: str, password: bytes, until: float
    ) -> FakeChannel:
        assert account == "RELAY01$"
        self.domains.append(domain)
        controller = self.dc1 if host == "dc1" else self.dc2
        assert str(address)[-1] == host[-1]
        return controller.open(password, until)


@pytest.fixture
def forest() -> FakeForest:
    return FakeForest()


@pytest.fixture
def clock() -> ThreadedClock:
    return ThreadedClock()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("secret\n")
    return file


Make = Callable[..., Netlogon]


@pytest.fixture
def make(forest: FakeForest, clock: ThreadedClock, events: list[Event], secret: Path) -> Iterator[Make]:
    made: list[Netlogon] = []

    def make_one(computer: str = "RELAY01$", **more: Any) -> Netlogon:
        told = Events()
        told.subscribe(lambda at, event: events.append(event))
        values = settings.Ntlm(computer=computer, secret_file=secret)
        made.append(Netlogon(forest, values, clock, told, clock=clock.seconds, opens=forest.opens, **more))
        return made[-1]

    yield make_one
    for netlogon in made:
        clock.result(fired(netlogon.close()), timeout=30)
    wait_for(lambda: not any("netlogon" in thread.name for thread in threading.enumerate()), "the threads ended")
    assert all(channel.closed for dc in (forest.dc1, forest.dc2) for channel in dc.channels)


@pytest.fixture
def netlogon(make: Make) -> Netlogon:
    return make()


async def ask(netlogon: Netlogon) -> Logon:
    return await netlogon.logon("alice", "LAB", "PC1", bytes(8), ANSWER, bytes(24))


class TestOneChannel:
    def test_is_kept(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        for _ in range(3):
            assert clock.result(ask(netlogon)) == ALICE
        (channel,) = forest.dc1.channels
        assert len(channel.logons) == netlogon.logons == 3
        assert forest.asked == 1
        assert not forest.dc2.channels

    def test_serves_many_at_once_one_after_the_other(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        all_of_them = gatherResults([Deferred.fromCoroutine(ask(netlogon)) for _ in range(50)])
        assert clock.result(fired(all_of_them)) == [ALICE] * 50
        (channel,) = forest.dc1.channels
        assert len(channel.threads) == 1

    def test_too_many_at_once_hear_so_at_once(self, forest: FakeForest, clock: ThreadedClock, make: Make) -> None:
        netlogon = make(waiting=1)
        gate = threading.Event()
        forest.dc1.answering = [lambda until, aborted: gate.wait(10)]
        first = [Deferred.fromCoroutine(ask(netlogon)) for _ in range(2)]
        with pytest.raises(Fault) as caught:
            clock.result(ask(netlogon))
        assert caught.value.reply.code == 454
        gate.set()
        assert clock.result(fired(gatherResults(first))) == [ALICE, ALICE]

    def test_a_stale_one_is_opened_anew(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        clock.result(ask(netlogon))
        forest.dc1.channels[0].stale = True
        assert clock.result(ask(netlogon)) == ALICE
        assert forest.dc1.channels[0].closed
        assert len(forest.dc1.channels) == 2

    def test_one_that_was_idle_for_long_is_opened_anew(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        clock.result(ask(netlogon))
        forest.dc1.channels[0].used -= module.IDLE + 1
        assert clock.result(ask(netlogon)) == ALICE
        assert [channel.closed for channel in forest.dc1.channels] == [True, False]

    def test_the_computer_may_be_written_without_its_dollar(self, make: Make) -> None:
        assert make(computer="RELAY01").account == "RELAY01$"

    def test_the_domain_by_netbios_name_before_dns_name(
        self, forest: FakeForest, clock: ThreadedClock, make: Make
    ) -> None:
        clock.result(ask(make()))
        forest.settings = settings.Directory(domain="lab.example", netbios="LAB")
        clock.result(ask(make()))
        forest.settings = settings.Directory(servers=("ldaps://dc1",))
        clock.result(ask(make()))
        assert forest.domains == ["lab.example", "LAB", "LAB"]


class TestVerdicts:
    def test_a_refusal(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon, events: list[Event]) -> None:
        forest.dc1.answering = [LogonRefused(0xC000006A, "wrong password", True)]
        with pytest.raises(LogonRefused, match="c000006a"):
            clock.result(ask(netlogon))
        assert clock.result(ask(netlogon)) == ALICE  # on the same channel
        assert len(forest.dc1.channels) == 1
        assert events == []

    def test_an_account_of_a_domain_out_of_reach(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon, events: list[Event]
    ) -> None:
        # A client chooses the name of the domain, so nothing rests for it.
        forest.dc1.answering = [CannotTell("c000005e no logon server")]
        with pytest.raises(Unavailable, match="no logon server") as caught:
            clock.result(ask(netlogon))
        assert caught.value.reply.code == 454
        assert clock.result(ask(netlogon)) == ALICE
        assert (len(forest.dc1.channels), events) == (1, [])

    def test_no_account_is_not_asked_about(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        with pytest.raises(LogonRefused, match="anonymous"):
            clock.result(netlogon.logon("", "", "", bytes(8), ANSWER, b""))
        assert not forest.dc1.channels


class TestFailover:
    def test_to_another_controller(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon, events: list[Event]
    ) -> None:
        forest.dc1.opening = [ChannelFault("dc1: connection refused")]
        assert clock.result(ask(netlogon)) == ALICE
        assert len(forest.dc2.channels) == 1
        wait_for(lambda: clock.result(netlogon.check()) == "" and events, "the event")
        (event,) = events
        assert isinstance(event, ControllerRests)
        assert (event.host, event.reason) == ("netlogon dc1", "dc1: connection refused")

    def test_in_mid_call(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        clock.result(ask(netlogon))
        forest.dc1.answering = [lost()]
        forest.dc1.opening = [ChannelFault("dc1: connection refused")]
        assert clock.result(ask(netlogon)) == ALICE
        assert forest.dc1.channels[0].closed
        assert len(forest.dc2.channels) == 1

    def test_a_refusal_tells_of_what_had_no_answer_before_it(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        forest.dc1.answering = [lost(), LogonRefused(0xC000006A, "wrong password", True)]
        with pytest.raises(LogonRefused) as caught:
            clock.result(ask(netlogon))
        assert caught.value.unanswered == 1

    def test_one_that_hangs_leaves_time_for_another(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        forest.settings = settings.Directory(domain="lab.example", timeout=0.5)
        clock.result(ask(netlogon))
        forest.dc1.answering = [hangs]
        assert clock.result(ask(netlogon)) == ALICE
        assert len(forest.dc2.channels) == 1  # dc1 is not tried first again

    def test_a_logon_is_asked_twice_at_most(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        forest.dc1.answering = [lost() for _ in range(5)]
        forest.dc2.answering = [lost() for _ in range(5)]
        with pytest.raises(Unavailable) as caught:
            clock.result(ask(netlogon))
        assert caught.value.asked == 2
        assert len(forest.dc1.answering) + len(forest.dc2.answering) == 8

    def test_all_hang(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        forest.settings = settings.Directory(domain="lab.example", timeout=0.3)
        forest.dc1.answering = [hangs] * 9
        forest.dc2.answering = [hangs] * 9
        with pytest.raises(Unavailable) as caught:
            clock.result(ask(netlogon))
        assert caught.value.reply.code == 454
        assert 1 <= caught.value.asked <= 2

    def test_those_behind_one_that_hangs_are_not_to_blame_for_it(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        forest.settings = settings.Directory(domain="lab.example", timeout=0.3)
        forest.dc1.answering = [hangs] * 9
        forest.dc2.answering = [hangs] * 9
        results: list[Any] = []
        for _ in range(5):
            Deferred.fromCoroutine(ask(netlogon)).addErrback(lambda failure: results.append(failure.value))
        with pytest.raises(Unavailable):
            clock.result(ask(netlogon))
        assert len(results) == 5
        assert {type(result) for result in results} == {Unavailable}

    def test_controllers_that_rest_are_not_tried(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        forest.dc1.opening = [ChannelFault("dc1: refused") for _ in range(9)]
        forest.dc2.opening = [ChannelFault("dc2: refused")]
        for _ in range(3):
            with pytest.raises(Unavailable, match="dc1: refused; dc2: refused"):
                clock.result(ask(netlogon))
        assert (len(forest.dc1.passwords), len(forest.dc2.passwords)) == (1, 1)
        clock.advance(module.FIRST_REST)
        assert clock.result(ask(netlogon)) == ALICE
        assert (len(forest.dc1.passwords), len(forest.dc2.passwords)) == (2, 2)

    def test_nobody_knows_the_controllers(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        forest.broken = True
        with pytest.raises(Unavailable, match="DNS is broken"):
            clock.result(ask(netlogon))
        assert "DNS is broken" in clock.result(netlogon.check())

    def test_what_was_asked_counts_though_nobody_knows_another_one(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        clock.result(ask(netlogon))
        forest.broken = True
        forest.dc1.answering = [lost()]
        with pytest.raises(Unavailable, match="DNS is broken") as caught:
            clock.result(ask(netlogon))
        assert caught.value.asked == 1

    def test_an_open_channel_needs_nobody_who_knows(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        clock.result(ask(netlogon))
        forest.broken = True
        assert clock.result(ask(netlogon)) == ALICE


class TestMachineAccount:
    def test_refused_it_is_our_fault_and_not_tried_again_at_once(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon, events: list[Event]
    ) -> None:
        forest.dc1.opening = [MachineFault("dc1 refuses RELAY01$: c0000022 access denied")]
        forest.dc2.opening = [MachineFault("dc2 refuses RELAY01$: c0000022 access denied")]
        for _ in range(3):
            with pytest.raises(Unavailable, match="access denied") as caught:
                clock.result(ask(netlogon))
            assert caught.value.reply.code == 454
        assert forest.dc1.passwords == [b"secret"]
        assert events == []  # no controller is to blame
        clock.advance(3600)
        assert clock.result(ask(netlogon)) == ALICE

    def test_a_controller_that_does_not_know_the_new_password_yet(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        forest.dc1.opening = [MachineFault("dc1 refuses RELAY01$: c0000022 access denied")]
        assert clock.result(ask(netlogon)) == ALICE
        assert len(forest.dc2.channels) == 1

    def test_a_new_secret_is_tried_at_once(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon, secret: Path
    ) -> None:
        forest.dc1.opening = [MachineFault("dc1 refuses RELAY01$")]
        forest.dc2.opening = [MachineFault("dc2 refuses RELAY01$")]
        with pytest.raises(Unavailable):
            clock.result(ask(netlogon))
        secret.write_text("another")
        assert clock.result(ask(netlogon)) == ALICE
        assert forest.dc1.passwords == [b"secret", b"another"]

    def test_no_secret(self, clock: ThreadedClock, netlogon: Netlogon, secret: Path) -> None:
        secret.unlink()
        with pytest.raises(Unavailable, match=f"{secret}: No such file"):
            clock.result(ask(netlogon))

    @pytest.mark.parametrize("more", [{"computer": ""}, {"secret_file": None}])
    def test_half_configured(
        self, forest: FakeForest, clock: ThreadedClock, secret: Path, more: dict[str, Any]
    ) -> None:
        values = settings.Ntlm(**{"computer": "RELAY01$", "secret_file": secret, **more})
        with pytest.raises(ValueError, match=r"ntlm\.computer and ntlm\.secret_file"):
            Netlogon(forest, values, clock, Events())


class TestCheck:
    def test_opens_a_channel(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        assert clock.result(netlogon.check()) == ""
        assert len(forest.dc1.channels) == 1

    def test_says_why_not(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        forest.dc1.opening = forest.dc2.opening = [ChannelFault("refused"), ChannelFault("refused")]
        assert "refused" in clock.result(netlogon.check())

    def test_another_process_with_the_same_account(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        # It moved the authenticator on: a new channel does.
        clock.result(ask(netlogon))
        forest.dc1.answering = [ChannelFault("NetrLogonGetCapabilities: c0000022 access denied")]
        assert clock.result(netlogon.check()) == ""


class TestDomain:
    def test_as_the_directory_says(self, clock: ThreadedClock, netlogon: Netlogon) -> None:
        assert clock.result(netlogon.domain()).netbios == "LAB"

    def test_as_it_is_written_where_the_directory_says_nothing(
        self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon
    ) -> None:
        forest.broken = True
        with pytest.raises(Unavailable):
            clock.result(netlogon.domain())
        forest.settings = settings.Directory(domain="lab.example", netbios="CORP")
        domain = clock.result(netlogon.domain())
        assert (domain.netbios, domain.dns) == ("CORP", "lab.example")


class TestClose:
    def test_ends_what_waits(self, forest: FakeForest, clock: ThreadedClock, netlogon: Netlogon) -> None:
        forest.settings = settings.Directory(domain="lab.example", timeout=60.0)
        clock.result(ask(netlogon))
        reached = threading.Event()

        def hang(until: float, aborted: threading.Event) -> None:
            reached.set()
            hangs(until, aborted)

        forest.dc1.answering = [hang]
        failed: list[Any] = []
        Deferred.fromCoroutine(ask(netlogon)).addErrback(failed.append)
        assert reached.wait(10)
        clock.result(fired(netlogon.close()), timeout=10)
        assert forest.dc1.channels[0].closed
        (failure,) = failed
        assert failure.check(Unavailable)
        with pytest.raises(Unavailable, match="closed"):
            clock.result(ask(netlogon))


@pytest.fixture
def without_impacket(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host without the extra."""
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "impacket" else there(name))
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "impacket"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "impacket", None)
    for using in ("channel", "rpc", "sealing"):
        monkeypatch.delitem(sys.modules, f"relayd.netlogon.{using}", raising=False)


@pytest.mark.usefixtures("without_impacket")
class TestWithoutImpacket:
    def test_it_is_said_what_is_missing(self) -> None:
        assert netlogon_missing() == "Netlogon needs the extra relayd[netlogon] (impacket)"

    def test_asked_all_the_same_it_is_our_fault(self, forest: FakeForest, clock: ThreadedClock, secret: Path) -> None:
        values = settings.Ntlm(computer="RELAY01$", secret_file=secret)
        netlogon = Netlogon(forest, values, clock, Events(), clock=clock.seconds)
        with pytest.raises(Unavailable, match="impacket"):
            clock.result(ask(netlogon))
        assert "impacket" in clock.result(netlogon.check())
        clock.result(fired(netlogon.close()))

    def test_importing_needs_none(self) -> None:
        # In a process of its own, where nothing of it was imported before.
        program = "import sys; sys.modules['impacket'] = None; import relayd.netlogon, relayd.auth.ntlm_netlogon"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object())
    assert netlogon_missing() == ""
