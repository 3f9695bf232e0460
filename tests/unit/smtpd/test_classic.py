"""Stock interfaces under RelayESMTP: any Twisted realm for mail plugs in."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.mail.interfaces import IMessageDeliveryFactory
from twisted.mail.smtp import Address, SMTPBadRcpt, SMTPBadSender, SMTPServerError, User
from zope.interface import implementer
from zope.interface.verify import verifyObject

from relayd.realm import IBulkMessage, IRelayDelivery
from relayd.smtpd import RelayESMTP
from relayd.smtpd.classic import ClassicDelivery, ClassicMessage
from tests.unit.smtpd.fakes import FakeAnonymous, FakeChecker
from tests.unit.smtpd.stock import StockDelivery, StockMessage, StockRealm
from tests.unit.smtpd.talk import Talk


@pytest.fixture
def talk() -> Talk:
    """A session whose portal leads to a stock realm."""
    talk = Talk()
    talk.session.portal = Portal(StockRealm(), [FakeChecker(), FakeAnonymous()])
    talk.hello()
    return talk


def delivery(talk: Talk) -> StockDelivery:
    portal: Any = talk.session.portal
    found: StockDelivery = portal.realm.delivery
    return found


def deliver(talk: Talk, body: bytes, *recipients: str) -> bytes:
    talk.mail(*recipients)
    talk.line("DATA")
    return talk.send(body)


def test_a_message(talk: Talk) -> None:
    answer = deliver(talk, b"Subject: x\r\n\r\n..text\r\n\r\nend\r\n.\r\n")
    assert answer == b"250 2.0.0 OK\r\n"
    (message,) = delivery(talk).messages
    assert message.lines == [b"Received: by stock", b"Subject: x", b"", b".text", b"", b"end"]
    assert message.state == "finished"
    assert bytes(delivery(talk).origins[0]) == b"a@b.example"
    assert delivery(talk).helos == [(b"client.example", b"192.0.2.7")]
    (user,) = delivery(talk).users
    assert (bytes(user.dest), bytes(user.orig)) == (b"c@d.example", b"a@b.example")
    assert (user.helo, user.protocol) == ((b"client.example", b"192.0.2.7"), talk.session)


def test_one_message_a_recipient(talk: Talk) -> None:
    deliver(talk, b"x\r\n.\r\n", "c@d.example", "e@d.example")
    assert [message.state for message in delivery(talk).messages] == ["finished", "finished"]


def test_the_same_recipient_twice_is_one(talk: Talk) -> None:
    deliver(talk, b"x\r\n.\r\n", "c@d.example", "c@d.example")
    assert len(delivery(talk).messages) == 1


def test_a_message_without_header(talk: Talk) -> None:
    deliver(talk, b"just text\r\n.\r\n")
    assert delivery(talk).messages[0].lines == [b"Received: by stock", b"", b"just text"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_lines_across_chunks(talk: Talk, size: int) -> None:
    talk.mail()
    talk.line("DATA")
    octets = b"A: b\r\n\r\nlong line\r\n\r\n.\r\n"
    for at in range(0, len(octets), size):
        talk.send(octets[at : at + size])
    assert delivery(talk).messages[0].lines[1:] == [b"A: b", b"", b"long line", b""]


def test_a_last_line_without_end_by_bdat(talk: Talk) -> None:
    talk.mail()
    assert talk.send(b"BDAT 7 LAST\r\na: b\r\nc").startswith(b"250")
    assert delivery(talk).messages[0].lines[1:] == [b"a: b", b"c"]


def test_bare_names_and_the_null_path(talk: Talk) -> None:
    assert talk.lines("MAIL FROM:<>", "RCPT TO:<alice>", "RCPT TO:<postmaster>") == [
        "250 2.1.0 Sender OK",
        "250 2.1.5 Recipient OK",
        "250 2.1.5 Recipient OK",
    ]
    assert [bytes(origin) for origin in delivery(talk).origins] == [b""]
    assert [bytes(user.dest) for user in delivery(talk).users] == [b"alice@local.example", b"postmaster@"]


def test_beyond_ascii_there_is_no_way(talk: Talk) -> None:
    assert talk.line("MAIL FROM:<jürgen@b.example> SMTPUTF8").startswith("553 5.6.7")


class TestRefusals:
    def test_sender(self, talk: Talk) -> None:
        def refuse(origin: Address) -> Any:
            raise SMTPBadSender(origin, 553, "Not from you")

        delivery(talk).on_from = refuse
        assert talk.line("MAIL FROM:<a@b.example>").startswith("553 5.0.0 ")
        assert talk.line("RCPT TO:<c@d.example>").startswith("503")
        assert "fault" not in talk.names()

    def test_recipient_later(self, talk: Talk) -> None:
        def refuse(user: User) -> Deferred[Any]:
            return fail(SMTPBadRcpt(user, 450, "Not yet"))

        delivery(talk).on_to = refuse
        assert talk.lines("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")[1].startswith("450 4.0.0 ")

    def test_a_fault_of_the_realm(self, talk: Talk) -> None:
        delivery(talk).on_to = lambda user: 1 / 0
        assert talk.lines("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")[1].startswith("451 4.3.0")
        assert "fault" in talk.names()

    def test_message_cannot_be_made(self, talk: Talk) -> None:
        def make() -> StockMessage:
            raise SMTPServerError(452, b"Full")

        first = StockMessage()
        delivery(talk).on_to = lambda user: make if user.dest.local == b"e" else lambda: first
        talk.mail("c@d.example", "e@d.example")
        assert talk.line("DATA").startswith("452 4.0.0 Full")
        assert first.state == "lost"
        assert talk.line("NOOP").startswith("250")

    def test_a_line_is_refused(self, talk: Talk) -> None:
        class Picky(StockMessage):
            def lineReceived(self, line: bytes) -> None:
                if line == b"virus":
                    raise SMTPServerError(554, b"No virus")
                super().lineReceived(line)

        message = Picky()
        delivery(talk).on_to = lambda user: lambda: message
        talk.mail()
        talk.line("DATA")
        assert talk.send(b"virus\r\n") == b""
        assert talk.send(b"QUIT\r\n.\r\n") == b"554 5.0.0 No virus\r\n"
        assert message.state == "lost"

    @pytest.mark.parametrize(
        ("error", "code"), [(ZeroDivisionError(), b"451 4.3.0"), (SMTPServerError(554, b"No"), b"554 5.0.0")]
    )
    def test_not_stored(self, talk: Talk, error: Exception, code: bytes) -> None:
        messages = [StockMessage(), StockMessage()]
        messages[1].on_end = lambda: fail(error)
        waiting = list(messages)
        delivery(talk).on_to = lambda user: lambda: waiting.pop(0)
        assert deliver(talk, b"x\r\n.\r\n", "c@d.example", "e@d.example").startswith(code)
        assert talk.session.messages == 0

    def test_stored_later(self, talk: Talk) -> None:
        safe: Deferred[Any] = Deferred()
        message = StockMessage()
        message.on_end = lambda: safe
        delivery(talk).on_to = lambda user: lambda: message
        assert deliver(talk, b"x\r\n.\r\nQUIT\r\n") == b""
        safe.callback(None)
        assert talk.read() == b"250 2.0.0 OK\r\n221 2.0.0 Bye\r\n"


def test_connection_lost(talk: Talk) -> None:
    talk.mail()
    talk.line("DATA")
    talk.send(b"half")
    talk.hang_up()
    assert delivery(talk).messages[0].state == "lost"


def test_authenticated(talk: Talk) -> None:
    """The realm of another project has no principal to show."""
    portal: Any = talk.session.portal
    talk.checker = FakeChecker()
    assert talk.line("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith("235")
    assert talk.session.authenticated
    assert talk.event("authenticated").user == "alice"
    assert talk.event("authenticated").source == "portal"
    talk.mail()
    talk.hang_up()
    assert portal.realm.logouts == 1


def test_without_a_portal() -> None:
    """As stock: ``protocol.delivery``."""
    talk = Talk()
    talk.session.portal = None
    talk.session.delivery = stock = StockDelivery()
    talk.hello()
    deliver(talk, b"x\r\n.\r\n")
    assert len(stock.messages) == 1


def test_a_delivery_factory_makes_one_a_message() -> None:
    @implementer(IMessageDeliveryFactory)
    class Maker:
        def __init__(self) -> None:
            self.made: list[StockDelivery] = []

        def getMessageDelivery(self) -> StockDelivery:
            self.made.append(StockDelivery())
            return self.made[-1]

    class Realm:
        def requestAvatar(self, avatarId: object, mind: object, *interfaces: object) -> Any:
            return IMessageDeliveryFactory, maker, lambda: None

    maker = Maker()
    talk = Talk()
    talk.session.portal = Portal(Realm(), [FakeAnonymous()])
    talk.hello()
    for _ in range(2):
        deliver(talk, b"x\r\n.\r\n")
    assert [len(made.messages) for made in maker.made] == [1, 1]


def test_a_protocol_that_validates_itself() -> None:
    """As stock: a subclass that overrides validateFrom, validateTo and receivedHeader."""

    class Own(RelayESMTP):
        def validateFrom(self, helo: Any, origin: Address) -> Any:
            return succeed(origin)

        def validateTo(self, user: User) -> Any:
            return lambda: message

        def receivedHeader(self, helo: Any, origin: Address, recipients: list[User]) -> bytes:
            return b""

    message = StockMessage()
    talk = Talk(protocol=Own)
    talk.session.portal = None
    talk.session.delivery = StockDelivery()
    talk.hello()
    deliver(talk, b"x: y\r\n.\r\n")
    assert message.lines == [b"x: y"]


def test_interfaces() -> None:
    session = Talk().session
    assert verifyObject(IRelayDelivery, ClassicDelivery(session))
    assert verifyObject(IBulkMessage, ClassicMessage([]))
