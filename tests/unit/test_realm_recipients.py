"""verify_recipients: who is asked for which recipient, and what the client is told."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.mail.smtp import Address, User
from twisted.python.failure import Failure

from relayd.model import NULL_PATH, Client, Fault, Path, Peer, Recipient, Reply, Sender, client_address
from relayd.policy import Policy
from relayd.realm import RelayDelivery, RelayMessage, RelayRealm
from relayd.settings import Domain, DomainKind, Settings
from tests.unit.test_realm import FakeSession, Setting


class FakeRecipients:
    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.away = False

    async def has_recipient(self, *addresses: str) -> bool:
        self.asked.append(addresses)
        if self.away:
            raise Fault(Reply.of(451, "4.3.0", "later"))
        return "alice@local.example" in addresses


@pytest.fixture
def recipients() -> FakeRecipients:
    return FakeRecipients()


@pytest.fixture
def avatar(recipients: FakeRecipients) -> RelayDelivery:
    base = Setting()
    settings = Settings(
        file=base.settings.file,
        server=base.settings.server,
        console=base.settings.console,
        listeners=base.settings.listeners,
        domains=(
            Domain("local.example", aliases=("alias.example",)),
            Domain("below.example", wildcard=True),
            Domain("open.example", kind=DomainKind.REMOTE, relay=True),
        ),
        lines={"directory.verify_recipients": 9},
    )
    policy = Policy(settings)
    realm = RelayRealm(
        settings,
        lambda: policy,
        base.store,  # type: ignore[arg-type]
        base.onward,
        base.realm.events,
        recipients=recipients,
    )
    stranger = Client(Peer(client_address("198.51.100.1")), "smtp")
    return RelayDelivery(realm, FakeSession(client=stranger), None)


def answer(deferred: Any) -> Any:
    if not isinstance(deferred, Deferred):
        return deferred
    results: list[Any] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def rcpt(avatar: RelayDelivery, address: str) -> str:
    local, _, domain = address.rpartition("@") if "@" in address else (address, "", "")
    return str(answer(avatar.rcpt(Sender(NULL_PATH), Recipient(Path(local, domain)))).path)


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("alice@local.example", ("alice@local.example",)),
        ("ALICE@Local.Example", ("alice@local.example",)),
        ('"alice"@local.example', ("alice@local.example",)),
        ("alice", ("alice@local.example",)),
        ("alice@alias.example", ("alice@alias.example", "alice@local.example")),
    ],
)
def test_who_is_there(avatar: RelayDelivery, recipients: FakeRecipients, address: str, asked: tuple[str, ...]) -> None:
    rcpt(avatar, address)
    assert recipients.asked == [asked]
    assert avatar.rule == "domain[0].aliases[0]" if "alias" in address else "domain[0]"


def test_who_is_not(avatar: RelayDelivery) -> None:
    for address in ("bob@local.example", "bob@alias.example", "alice@x.below.example"):
        with pytest.raises(Fault) as caught:
            rcpt(avatar, address)
        assert str(caught.value.reply) == f"550 5.1.1 <{address}> is not a recipient here"
        assert str(caught.value.rule) == "directory.verify_recipients (line 9)"


@pytest.mark.parametrize("address", ["postmaster", "Postmaster@local.example", "bob@open.example"])
def test_who_is_not_asked_for(avatar: RelayDelivery, recipients: FakeRecipients, address: str) -> None:
    rcpt(avatar, address)
    assert not recipients.asked


def test_the_policy_goes_first(avatar: RelayDelivery, recipients: FakeRecipients) -> None:
    with pytest.raises(Fault, match="Unable to relay"):
        rcpt(avatar, "bob@elsewhere.example")
    assert not recipients.asked


def test_a_directory_that_is_away(avatar: RelayDelivery, recipients: FakeRecipients) -> None:
    recipients.away = True
    with pytest.raises(Fault) as caught:
        rcpt(avatar, "alice@local.example")
    assert caught.value.reply.code == 451


def test_as_stock_asks(avatar: RelayDelivery) -> None:
    def user(address: str) -> User:
        return User(address.encode(), (b"client", b"192.0.2.7"), None, Address(b"a@local.example"))

    make = answer(avatar.validateTo(user("alice@local.example")))
    assert isinstance(make(), RelayMessage)
    with pytest.raises(Fault):
        answer(avatar.validateTo(user("bob@local.example")))
    assert isinstance(answer(avatar.validateTo(user("bob@open.example")))(), RelayMessage)
