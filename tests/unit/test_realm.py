"""The avatar: what it puts on top of a message, what it counts, and whom it asks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path as File
from typing import Any

import pytest
from twisted.cred.checkers import ANONYMOUS
from twisted.internet.defer import Deferred, succeed
from twisted.mail.interfaces import IMessageDelivery
from twisted.mail.smtp import Address, User
from zope.interface.verify import verifyObject

from relayd.events import Event, Events
from relayd.model import NO_NAMES, Client, Envelope, Fault, Names, Path, Peer, Principal, Recipient, Sender, Tls
from relayd.model import client_address as address
from relayd.policy import Policy
from relayd.realm import IBulkMessage, IRelayDelivery, RelayDelivery, RelayRealm
from relayd.settings import Console, Delivery, Domain, HostEntry, Listener, Relay, Server, Settings

ALICE = Principal("alice", "PLAIN", "accounts")


class FakeDraft:
    message_id = "1M87Y48GX0000"

    def __init__(self) -> None:
        self.octets = b""
        self.committed: tuple[Envelope, bool] | None = None
        self.abandoned = False

    @property
    def size(self) -> int:
        return len(self.octets)

    def write(self, octets: bytes) -> None:
        self.octets += octets

    def commit(self, envelope: Envelope, *, claimed: bool) -> Deferred[Any]:
        self.committed = envelope, claimed
        return succeed("claim" if claimed else None)

    def abandon(self) -> None:
        self.abandoned = True


class FakeStore:
    def __init__(self) -> None:
        self.drafts: list[FakeDraft] = []

    def draft(self) -> FakeDraft:
        self.drafts.append(FakeDraft())
        return self.drafts[-1]


class FakeOnward:
    def __init__(self) -> None:
        self.room = 1
        self.taken: list[object] = []
        self.woken = 0

    def take(self, claim: object) -> None:
        self.taken.append(claim)

    def wake(self) -> None:
        self.woken += 1


@dataclass
class FakeSession:
    id: str = "s1"
    helo: str = "client.example"
    esmtp: bool = True
    client: Client = field(default_factory=lambda: Client(Peer(address("192.0.2.7")), "smtp", NO_NAMES))


class Setting:
    def __init__(self, **delivery: Any) -> None:
        network = HostEntry("192.0.2.0/24", ip_network("192.0.2.0/24"))
        relay = Relay(list=(network,))
        self.settings = Settings(
            file=File("relayd.toml"),
            server=Server("relay.example", File("state")),
            console=Console(File("control.sock")),
            listeners=(Listener(relay=relay),),
            relay=relay,
            domains=(Domain("local.example"),),
            delivery=Delivery(**delivery),
        )
        self.store, self.onward, self.session = FakeStore(), FakeOnward(), FakeSession()
        self.seen: list[Event] = []
        events = Events(lambda: 0.0)
        events.subscribe(lambda at, event: self.seen.append(event))
        policy = Policy(self.settings)
        self.realm = RelayRealm(
            self.settings,
            lambda: policy,
            self.store,  # type: ignore[arg-type]
            self.onward,
            events,
            lambda: 1_700_000_000.0,
        )

    def avatar(self, who: object = ANONYMOUS) -> RelayDelivery:
        interface, avatar, logout = self.realm.requestAvatar(who, self.session, IMessageDelivery)
        assert interface is IMessageDelivery
        assert callable(logout)
        assert isinstance(avatar, RelayDelivery)
        return avatar

    def received(self, *octets: bytes, who: object = ANONYMOUS, to: tuple[str, ...] = ("b@x.example",)) -> bytes:
        """What is stored when the message comes in these pieces."""
        avatar = self.avatar(who)
        recipients = tuple(Recipient(Path(*text.split("@"))) for text in to)
        message = avatar.message(Sender(Path("a", "local.example")), recipients)
        for piece in octets:
            message.write(piece)
        finished: list[object] = []
        message.finish().addBoth(finished.append)
        assert finished == [FakeDraft.message_id]
        return self.store.drafts[-1].octets


MESSAGE = b"Subject: s\r\nX: y\r\n\r\nbody\r\n\r\nmore\r\n"


def test_it_speaks_the_interfaces() -> None:
    avatar = Setting().avatar()
    assert verifyObject(IRelayDelivery, avatar)
    assert verifyObject(IBulkMessage, avatar.message(Sender(Path("")), ()))
    with pytest.raises(NotImplementedError):
        Setting().realm.requestAvatar(ANONYMOUS, None, IRelayDelivery)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 1000])
@pytest.mark.parametrize("message", [MESSAGE, b"\r\nbody\r\n", b"no end of header\r\n", b"", b"A: b\r\n\r\n"])
def test_received_goes_on_top_and_the_rest_passes_whole_however_it_is_cut(message: bytes, size: int) -> None:
    setting = Setting()
    stored = setting.received(*(message[at : at + size] for at in range(0, len(message), size)))
    assert stored.startswith(b"Received: from client.example")
    assert stored.endswith(message)
    assert stored.count(b"Received:") == 1


def test_what_received_says() -> None:
    setting = Setting()
    setting.session.client = replace(setting.session.client, names=Names(("host.example",)), tls=Tls("TLSv1.3", "C"))
    stored = setting.received(MESSAGE, who=ALICE)
    assert b"host.example" in stored
    assert b"with ESMTPSA (TLSv1.3 C)" in stored
    assert b"id 1M87Y48GX0000 for <b@x.example>;" in stored
    assert b"by relay.example" in stored
    assert b"alice" not in stored
    setting.session.esmtp = False
    assert b"with SMTP (" in setting.received(MESSAGE)


def test_with_several_recipients_none_is_told_of_the_others() -> None:
    stored = Setting().received(MESSAGE, to=("b@x.example", "c@y.example"))
    assert b"b@x.example" not in stored
    assert b"c@y.example" not in stored


def test_what_lacks_is_added_only_when_that_is_wanted() -> None:
    assert b"Message-ID:" not in Setting().received(MESSAGE)
    completed = Setting(complete_headers=True).received(MESSAGE)
    assert b"\r\nDate: " in completed
    assert b"\r\nMessage-ID: <1M87Y48GX0000@relay.example>\r\n" in completed
    assert completed.endswith(MESSAGE)
    there = b"DATE: x\r\nmessage-id: <y>\r\n\r\n"
    assert Setting(complete_headers=True).received(there).count(b"essage-") == 1


def test_hops_are_counted_in_the_header_alone() -> None:
    hop = b"Received: from a by b;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\n"
    setting = Setting(max_hops=3)
    setting.received(hop * 2 + b"\r\n" + hop * 5)
    message = setting.avatar().message(Sender(Path("")), ())
    message.write(hop * 3 + b"\r\n")
    refused: list[Any] = []
    message.finish().addErrback(refused.append)
    fault = refused[0].value
    assert isinstance(fault, Fault)
    assert (fault.reply.code, fault.reply.enhanced) == (554, "5.4.6")
    assert setting.store.drafts[-1].abandoned
    assert setting.store.drafts[-1].committed is None


def test_an_accepted_message_goes_straight_on_while_there_is_room() -> None:
    setting = Setting()
    setting.received(MESSAGE)
    assert setting.onward.taken == ["claim"]
    setting.onward.room = 0
    setting.received(MESSAGE)
    assert setting.onward.taken == ["claim"]
    assert setting.onward.woken == 1
    assert [event.name for event in setting.seen] == ["accepted", "accepted"]


def test_the_envelope_keeps_what_trace_and_history_need() -> None:
    setting = Setting()
    avatar = setting.avatar(ALICE)
    sender = avatar.mail(Sender(Path("a", "local.example")))
    recipient = avatar.rcpt(sender, Recipient(Path("b", "x.example")))
    message = avatar.message(sender, (recipient,))
    message.finish()
    committed = setting.store.drafts[-1].committed
    assert committed is not None
    envelope = committed[0]
    assert (envelope.client, envelope.helo, envelope.principal) == ("192.0.2.7", "client.example", "alice")
    assert (envelope.session, envelope.listener, envelope.rule) == ("s1", "smtp", "relay.list[0]")


def test_refusals_carry_their_rule() -> None:
    setting = Setting()
    setting.session.client = Client(Peer(address("203.0.113.1")), "smtp")
    avatar = setting.avatar()
    sender = avatar.mail(Sender(Path("a", "y.example")))
    with pytest.raises(Fault) as refused:
        avatar.rcpt(sender, Recipient(Path("b", "x.example")))
    assert refused.value.reply.code == 550
    assert refused.value.rule is not None
    assert refused.value.rule.key == "relay.allow"


def test_bare_names_are_completed() -> None:
    avatar = Setting().avatar()
    assert avatar.mail(Sender(Path("alice"))).path == Path("alice", "local.example")
    assert avatar.mail(Sender(Path("postmaster"))).path == Path("postmaster", "local.example")
    assert avatar.mail(Sender(Path(""))).path.null
    sender = Sender(Path(""))
    assert avatar.rcpt(sender, Recipient(Path("bob"))).path == Path("bob", "local.example")
    assert avatar.rcpt(sender, Recipient(Path("Postmaster"))).path == Path("Postmaster")


def test_stock_twisted_mail_may_use_it_too() -> None:
    setting = Setting()
    avatar = setting.avatar()
    origin = Address(b"a@local.example")
    assert avatar.validateFrom((b"h", b"192.0.2.7"), origin) is origin
    make = avatar.validateTo(User(b"b@x.example", (b"h", b""), None, origin))
    message = make()
    for line in (b"Subject: s", b"", b"body"):
        message.lineReceived(line)
    message.eomReceived()
    assert setting.store.drafts[-1].octets.endswith(b"Subject: s\r\n\r\nbody\r\n")
    assert avatar.receivedHeader((b"h", b""), origin, []) == b""
    make().connectionLost()
    assert setting.store.drafts[-1].abandoned
