"""The secure channel to a real controller: its verdicts, and what becomes of them when either side fails."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import spnego
from twisted.internet.defer import Deferred, gatherResults

from relayd import settings
from relayd.auth.ntlm import NtlmAccount, NtlmRefused
from relayd.auth.ntlm_messages import exported_session_key, message_mic, parse_authenticate
from relayd.auth.ntlm_netlogon import NetlogonBackend
from relayd.directory import Domain, Unavailable
from relayd.events import ControllerRests, Event, Events
from relayd.model import IPAddress
from relayd.netlogon import Netlogon
from tests.directory.conftest import StartLab
from tests.directory.rpc_proxy import RpcProxy, operation
from tests.lab import domain as contents
from tests.lab.directory import DirectoryLab
from tests.lab.net import wait_for
from tests.unit.directory.conftest import descriptors, fired
from tests.unit.test_resolver import ThreadedClock

#: Seconds for one logon where nothing is wrong, and where somebody does not answer.
TIMEOUT, SHORT = 20.0, 1.0
#: NetrLogonSamLogonEx (MS-NRPC 3.5.4).
LOGON = 39
#: Seconds that a test waits at most.
PATIENCE = 60.0


class LabControllers:
    """Knows the controllers of labs, under the names dc1 and dc2."""

    def __init__(self, *labs: DirectoryLab, timeout: float = TIMEOUT) -> None:
        self.settings = settings.Directory(domain=contents.DOMAIN, netbios=contents.NETBIOS, timeout=timeout)
        self.addresses = {f"dc{number}": IPv4Address(lab.address) for number, lab in enumerate(labs, 1)}

    async def hosts(self) -> tuple[tuple[str, tuple[IPAddress, ...]], ...]:
        return tuple((host, (address,)) for host, address in self.addresses.items())

    async def domain(self) -> Domain:
        return Domain(contents.BASE_DN, contents.BASE_DN, dns=contents.DOMAIN, netbios=contents.NETBIOS)


class Relay:
    """Asks controllers about what clients answer.

    :ivar secret: the file that has the machine account's password.
    """

    def __init__(self, controllers: LabControllers, secret: Path) -> None:
        self.controllers = controllers
        self.clock = ThreadedClock()
        self.secret = secret
        self.secret.write_text(contents.USERS[contents.COMPUTER])
        self.events: list[Event] = []
        told = Events()
        told.subscribe(lambda at, event: self.events.append(event))
        values = settings.Ntlm(computer=contents.COMPUTER, secret_file=secret)
        self.netlogon = Netlogon(controllers, values, self.clock, told, clock=self.clock.seconds)
        self.backend = NetlogonBackend(self.netlogon, contents.RELAY, time.time)

    async def answer(self, user: str, password: str) -> NtlmAccount:
        client = spnego.client(user, password, protocol="ntlm")
        exchange = await self.backend.begin(client.step() or b"")
        authenticate = client.step(exchange.challenge) or b""
        account = await exchange.verify(authenticate)
        message = parse_authenticate(authenticate)
        key = exported_session_key(account.session_key, message)
        assert message.mic
        assert message_mic(key, exchange.negotiate, exchange.challenge, message) == message.mic
        return account

    def logon(self, user: str, password: str) -> NtlmAccount:
        return self.clock.result(self.answer(user, password), PATIENCE)

    def check(self) -> str:
        return self.clock.result(self.netlogon.check(), PATIENCE)

    def close(self) -> None:
        self.clock.result(fired(self.netlogon.close()), PATIENCE)


MakeRelay = Callable[..., Relay]


@pytest.fixture
def make_relay(tmp_path: Path) -> Iterator[MakeRelay]:
    """Makes relays, each of which must leave no thread and no descriptor behind."""
    made: list[Relay] = []

    def make(*labs: DirectoryLab, timeout: float = TIMEOUT) -> Relay:
        made.append(Relay(LabControllers(*labs, timeout=timeout), tmp_path / f"secret-{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        each.close()
    wait_for(lambda: not any("netlogon" in thread.name for thread in threading.enumerate()), "the threads ended")
    assert not _connections_to_rpc()


def _connections_to_rpc() -> list[str]:
    """Sockets of this process whose other end is a port that a controller has for RPC, or its endpoint mapper."""
    own = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            own.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    found = []
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port = int(fields[2].rpartition(":")[2], 16)
        if f"socket:[{fields[9]}]" in own and (port == 135 or 49152 <= port < 49252):
            found.append(line)
    return found


#: account state x password -> what is said of it, and whether the directory counted a failure.
GOLDEN = [
    ("bob", "wrong", "c000006a wrong password", 1),
    ("disabled", None, "c0000072 account disabled", 0),
    ("expired", None, "c0000193 account expired", 0),
    ("lapsed", None, "c0000071 password expired", 0),
    ("mustchange", None, "c0000224 password must be changed", 0),
    ("nights", None, "c000006f not at this time of day", 0),
    ("locked", None, "c0000234 account locked", 0),
    ("locked", "wrong", "c0000234 account locked", 0),
]


class TestAccountStates:
    @pytest.mark.parametrize(("name", "password", "reason", "counted"), GOLDEN)
    def test_each_state(
        self,
        spoilt: DirectoryLab,
        make_relay: MakeRelay,
        name: str,
        password: str | None,
        reason: str,
        counted: int,
    ) -> None:
        before = spoilt.bad_password_count(name)
        with pytest.raises(NtlmRefused) as caught:
            make_relay(spoilt).logon(f"LAB\\{name}", spoilt.users[name] if password is None else password)
        assert str(caught.value) == reason
        # What relayd counts is what the directory counts.
        assert spoilt.bad_password_count(name) - before == counted == caught.value.wrong_password

    @pytest.mark.parametrize(
        "name", ["LAB\\nobody", "nobody@lab.example", "OTHER\\alice", "LAB\\Engineers", "\U0001f600"]
    )
    def test_unknown(self, lab: DirectoryLab, make_relay: MakeRelay, name: str) -> None:
        with pytest.raises(NtlmRefused) as caught:
            make_relay(lab).logon(name, "secret")
        assert str(caught.value) == "c0000064 unknown account"
        assert caught.value.wrong_password

    def test_who_it_is(self, lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(lab)
        account = relay.logon("LAB\\alice", lab.users["alice"])
        assert (account.name, account.domain) == ("alice", "LAB")
        domain_sid = account.sid.rpartition("-")[0]
        rids = {sid.rpartition("-")[2] for sid in account.group_sids if sid.startswith(domain_sid)}
        # Nested ones, of the domain alone too.
        for group in ("Engineers", "Staff", "Relay Users"):
            (sid,) = lab.attributes(group, "objectSid")["objectSid"]
            assert str(int.from_bytes(sid[-4:], "little")) in rids
        (sid,) = lab.attributes("alice", "objectSid")["objectSid"]
        assert account.sid.rpartition("-")[2] == str(int.from_bytes(sid[-4:], "little"))
        assert len(account.session_key) == 16

    def test_a_computer(self, lab: DirectoryLab, make_relay: MakeRelay) -> None:
        account = make_relay(lab).logon("LAB\\RELAY01$", lab.users["RELAY01$"])
        assert account.name == "RELAY01$"

    def test_a_long_answer_goes_in_fragments(self, lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(lab)
        nt = bytes(16) + b"\x01\x01" + bytes(9000)
        with pytest.raises(Exception, match="c000006a"):
            relay.clock.result(relay.netlogon.logon("alice", "LAB", "PC", bytes(8), nt, b""), PATIENCE)
        assert relay.logon("LAB\\bob", lab.users["bob"])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "account"),
        [
            ("LAB\\alice", "alice"),
            ("lab\\ALICE", "alice"),
            ("lab.example\\alice", "alice"),
            ("alice", "alice"),
            ("alice@lab.example", "alice"),
            ("carol@corp.example", "carol"),
            ("LAB\\jörg", "jörg"),
            ("jörg@lab.example", "jörg"),
        ],
    )
    def test_names(self, lab: DirectoryLab, make_relay: MakeRelay, name: str, account: str) -> None:
        assert make_relay(lab).logon(name, lab.users[account]).name == account


class TestManyAtOnce:
    def test_each_hears_its_own_verdict(self, lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(lab)
        names = ["alice", "bob", "carol", "jörg"]

        async def ask(number: int) -> str:
            name = names[number % 4]
            if number % 3:
                return (await relay.answer(f"LAB\\{name}", lab.users[name])).name
            with pytest.raises(NtlmRefused, match="unknown"):
                await relay.answer(f"LAB\\no-{name}", "x")
            return ""

        asked = gatherResults([Deferred.fromCoroutine(ask(number)) for number in range(60)])
        answers = relay.clock.result(fired(asked), PATIENCE)
        assert answers == [names[number % 4] if number % 3 else "" for number in range(60)]
        assert len(_connections_to_rpc()) == 1


class TestControllers:
    def test_killed_and_back(self, own_lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(own_lab)
        alice = own_lab.users["alice"]
        assert relay.logon("LAB\\alice", alice)
        own_lab.kill()
        for _ in range(2):
            with pytest.raises(Unavailable, match="dc1") as caught:
                relay.logon("LAB\\alice", alice)
            assert caught.value.reply.code == 454
        assert "dc1" in relay.check()
        own_lab.start()
        relay.clock.advance(60)  # its rest is over
        assert relay.logon("LAB\\alice", alice)
        assert relay.check() == ""

    def test_one_that_does_not_answer(self, own_lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(own_lab, timeout=SHORT)
        alice = own_lab.users["alice"]
        assert relay.logon("LAB\\alice", alice)
        before = descriptors()
        own_lab.pause()
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                relay.logon("LAB\\alice", alice)
            assert caught.value.reply.code == 454
            relay.clock.advance(60)
        wait_for(lambda: descriptors() <= before, "descriptors closed")
        own_lab.resume()
        wait_for(lambda: relay.clock.advance(60) or relay.check() == "", "the channel", PATIENCE)
        assert relay.logon("LAB\\alice", alice)

    def test_killed_in_mid_call_another_takes_over(self, start_lab: StartLab, make_relay: MakeRelay) -> None:
        first, second = start_lab(), start_lab()
        relay = make_relay(first, second)
        alice = first.users["alice"]
        killed = []

        def kill(pdu: bytes) -> Iterable[bytes]:
            if operation(pdu) == LOGON and alice_waits:
                killed.append(pdu)
                first.kill()
            return (pdu,)

        with RpcProxy(first.address) as proxy:
            proxy.requests = kill
            relay.controllers.addresses["dc1"] = proxy.address
            alice_waits = False
            assert relay.logon("LAB\\alice", alice)
            alice_waits = True
            assert relay.logon("LAB\\alice", alice)
            assert len(killed) == 1
        # dc1 is not asked again for as long as dc2 serves.
        relay.events.clear()
        assert relay.logon("LAB\\alice", alice)
        assert relay.events == []

    def test_one_hangs_another_takes_over_in_time(self, start_lab: StartLab, make_relay: MakeRelay) -> None:
        first, second = start_lab(), start_lab()
        relay = make_relay(first, second, timeout=4.0)
        alice = first.users["alice"]
        assert relay.logon("LAB\\alice", alice)
        first.pause()
        assert relay.logon("LAB\\alice", alice)

    def test_from_the_start_one_hangs(self, start_lab: StartLab, make_relay: MakeRelay) -> None:
        first, second = start_lab(), start_lab()
        first.pause()
        relay = make_relay(first, second, timeout=4.0)
        assert relay.logon("LAB\\alice", first.users["alice"])
        assert relay.check() == ""  # and hears of the rest meanwhile
        (event,) = relay.events
        assert isinstance(event, ControllerRests)
        assert event.host == "netlogon dc1"


class TestMachineAccount:
    """Whatever is wrong with it is not the user's fault."""

    def refused(self, relay: Relay, lab: DirectoryLab, why: str) -> None:
        with pytest.raises(Unavailable, match=why) as caught:
            relay.logon("LAB\\alice", lab.users["alice"])
        assert caught.value.reply.code == 454
        assert contents.COMPUTER in caught.value.detail
        assert lab.users[contents.COMPUTER] not in caught.value.detail
        assert not relay.events  # no controller rests for it

    def reconnect(self, lab: DirectoryLab) -> None:
        """Ends all channels."""
        lab.stop()
        lab.start()

    def test_its_password_changed_elsewhere(self, own_lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(own_lab)
        assert relay.logon("LAB\\alice", own_lab.users["alice"])
        for number in range(2):  # the password before the last one may be good for a while
            own_lab.modify(contents.COMPUTER, unicodePwd=f'"Changed-elsewhere-{number}"'.encode("utf-16-le"))
        # The channel that is open goes on.
        assert relay.logon("LAB\\alice", own_lab.users["alice"])
        self.reconnect(own_lab)
        self.refused(relay, own_lab, "access denied")
        self.refused(relay, own_lab, "not tried again yet")
        relay.secret.write_text("Changed-elsewhere-1\n")
        assert relay.logon("LAB\\alice", own_lab.users["alice"])
        assert relay.check() == ""

    def test_disabled(self, own_lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(own_lab)
        own_lab.modify(contents.COMPUTER, userAccountControl=contents.WORKSTATION | contents.DISABLED)
        self.refused(relay, own_lab, "c000018b no machine account of this name that is enabled")
        assert "not tried again yet" in relay.check()
        own_lab.modify(contents.COMPUTER, userAccountControl=contents.WORKSTATION)
        relay.clock.advance(60)
        assert relay.logon("LAB\\alice", own_lab.users["alice"])

    def test_deleted(self, own_lab: DirectoryLab, make_relay: MakeRelay) -> None:
        relay = make_relay(own_lab)
        assert relay.logon("LAB\\alice", own_lab.users["alice"])
        own_lab.administrator().delete(own_lab.dn(contents.COMPUTER))
        self.reconnect(own_lab)
        self.refused(relay, own_lab, "c000018b no machine account of this name that is enabled")

    def test_another_process_of_the_same_account(self, lab: DirectoryLab, make_relay: MakeRelay) -> None:
        one, other = make_relay(lab), make_relay(lab)
        for _ in range(2):
            for relay in (one, other):
                assert relay.logon("LAB\\alice", lab.users["alice"])
                assert relay.check() == ""
