"""Each fault of stock ``twisted.mail.smtp.ESMTP`` 26.10: the same octets to stock, which goes wrong, and to RelayESMTP.

docs/twisted-mail.md has the same numbers. When a test fails on its stock half, Twisted has mended that fault.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.mail.imap4 import IllegalClientResponse, PLAINCredentials
from twisted.mail.smtp import LOGINCredentials

from relayd.model import NULL_PATH, Body, Path, Sender
from relayd.smtpd.sasl import AUTH_LINE, Challenge, Step
from tests.dialogs.memory import certificate
from tests.unit.smtpd.fakes import FakePolicy, FakeRealm
from tests.unit.smtpd.stock import Stock, codes
from tests.unit.smtpd.talk import Talk

HELLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
TO_DATA = HELLO + ENVELOPE + b"DATA\r\n"


class Test1StartTls:
    def test_commands_behind_it(self) -> None:
        octets = HELLO + b"STARTTLS\r\nMAIL FROM:<a@b.example>\r\n"

        stock = Stock(tls=certificate())
        stock.send(octets)
        assert stock.delivery.origins, "the command ran"

        talk = Talk(tls=certificate())
        talk.hello()
        answer = talk.send(octets)
        assert codes(answer)[-1] == 421
        assert talk.closed
        assert talk.realm.logins == []
        assert not talk.session.in_transaction

    def test_state_from_before(self) -> None:
        stock = Stock(tls=certificate())
        stock.send(HELLO + ENVELOPE)
        stock.send(b"STARTTLS\r\n")
        assert stock.session._from is not None
        assert stock.session._helo[0] == b"client.example"

        talk = Talk(tls=certificate())
        talk.hello()
        talk.send(ENVELOPE)
        talk.send(b"STARTTLS\r\n")
        talk.start_tls()
        assert talk.session.helo == ""
        assert talk.line("DATA").startswith("503")
        assert talk.line("MAIL FROM:<a@b.example>").startswith("503")


class Test2Order:
    def test_pipelined_commands(self) -> None:
        stock = Stock()
        later: Deferred[Any] = Deferred()
        stock.delivery.on_from = lambda origin: later
        stock.send(HELLO)
        answer = stock.send(ENVELOPE + b"DATA\r\n")
        later.callback(stock.delivery.origins[0])
        assert codes(answer + stock.send(b"")) == [503, 503, 250]

        realm, wait = FakeRealm(), Deferred[Sender]()
        realm.on_mail = lambda sender: wait
        talk = Talk(realm=realm)
        talk.hello()
        assert talk.send(ENVELOPE + b"DATA\r\n") == b""
        wait.callback(Sender(NULL_PATH))
        assert codes(talk.read()) == [250, 250, 354]

    def test_rset_behind_mail(self) -> None:
        octets = b"MAIL FROM:<a@b.example>\r\nRSET\r\n"

        stock = Stock()
        later: Deferred[Any] = Deferred()
        stock.delivery.on_from = lambda origin: later
        stock.send(HELLO + octets)
        later.callback(stock.delivery.origins[0])
        assert stock.session._from is not None, "RSET came first"

        realm, wait = FakeRealm(), Deferred[Sender]()
        realm.on_mail = lambda sender: wait
        talk = Talk(realm=realm)
        talk.hello()
        talk.send(octets)
        wait.callback(Sender(NULL_PATH))
        assert codes(talk.read()) == [250, 250]
        assert not talk.session.in_transaction

    def test_quit_behind_end_of_data(self) -> None:
        octets = b"text\r\n.\r\nQUIT\r\n"

        stock = Stock()
        stock.send(TO_DATA)
        later: Deferred[Any] = Deferred()
        stock.delivery.messages[0].on_end = lambda: later
        answer = stock.send(octets)
        assert codes(answer) == [221], "the connection closes before the 250"
        assert stock.transport.disconnecting

        realm, safe = FakeRealm(), Deferred[str]()
        realm.on_finish = lambda message: safe
        talk = Talk(realm=realm)
        talk.send(TO_DATA)
        assert talk.send(octets) == b""
        assert not talk.closed
        safe.callback("Q1")
        assert codes(talk.read()) == [250, 221]
        assert talk.closed

    def test_a_chained_deferred_is_waited_for(self) -> None:
        """It is `called` from the start, and has no result all the same."""
        inner, outer = Deferred[Sender](), Deferred[Sender]()
        outer.addCallback(lambda _: inner)
        outer.callback(Sender(NULL_PATH))
        realm = FakeRealm()
        realm.on_mail = lambda sender: outer
        talk = Talk(realm=realm)
        talk.hello()
        assert talk.send(b"MAIL FROM:<>\r\nNOOP\r\n") == b""
        inner.callback(Sender(NULL_PATH))
        assert codes(talk.read()) == [250, 250]


class Test3LongLines:
    LINE, REST = b"x" * 20000 + b"\r\n", b"RSET\r\nQUIT\r\n"

    def test_in_a_body(self) -> None:
        stock = Stock()
        stock.send(TO_DATA)
        assert codes(stock.send(self.LINE)) == [500]
        assert stock.delivery.messages[0].state == "lost"
        assert codes(stock.send(self.REST)) == [250, 221], "the body was run"

        talk = Talk()
        talk.send(TO_DATA)
        talk.read()
        assert talk.send(self.LINE) == b""
        assert talk.send(self.REST) == b""
        assert not talk.closed
        assert codes(talk.send(b".\r\n")) == [250]
        assert talk.realm.messages[0].content == self.LINE + self.REST

    def test_in_auth(self) -> None:
        octets = b"AUTH LOGIN\r\n", b"x" * (AUTH_LINE + 10) + b"\r\n", b"NOOP\r\n"

        stock = Stock(challengers={b"LOGIN": LOGINCredentials})
        stock.send(HELLO)
        for segment in octets[:2]:
            stock.send(segment)
        assert stock.session.mode == "AUTH", "the next line is taken for a response"

        talk = Talk()
        talk.hello()
        answers = [codes(talk.send(segment)) for segment in octets]
        assert answers == [[334], [500], [250]]


def test_4_a_flood_without_newline_is_not_kept() -> None:
    flood = [b"x" * 16384] * 20

    stock = Stock()
    for chunk in flood:
        stock.send(chunk)
    assert len(stock.session._buffer) == 20 * 16384, "all of it is kept, and searched again with each chunk"

    talk = Talk()
    talk.read()
    answer = b"".join(talk.send(chunk) for chunk in flood)
    assert codes(answer) == [500]
    assert len(talk.session._lines.take()) <= 2 * 16384


@pytest.mark.parametrize("bad", [b"\n", b"\r", b"\0"], ids=["LF", "CR", "NUL"])
class Test5Octets:
    def test_in_helo(self, bad: bytes) -> None:
        octets = b"EHLO x" + bad + b"Received: evil\r\n"

        stock = Stock()
        assert codes(stock.send(octets)) == [250]
        assert bad in stock.session._helo[0]

        talk = Talk()
        talk.read()
        assert codes(talk.send(octets)) == [500]
        assert talk.session.helo == ""

    def test_in_a_quoted_local_part(self, bad: bytes) -> None:
        octets = b'MAIL FROM:<"a' + bad + b'X-Evil: yes"@b.example>\r\n'

        stock = Stock()
        stock.send(HELLO)
        assert codes(stock.send(octets)) == [250]
        assert bad in stock.delivery.origins[0].local

        talk = Talk()
        talk.hello()
        assert codes(talk.send(octets)) == [500]
        assert not talk.session.in_transaction


@pytest.mark.parametrize(
    ("octets", "error", "code"),
    [
        (b"N\xc3\x96\xc3\x96P\r\n", UnicodeDecodeError, 500),
        (b"AUTH\r\n", IndexError, 501),
        (b"AUTH PLAIN YWJj\r\n", IllegalClientResponse, 501),
    ],
    ids=["verb", "AUTH", "PLAIN"],
)
def test_6_no_traceback_by_remote_input(octets: bytes, error: type[Exception], code: int) -> None:
    stock = Stock(challengers={b"PLAIN": PLAINCredentials})
    stock.send(HELLO)
    with pytest.raises(error):
        stock.send(octets)

    talk = Talk()
    talk.hello()
    assert codes(talk.send(octets)) == [code]
    assert "fault" not in talk.names()


class Test7Parameters:
    def test_are_known(self) -> None:
        talk, stock = Talk(), Stock()
        talk.hello()
        stock.send(HELLO)
        octets = b"MAIL FROM:<a@b.example> SIZE=999999999999 BODY=8BITMIME\r\n"
        assert codes(stock.send(octets)) == [250], "thrown away"
        assert codes(talk.send(octets)) == [552]
        seen: list[Sender] = []

        def mail(sender: Sender) -> Sender:
            seen.append(sender)
            return sender

        talk.realm.on_mail = mail
        assert codes(talk.send(b"MAIL FROM:<a@b.example> SIZE=9 BODY=8BITMIME RET=HDRS ENVID=x+2By\r\n")) == [250]
        assert seen == [Sender(Path("a", "b.example"), 9, Body.EIGHT_BIT, ret="HDRS", envid="x+y")]

    @pytest.mark.parametrize(
        "path", ["<a@[192.0.2.1]>", "<jürgen@bücher.example>", "<a@[IPv6:2001:db8::1]>"], ids=["v4", "utf-8", "v6"]
    )
    def test_addresses_that_stock_does_not_know(self, path: str) -> None:
        octets = f"MAIL FROM:{path} SMTPUTF8\r\n".encode()
        stock = Stock()
        stock.send(HELLO)
        assert codes(stock.send(octets)) == [501]

        talk = Talk()
        talk.hello()
        assert codes(talk.send(octets)) == [250]

    def test_an_address_that_is_none(self) -> None:
        octets = b"MAIL FROM:<a..b@c.example>\r\n"
        stock = Stock()
        stock.send(HELLO)
        assert codes(stock.send(octets)) == [250]

        talk = Talk()
        talk.hello()
        assert codes(talk.send(octets)) == [501]

    def test_bare_names(self) -> None:
        octets = b"MAIL FROM:<>\r\nRCPT TO:<alice>\r\n"
        stock = Stock()
        stock.send(HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<alice>\r\n")
        assert bytes(stock.delivery.users[0].dest) == b"alice@relay.example", "the host's name"

        talk = Talk()
        talk.hello()
        seen: list[Path] = []

        def rcpt(sender: Sender, recipient: Any) -> Any:
            seen.append(recipient.path)
            return recipient

        talk.realm.on_rcpt = rcpt
        talk.send(octets)
        assert seen == [Path("alice")], "for the policy to complete"


class Test8Commands:
    @pytest.mark.parametrize(("command", "code"), [(b"NOOP", 250), (b"VRFY x", 252), (b"HELP", 214)])
    def test_that_stock_lacks(self, command: bytes, code: int) -> None:
        assert codes(Stock().send(command + b"\r\n")) == [500]
        talk = Talk()
        talk.read()
        assert codes(talk.send(command + b"\r\n")) == [code]

    def test_mail_before_hello(self) -> None:
        assert codes(Stock().send(ENVELOPE)) == [250, 250]
        talk = Talk()
        talk.read()
        assert codes(talk.send(ENVELOPE)) == [503, 503]

    def test_auth_in_a_transaction(self) -> None:
        octets = b"MAIL FROM:<a@b.example>\r\nAUTH PLAIN AGFsaWNlAHdyb25n\r\n"
        stock = Stock(challengers={b"PLAIN": PLAINCredentials})
        stock.send(HELLO)
        assert codes(stock.send(octets)) == [250, 535]
        talk = Talk()
        talk.hello()
        assert codes(talk.send(octets)) == [250, 503]

    def test_failures_without_end(self) -> None:
        octets = b"AUTH PLAIN AGFsaWNlAHdyb25n\r\n"
        stock = Stock(challengers={b"PLAIN": PLAINCredentials})
        stock.send(HELLO)
        assert [codes(stock.send(octets)) for _ in range(5)] == [[535]] * 5
        talk = Talk()
        talk.hello()
        assert [codes(talk.send(octets)) for _ in range(5)] == [[535], [535], [535, 421], [], []]

    def test_auth_in_the_clear(self) -> None:
        octets = b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n"
        stock = Stock(challengers={b"PLAIN": PLAINCredentials}, tls=certificate())
        assert b"AUTH PLAIN" in stock.send(HELLO)
        assert codes(stock.send(octets)) != [538]
        talk = Talk(tls=certificate(), policy=FakePolicy(auth_in_the_clear=False))
        assert "AUTH" not in talk.hello()
        assert codes(talk.send(octets)) == [538]
        assert talk.checker.seen == []


class Test9Sasl:
    def test_large_tokens(self) -> None:
        token = b"A" * (4 * (64 * 1024 // 3))
        stock = Stock(challengers={b"LOGIN": LOGINCredentials})
        stock.send(HELLO)
        stock.send(b"AUTH LOGIN\r\n")
        assert codes(stock.send(token + b"\r\n")) == [500]

        talk = Talk()
        talk.hello()
        talk.send(b"AUTH LOGIN\r\n")
        assert codes(talk.send(token + b"\r\n")) == [334]
        talk.send(b"*\r\n")
        assert codes(talk.send(b"AUTH LOGIN " + token + b"\r\n")) == [334]

    def test_a_step_may_take_its_time(self) -> None:
        class Slow:
            user = ""

            def __init__(self) -> None:
                self.answer: Deferred[Step] = Deferred()

            def step(self, response: bytes | None) -> Deferred[Step]:
                return self.answer

        class SlowStock(LOGINCredentials):
            def getChallenge(self) -> Any:
                return Deferred()

        stock = Stock(challengers={b"SLOW": SlowStock})
        stock.send(HELLO)
        with pytest.raises(TypeError):
            stock.send(b"AUTH SLOW\r\n")

        talk = Talk(policy=FakePolicy(offered=("SLOW",)))
        slow = Slow()
        talk.server.mechanisms = {"SLOW": lambda client: slow}
        talk.hello()
        assert talk.send(b"AUTH SLOW\r\nNOOP\r\n") == b""
        slow.answer.callback(Challenge(b"go on"))
        slow.answer = Deferred()
        assert talk.read().startswith(b"334 Z28gb24=\r\n")


class Test10Data:
    def test_one_message_for_all_recipients_in_bulk(self) -> None:
        octets = HELLO + ENVELOPE + b"RCPT TO:<e@d.example>\r\nDATA\r\n"
        body = b"Subject: x\r\n\r\n" + b"line\r\n" * 100 + b".\r\n"
        stock = Stock()
        stock.send(octets)
        stock.send(body)
        assert [len(message.lines) for message in stock.delivery.messages] == [103, 103]

        talk = Talk()
        talk.send(octets)
        talk.send(body)
        assert [len(message.chunks) for message in talk.realm.messages] == [1]

    def test_back_pressure(self) -> None:
        stock = Stock()
        stock.send(TO_DATA)
        stock.send(b"x" * 1000 + b"\r\n")
        assert stock.transport.producerState == "producing", "there is no way to ask for a pause"

        realm, wait = FakeRealm(), Deferred[None]()
        realm.on_write = lambda octets: wait
        talk = Talk(realm=realm)
        talk.send(TO_DATA)
        talk.send(b"x" * 1000 + b"\r\n")
        assert talk.paused
        wait.callback(None)
        assert not talk.paused

    def test_size_limit(self) -> None:
        body = b"x" * 100 + b"\r\n.\r\n"
        stock = Stock()
        stock.send(TO_DATA)
        assert codes(stock.send(body)) == [250], "there is no limit to set"

        talk = Talk(message_size=50)
        talk.send(TO_DATA)
        talk.read()
        assert codes(talk.send(body)) == [552]
        assert talk.realm.messages[0].state == "abandoned"

    def test_no_timer_is_moved_per_line(self) -> None:
        talk = Talk()
        timers = list(talk.clock.getDelayedCalls())
        at = [timer.getTime() for timer in timers]
        talk.clock.advance(10)
        talk.send(TO_DATA + b"x\r\n" * 100)
        assert [timer.getTime() for timer in talk.clock.getDelayedCalls()] == at

        stock = Stock()
        moved: list[float] = []
        stock.session.resetTimeout = lambda: moved.append(1.0)
        stock.send(TO_DATA + b"x\r\n" * 100)
        assert len(moved) > 100
