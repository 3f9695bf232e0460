"""Stock ``twisted.mail.smtp.ESMTP`` on the same transport, with a realm's stock interfaces behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.mail.interfaces import IMessageDelivery, IMessageSMTP
from twisted.mail.smtp import ESMTP, Address, User
from zope.interface import implementer

from tests.unit.smtpd.fakes import FakeAnonymous, FakeChecker
from tests.unit.smtpd.talk import MemoryTransport


@implementer(IMessageSMTP)
class StockMessage:
    """Keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.state = "open"
        self.on_end: Callable[[], Any] = lambda: succeed(None)

    def lineReceived(self, line: bytes) -> None:
        self.lines.append(line)

    def eomReceived(self) -> Any:
        self.state = "finished"
        return self.on_end()

    def connectionLost(self) -> None:
        self.state = "lost"


@implementer(IMessageDelivery)
class StockDelivery:
    """A delivery as Twisted's documentation has them: takes everything, at once."""

    principal = None

    def __init__(self) -> None:
        self.origins: list[Address] = []
        self.users: list[User] = []
        self.helos: list[Any] = []
        self.messages: list[StockMessage] = []
        self.on_from: Callable[[Address], Any] = lambda origin: origin
        self.on_to: Callable[[User], Any] = lambda user: self.make

    def make(self) -> StockMessage:
        self.messages.append(StockMessage())
        return self.messages[-1]

    def receivedHeader(self, helo: Any, origin: Address, recipients: list[User]) -> bytes:
        return b"Received: by stock"

    def validateFrom(self, helo: Any, origin: Address) -> Any:
        self.helos.append(helo)
        self.origins.append(origin)
        return self.on_from(origin)

    def validateTo(self, user: User) -> Any:
        self.users.append(user)
        return self.on_to(user)


class StockRealm:
    """Hands out one StockDelivery, whoever asks."""

    def __init__(self) -> None:
        self.delivery = StockDelivery()
        self.logouts = 0

    def requestAvatar(self, avatarId: object, mind: object, *interfaces: object) -> Any:
        return IMessageDelivery, self.delivery, self._logout

    def _logout(self) -> None:
        self.logouts += 1


class Stock:
    """A client in conversation with stock ESMTP; as much of Talk as the comparisons need."""

    def __init__(self, *, challengers: dict[bytes, Any] | None = None, tls: Any = None) -> None:
        self.delivery = StockDelivery()
        self.session = ESMTP(challengers, tls)
        self.session.noisy = False
        self.session.host = b"relay.example"
        self.session.callLater = Clock().callLater
        self.session.delivery = self.delivery
        self.session.portal = Portal(StockRealm(), [FakeChecker(), FakeAnonymous()])
        self.transport = MemoryTransport()
        self.transport.protocol = self.session
        self.session.makeConnection(self.transport)
        self.transport.clear()

    def send(self, octets: bytes) -> bytes:
        self.session.dataReceived(octets)
        answer = self.transport.value()
        self.transport.clear()
        return answer


def codes(answer: bytes) -> list[int]:
    """The codes of all replies in *answer*, one a reply."""
    return [int(line[:3]) for line in answer.splitlines() if line[3:4] == b" "]


__all__ = ["Deferred", "Stock", "StockDelivery", "StockMessage", "StockRealm", "codes"]
