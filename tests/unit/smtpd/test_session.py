"""What a session does beside its conversation (tests/dialogs): writes, pauses, events, faults, limits, time."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.address import IPv4Address as TcpAddress
from twisted.internet.address import IPv6Address as Tcp6Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer
from zope.interface.verify import verifyObject

from relayd.events import CommandRefused, InternalFault, SessionClosed, SessionRefused
from relayd.model import Fault, Names, Peer, Recipient, Reply, Sender
from relayd.settings import TlsMode
from relayd.smtpd import RelayESMTP, SessionFactory
from relayd.smtpd.virtual_server import session_id
from tests.dialogs.memory import certificate
from tests.unit.smtpd.fakes import FakeMessage, FakePolicy, FakeRealm, refused
from tests.unit.smtpd.stock import codes
from tests.unit.smtpd.talk import MemoryTransport, Talk

TO_DATA = b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"


def greeted(**options: Any) -> Talk:
    talk = Talk(**options)
    talk.read()
    talk.transport.writes.clear()
    return talk


class TestWrites:
    def test_a_reply_is_one_write(self) -> None:
        talk = greeted()
        talk.send(b"EHLO x\r\n")
        assert len(talk.transport.writes) == 1

    def test_a_reply_waits_for_no_acknowledgement(self) -> None:
        assert greeted().transport.no_delay

    def test_replies_to_one_segment_are_one_write(self) -> None:
        talk = greeted()
        talk.send(TO_DATA)
        assert len(talk.transport.writes) == 1
        assert codes(talk.transport.writes[0]) == [250, 250, 250, 354]

    def test_what_is_answered_leaves_before_a_wait(self) -> None:
        realm = FakeRealm()
        realm.on_rcpt = lambda sender, recipient: Deferred()
        talk = greeted(realm=realm)
        assert codes(talk.send(TO_DATA)) == [250, 250]


class TestPauses:
    def test_a_client_that_waits_is_not_paused(self) -> None:
        realm, safe = FakeRealm(), Deferred[str]()
        realm.on_finish = lambda message: safe
        talk = greeted(realm=realm)
        talk.send(TO_DATA)
        talk.send(b"x\r\n.\r\n")
        assert not talk.paused
        talk.send(b"NOOP\r\n")
        assert talk.paused
        safe.callback("Q1")
        assert codes(talk.read()) == [250, 250]
        assert not talk.paused

    def test_no_more_commands_from_a_client_that_does_not_read(self) -> None:
        talk = greeted()
        assert verifyObject(IPushProducer, talk.session)
        assert talk.transport.producer is talk.session
        talk.session.pauseProducing()
        assert talk.send(b"NOOP\r\n" * 3) == b""
        assert talk.paused
        talk.session.resumeProducing()
        assert codes(talk.read()) == [250, 250, 250]
        assert not talk.paused

    def test_room_to_write_does_not_end_a_wait(self) -> None:
        realm, wait = FakeRealm(), Deferred[Sender]()
        realm.on_mail = lambda sender: wait
        talk = greeted(realm=realm)
        talk.send(b"EHLO x\r\nMAIL FROM:<>\r\nNOOP\r\n")
        talk.session.pauseProducing()
        talk.session.resumeProducing()
        assert talk.read() == b""
        assert not talk.session._lines.empty


class TestEvents:
    def test_of_a_session(self) -> None:
        talk = Talk()
        talk.clock.advance(1.5)
        talk.send(TO_DATA + b"x\r\n.\r\nQUIT\r\n")
        talk.hang_up()
        assert talk.names() == ["session-opened", "session-closed"]
        closed = talk.event("session-closed")
        assert closed == SessionClosed(
            session=talk.session.id, client="192.0.2.7", messages=1, commands=5, seconds=1.5, why="quit"
        )
        assert talk.server.sessions == {}

    def test_of_a_refusal(self) -> None:
        talk = greeted()
        talk.send(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@refused.example> NOTIFY=NEVER\r\n")
        assert talk.event("refused") == CommandRefused(
            session=talk.session.id,
            client="192.0.2.7",
            command="RCPT",
            reply="550 5.7.1 Unable to relay for c@refused.example",
            rule="relay.list (line 3)",
            sender="a@b.example",
            recipient="c@refused.example",
        )

    def test_of_a_malformed_command(self) -> None:
        talk = greeted()
        talk.send(b"EHLO x\r\nMAIL FROM:nobody\xff\r\n")
        assert talk.event("refused").sender == "FROM:nobody\N{REPLACEMENT CHARACTER}"

    def test_of_a_refused_client(self) -> None:
        talk = Talk(policy=FakePolicy(greeting=refused(554, "5.7.1", "Access denied", "access.list[0]")))
        assert talk.seen == [
            SessionRefused(
                session=talk.session.id,
                client="192.0.2.7",
                listener="test",
                reply="554 5.7.1 Access denied",
                rule="access.list[0] (line 7)",
            )
        ]

    def test_ids_are_used_once(self) -> None:
        ids = [session_id() for _ in range(100)]
        assert len(set(ids)) == 100
        assert all(len(one) <= 16 and one.isalnum() for one in ids)


class TestFaults:
    """A fault of relayd is 451 4.3.0 and an event; the client sees nothing else of it, and the session goes on."""

    def check(self, talk: Talk, answer: bytes) -> None:
        assert answer == b"451 4.3.0 Local error; try again later\r\n"
        faults = [event for event in talk.seen if isinstance(event, InternalFault)]
        assert len(faults) == 1
        assert faults[0].session == talk.session.id
        assert "ZeroDivisionError" in faults[0].detail
        assert talk.line("NOOP") == "250 2.0.0 OK"

    @pytest.mark.parametrize("later", [False, True], ids=["raised", "Deferred"])
    def test_in_mail(self, later: bool) -> None:
        def mail(sender: Sender) -> Any:
            return fail(ZeroDivisionError()) if later else 1 / 0

        realm = FakeRealm()
        realm.on_mail = mail
        talk = greeted(realm=realm)
        talk.line("EHLO x")
        self.check(talk, talk.send(b"MAIL FROM:<>\r\n"))

    def test_in_opening_the_message(self) -> None:
        realm = FakeRealm()
        realm.on_message = lambda sender, recipients: 1 // 0  # type: ignore[assignment,return-value]
        talk = greeted(realm=realm)
        talk.send(TO_DATA.removesuffix(b"DATA\r\n"))
        self.check(talk, talk.send(b"DATA\r\n"))

    @pytest.mark.parametrize("later", [False, True], ids=["raised", "Deferred"])
    def test_in_a_write_is_told_at_the_true_end(self, later: bool) -> None:
        def write(octets: bytes) -> Any:
            return fail(ZeroDivisionError()) if later else 1 / 0

        realm = FakeRealm()
        realm.on_write = write
        talk = greeted(realm=realm)
        talk.send(TO_DATA)
        assert talk.send(b"one\r\n") == b""
        assert talk.send(b"QUIT\r\n") == b""
        self.check(talk, talk.send(b".\r\n"))
        assert realm.messages[0].state == "abandoned"

    def test_in_finishing(self) -> None:
        realm = FakeRealm()
        realm.on_finish = lambda message: 1 // 0  # type: ignore[assignment,return-value]
        talk = greeted(realm=realm)
        talk.send(TO_DATA)
        self.check(talk, talk.send(b"x\r\n.\r\n"))

    def test_in_abandoning(self) -> None:
        class Stuck(FakeMessage):
            def abandon(self) -> None:
                raise ZeroDivisionError

        realm = FakeRealm()
        realm.on_message = lambda sender, recipients: Stuck(realm, sender, recipients)
        talk = greeted(realm=realm, message_size=3)
        talk.send(TO_DATA)
        assert codes(talk.send(b"too much\r\n.\r\n")) == [552]
        assert "fault" in talk.names()

    def test_at_the_greeting(self) -> None:
        class Broken(FakePolicy):
            def greet(self, client: Any) -> Any:
                return 1 / 0

        talk = Talk(policy=Broken())
        assert talk.read() == b"421 4.3.0 Local error; try again later\r\n"
        assert talk.closed


class TestConnectionLost:
    def test_while_mail_waits(self) -> None:
        realm, wait = FakeRealm(), Deferred[Sender]()
        realm.on_mail = lambda sender: wait
        talk = greeted(realm=realm)
        talk.send(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n")
        talk.hang_up()
        wait.callback(Sender(None))  # type: ignore[arg-type]
        assert talk.names() == ["session-opened", "session-closed"]

    def test_while_the_message_is_being_kept(self) -> None:
        realm, safe = FakeRealm(), Deferred[str]()
        realm.on_finish = lambda message: safe
        talk = greeted(realm=realm)
        talk.send(TO_DATA + b"x\r\n.\r\n")
        talk.hang_up()
        safe.callback("Q1")
        assert realm.messages[0].state == "finished"
        assert "fault" not in talk.names()

    @pytest.mark.parametrize("octets", [b"x\r\n.\r\n", b"x\r\n"], ids=["ended", "not ended"])
    def test_while_a_write_waits(self, octets: bytes) -> None:
        realm, wait = FakeRealm(), Deferred[None]()
        realm.on_write = lambda octets: wait
        talk = greeted(realm=realm)
        talk.send(TO_DATA + octets + b"NOOP\r\n")
        talk.hang_up()
        wait.callback(None)
        assert realm.messages[0].state == "abandoned"
        assert "fault" not in talk.names()

    def test_in_a_message(self) -> None:
        talk = greeted()
        talk.send(TO_DATA + b"half")
        talk.hang_up()
        assert talk.realm.messages[0].state == "abandoned"
        assert talk.event("session-closed").why == "connection lost"

    def test_nothing_is_left_to_fire(self) -> None:
        talk = greeted()
        talk.hang_up()
        assert talk.clock.getDelayedCalls() == []

    def test_gives_the_avatar_back(self) -> None:
        talk = greeted()
        talk.send(TO_DATA)
        talk.hang_up()
        assert talk.realm.logouts == 1


class TestLimits:
    def another(self, talk: Talk, address: str) -> MemoryTransport:
        transport = MemoryTransport()
        RelayESMTP(talk.server, Peer(ip_address(address))).makeConnection(transport)
        return transport

    def test_connections(self) -> None:
        talk = greeted(connections=2)
        assert codes(self.another(talk, "192.0.2.8").value()) == [220]
        third = self.another(talk, "192.0.2.9")
        assert third.value() == b"421 4.3.2 Too many connections; try again later\r\n"
        assert third.disconnecting
        assert talk.event("session-refused").client == "192.0.2.9"

    def test_connections_of_one_client(self) -> None:
        talk = greeted(connections_per_client=1)
        assert codes(self.another(talk, "192.0.2.8").value()) == [220]
        second = self.another(talk, "192.0.2.7")
        assert second.value() == b"421 4.7.0 Too many connections from your address\r\n"
        talk.hang_up()

    def test_a_place_becomes_free(self) -> None:
        talk = greeted(connections_per_client=1)
        talk.hang_up()
        assert codes(self.another(talk, "192.0.2.7").value()) == [220]

    def test_no_limit(self) -> None:
        talk = greeted(connections=0, connections_per_client=0, message_size=0, session_size=0)
        assert "SIZE 0" in talk.line("EHLO x")
        assert codes(self.another(talk, "192.0.2.7").value()) == [220]
        talk.send(TO_DATA)
        assert codes(talk.send(b"x" * 100_000 + b"\r\n.\r\n")) == [250]

    def test_who_sends_on_after_a_refusal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("relayd.smtpd.session.MOST_DISCARDED", 1000)
        talk = greeted(message_size=10, session_size=100)
        talk.send(TO_DATA)
        assert talk.send(b"x" * 500) == b""
        assert talk.send(b"x" * 499) == b""
        assert talk.send(b"x" * 10) == b"421 4.7.0 Too much data for a message that is refused\r\n"
        assert talk.closed

    def test_errors_are_forgiven_by_a_message(self) -> None:
        talk = greeted()
        for _ in range(2):
            assert codes(talk.send(b"X\r\n" * 9)) == [500] * 9
            talk.send(TO_DATA)
            assert codes(talk.send(b"x\r\n.\r\n")) == [250]
        assert not talk.closed

    def test_refused_recipients_are_no_errors(self) -> None:
        talk = greeted()
        talk.send(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n")
        assert codes(talk.send(b"RCPT TO:<c@refused.example>\r\n" * 50)) == [550] * 50


class TestNames:
    def test_are_asked_only_when_they_matter(self) -> None:
        talk = Talk()
        assert talk.resolver.asked == []
        assert codes(talk.read()) == [220]

    def test_are_known_at_the_greeting(self) -> None:
        talk = Talk(policy=FakePolicy(by_name=True))
        assert talk.read() == b""
        talk.resolver.asked[0].callback(Names(("printer.example",)))
        assert codes(talk.read()) == [220]
        assert talk.session.client.names.confirmed == ("printer.example",)
        assert talk.event("session-opened").names == ("printer.example",)

    def test_a_resolver_that_is_overloaded(self) -> None:
        talk = Talk(policy=FakePolicy(by_name=True))
        talk.resolver.asked[0].errback(Fault(Reply.of(451, "4.3.2", "Too many look-ups")))
        assert talk.read() == b"421 4.3.2 Too many look-ups\r\n"
        assert talk.closed

    def test_a_client_that_does_not_wait_for_dns(self) -> None:
        talk = Talk(policy=FakePolicy(by_name=True))
        talk.hang_up()
        talk.resolver.asked[0].callback(Names())
        assert talk.read() == b""


class TestTime:
    def test_a_command_must_be_complete(self) -> None:
        talk = greeted(command_timeout=60)
        for _ in range(7):
            talk.clock.advance(9)
            talk.send(b"x")
        assert talk.closed
        assert b"421 4.4.2" in b"".join(talk.transport.writes)

    def test_our_own_time_is_not_the_client_s(self) -> None:
        realm, wait = FakeRealm(), Deferred[Recipient]()
        realm.on_rcpt = lambda sender, recipient: wait
        talk = greeted(realm=realm, command_timeout=60)
        talk.send(TO_DATA)
        for _ in range(10):
            talk.clock.advance(50)
        assert not talk.closed
        wait.errback(Fault(Reply.of(451, "4.4.3", "later")))
        talk.clock.advance(59)
        assert not talk.closed
        talk.clock.pump([1, 59, 1])
        assert talk.closed

    def test_a_slow_message_that_moves_is_taken(self) -> None:
        talk = greeted(command_timeout=60)
        talk.send(TO_DATA)
        for _ in range(20):
            talk.clock.advance(50)
            talk.send(b"x" * 1022 * 1024 + b"\r\n")
        assert codes(talk.send(b".\r\n")) == [250]

    def test_a_message_that_trickles_is_not(self) -> None:
        talk = greeted(command_timeout=60)
        talk.send(TO_DATA)
        for _ in range(4):
            talk.clock.advance(30)
            talk.send(b"x")
        assert talk.closed
        talk.hang_up()
        assert talk.realm.messages[0].state == "abandoned"

    def test_a_handshake_that_does_not_come(self) -> None:
        talk = Talk(tls=certificate(), mode=TlsMode.IMPLICIT, command_timeout=60)
        talk.clock.pump([60, 1])
        assert talk.transport.aborted
        assert talk.session.why == "timed out in the TLS handshake"

    def test_last_words_are_not_waited_for_long(self) -> None:
        talk = greeted(command_timeout=60)
        talk.clock.pump([60, 1])
        assert talk.closed
        assert not talk.transport.aborted
        talk.clock.advance(31)
        assert talk.transport.aborted

    def test_a_refused_client_has_less(self) -> None:
        talk = Talk(policy=FakePolicy(greeting=refused(554, "5.7.1", "Access denied")))
        talk.clock.advance(29)
        assert not talk.closed
        talk.clock.advance(2)
        assert talk.closed


class TestShutdown:
    def test_idle(self) -> None:
        talk = greeted()
        gone = talk.session.shutdown(10)
        assert talk.read() == b"421 4.3.2 Shutting down\r\n"
        assert talk.closed
        assert not gone.called
        talk.hang_up()
        assert gone.called
        assert talk.clock.getDelayedCalls() == []
        assert talk.event("session-closed").why == "Shutting down"

    def test_in_a_message(self) -> None:
        realm, safe = FakeRealm(), Deferred[str]()
        realm.on_finish = lambda message: safe
        talk = greeted(realm=realm)
        talk.send(TO_DATA)
        talk.session.shutdown(10)
        assert talk.read() == b""
        talk.send(b"x\r\n.\r\n")
        assert not talk.closed
        safe.callback("Q1")
        assert codes(talk.read()) == [250, 421]
        assert talk.closed

    def test_a_client_that_does_not_come_to_an_end(self) -> None:
        talk = greeted()
        talk.send(TO_DATA)
        talk.session.shutdown(10)
        talk.clock.advance(11)
        assert talk.transport.aborted

    def test_after_the_end(self) -> None:
        talk = greeted()
        talk.hang_up()
        assert talk.session.shutdown(10).called


class TestSubclass:
    def test_commands_and_extensions_in_stocks_manner(self) -> None:
        class Extended(RelayESMTP):
            def extensions(self) -> dict[bytes, list[bytes] | None]:
                return {**super().extensions(), b"XHELLO": [b"a", b"b"]}

            def ext_XHELLO(self, rest: bytes) -> None:
                self.sendCode(250, b"one\n" + rest)

            def do_XDEFER(self, rest: bytes) -> Any:
                return self.later

            later: Deferred[Any] = Deferred()

        talk = greeted(protocol=Extended)
        assert talk.line("EHLO x").endswith("250 XHELLO a b")
        assert talk.send(b"xhello you\r\nXDEFER\r\nNOOP\r\n") == b"250-one\r\n250 you\r\n"
        Extended.later.callback(Reply.of(250, "2.0.0", "at last"))
        assert talk.read() == b"250 2.0.0 at last\r\n250 2.0.0 OK\r\n"


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (TcpAddress("TCP", "192.0.2.1", 9), "192.0.2.1"),
        (Tcp6Address("TCP", "::ffff:192.0.2.1", 9), "192.0.2.1"),
        (Tcp6Address("TCP", "2001:db8::1", 9), "2001:db8::1"),
        (Tcp6Address("TCP", "fe80::1%eth0", 9), "fe80::1"),
    ],
)
def test_clients_of_a_dual_socket(address: Any, client: str) -> None:
    session = SessionFactory(Talk().server).buildProtocol(address)
    assert session.client.peer == Peer(ip_address(client), 9)
