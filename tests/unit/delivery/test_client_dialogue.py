"""From the connection to the point where it can send: greeting, EHLO, STARTTLS, AUTH, QUIT."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as File

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as ConnectTimeout

from relayd.delivery import PathFault, Stage, Target, Timeouts
from relayd.delivery.fault import softened
from relayd.model import Reply
from relayd.settings import Credential, Delivery, OutboundTls
from tests.unit.delivery.peer import ALICE, BOB, HELLO, TARGET, Body, Net, Peer, Result, ehlo, greet

MAY = replace(TARGET, tls=OutboundTls.MAY)
REQUIRE = replace(TARGET, tls=OutboundTls.REQUIRE)
HELLO_LINE = b"EHLO relay.corp.example\r\n"


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def credential(tmp_path: File) -> Credential:
    file = tmp_path / "password"
    file.write_text("s3cret pässword\n")
    return Credential("smart", user="relay@corp.example", password_file=file, allow_insecure=True)


def opening(net: Net, target: Target = TARGET) -> tuple[Peer, Result]:
    result = Result(net.connect(target))
    return net.accept(), result


def ended(peer: Peer, result: Result) -> PathFault:
    """The fault with which the client gave up; it left nothing behind."""
    fault = result.fault(PathFault)
    assert peer.ended or not peer.open
    peer.drop()
    assert fault.temporary
    return fault


class TestConnecting:
    def test_within_thirty_seconds_to_the_address(self, net: Net) -> None:
        net.connect(replace(TARGET, source_address="198.51.100.9"))
        host, port, _, timeout, source = net.reactor.tcpClients[0]
        assert (host, port, timeout, source) == ("192.0.2.1", 25, 30.0, ("198.51.100.9", 0))

    def test_in_haste_where_there_is_another_address(self, net: Net) -> None:
        result = Result(net.connect(replace(TARGET, haste=5.0)))
        assert net.reactor.tcpClients[0][3] == 5.0
        net.refuse(ConnectTimeout())
        assert "no answer within 5 s" in result.fault(PathFault).reply.text

    def test_the_source_address_is_for_its_family(self, net: Net) -> None:
        net.connect(Target("mx.example", ip_address("2001:db8::1"), source_address="198.51.100.9"))
        host, _, _, _, source = net.reactor.tcpClients[0]
        assert (host, source) == ("2001:db8::1", None)

    @pytest.mark.parametrize(
        ("error", "words"),
        [(Refused(111), "Connection refused"), (ConnectTimeout(), "no answer within 30 s")],
    )
    def test_no_connection(self, net: Net, error: Exception, words: str) -> None:
        result = Result(net.connect())
        net.refuse(error)
        fault = result.fault(PathFault)
        assert fault.stage is Stage.CONNECT
        assert fault.temporary
        assert words in fault.reply.text
        assert fault.peer == "mx.example[192.0.2.1]:25"

    def test_a_level_that_is_not_served_is_never_weakened(self, net: Net) -> None:
        result = Result(net.connect(replace(TARGET, tls=OutboundTls.STS)))
        assert result.fault(PathFault).temporary
        assert net.attempts == 0

    def test_giving_up(self, net: Net) -> None:
        opening = net.connect()
        result = Result(opening)
        peer = net.accept()
        opening.cancel()
        result.fault(CancelledError)
        assert peer.ended
        peer.drop()
        assert not net.reactor.getDelayedCalls()


class TestGreeting:
    def test_ehlo_after_220(self, net: Net) -> None:
        peer, result = opening(net)
        assert peer.read() == b""
        assert peer.say(b"220-mx.example", b"220 ESMTP") == HELLO_LINE
        assert peer.say(*ehlo(b"PIPELINING", b"SIZE 1000", b"AUTH LOGIN PLAIN")) == b""
        connection = result.value
        assert connection.usable
        assert connection.offer.extensions == {"PIPELINING", "SIZE", "AUTH"}
        assert connection.offer.size == 1000
        assert connection.offer.mechanisms == ("LOGIN", "PLAIN")
        assert (connection.peer, connection.tls) == ("mx.example[192.0.2.1]:25", "")

    @pytest.mark.parametrize("code", [500, 502])
    def test_helo_for_old_servers(self, net: Net, code: int) -> None:
        peer, result = opening(net)
        peer.say(b"220 mx.example")
        assert peer.say(b"%d what?" % code) == b"HELO relay.corp.example\r\n"
        peer.say(b"250 mx.example")
        assert result.value.offer.extensions == frozenset()

    @pytest.mark.parametrize("line", [b"421 4.3.2 busy", b"450 later", b"554 5.7.1 go away", b"250 ok", b"354 go"])
    def test_another_greeting_is_the_path(self, net: Net, line: bytes) -> None:
        peer, result = opening(net)
        peer.say(line)
        assert ended(peer, result).stage is Stage.GREETING

    @pytest.mark.parametrize("line", [b"421 busy", b"450 later", b"550 5.7.1 go away", b"501 bad name", b"220 ok"])
    def test_another_answer_to_ehlo_is_the_path(self, net: Net, line: bytes) -> None:
        peer, result = opening(net)
        peer.say(b"220 mx.example")
        peer.say(line)
        assert ended(peer, result).stage is Stage.EHLO

    def test_helo_refused_is_the_path(self, net: Net) -> None:
        peer, result = opening(net)
        peer.say(b"220 mx.example")
        peer.say(b"502 what?")
        peer.say(b"550 what?")
        assert ended(peer, result).stage is Stage.EHLO

    @pytest.mark.parametrize("stage", [Stage.GREETING, Stage.EHLO])
    @pytest.mark.parametrize("how", ["silence", "garbage", "loss", "too much"])
    def test_broken(self, net: Net, stage: Stage, how: str) -> None:
        peer, result = opening(net)
        if stage is Stage.EHLO:
            peer.say(b"220 mx.example")
        if how == "silence":
            net.reactor.advance(300)
        elif how == "garbage":
            peer.say(b"HTTP/1.1 400 Bad Request")
        elif how == "loss":
            peer.drop()
        else:
            peer.say(b"220 mx.example", b"250 mx.example")
        assert ended(peer, result).stage is stage
        assert not net.reactor.getDelayedCalls()

    def test_a_refusal_keeps_its_words_and_is_temporary(self, net: Net) -> None:
        peer, result = opening(net)
        peer.say(b"554 5.7.1 Your address is on a list")
        fault = ended(peer, result)
        assert str(fault.reply) == "451 4.7.1 Your address is on a list"
        assert str(fault.said) == "554 5.7.1 Your address is on a list"


class TestStartTls:
    def test_required_and_not_offered(self, net: Net) -> None:
        peer, result = opening(net, REQUIRE)
        greet(peer, b"PIPELINING")
        assert ended(peer, result).stage is Stage.STARTTLS

    def test_helo_cannot_do_what_is_required(self, net: Net) -> None:
        peer, result = opening(net, REQUIRE)
        peer.say(b"220 mx.example")
        peer.say(b"502 what?")
        peer.say(b"250 mx.example")
        assert ended(peer, result).stage is Stage.STARTTLS

    def test_may_and_not_offered(self, net: Net) -> None:
        peer, result = opening(net, MAY)
        greet(peer)
        assert result.value.usable

    def test_none_does_not_ask(self, net: Net) -> None:
        peer, result = opening(net)
        greet(peer, b"STARTTLS")
        assert result.value.usable

    def test_may_and_refused_goes_on_in_the_clear(self, net: Net) -> None:
        peer, result = opening(net, MAY)
        assert greet(peer, b"STARTTLS") == b"STARTTLS\r\n"
        peer.say(b"454 4.7.0 not now")
        assert result.value.usable

    @pytest.mark.parametrize("line", [b"454 4.7.0 not now", b"502 what?", b"421 no", b"250 ok"])
    def test_required_and_refused(self, net: Net, line: bytes) -> None:
        peer, result = opening(net, REQUIRE)
        greet(peer, b"STARTTLS")
        peer.say(line)
        assert ended(peer, result).stage is Stage.STARTTLS

    @pytest.mark.parametrize("level", [MAY, REQUIRE])
    @pytest.mark.parametrize("behind", [b"250 mx.example\r\n", b"250-x\r\n", b"2", b"\r\n"])
    def test_what_stands_behind_the_220_is_never_used(self, net: Net, level: Target, behind: bytes) -> None:
        peer, result = opening(net, level)
        greet(peer, b"STARTTLS")
        peer.protocol.dataReceived(b"220 go\r\n" + behind)
        assert not peer.wire.tls
        fault = ended(peer, result)
        assert fault.stage is Stage.STARTTLS
        assert not fault.cleartext

    @pytest.mark.parametrize("how", ["silence", "loss"])
    def test_a_failed_handshake_under_may_allows_cleartext(self, net: Net, how: str) -> None:
        for level, cleartext in ((MAY, True), (REQUIRE, False)):
            net = Net()
            peer, result = opening(net, level)
            greet(peer, b"STARTTLS")
            assert peer.say(b"220 go") == b""
            assert len(peer.wire.tls) == 1
            peer.drop() if how == "loss" else net.reactor.advance(300)
            fault = ended(peer, result)
            assert fault.stage is Stage.TLS
            assert fault.cleartext is cleartext

    def test_implicit_tls_comes_first(self, net: Net) -> None:
        peer, result = opening(net, replace(TARGET, tls=OutboundTls.IMPLICIT))
        assert len(peer.wire.tls) == 1
        assert peer.read() == b""
        peer.drop()
        fault = ended(peer, result)
        assert fault.stage is Stage.TLS
        assert not fault.cleartext


class TestAuth:
    def secret(self, credential: Credential) -> bytes:
        return "s3cret pässword".encode()

    def test_plain(self, net: Net, credential: Credential) -> None:
        peer, result = opening(net, replace(TARGET, credential=credential))
        line = greet(peer, b"AUTH LOGIN PLAIN")
        expected = base64.b64encode(b"\0relay@corp.example\0" + self.secret(credential))
        assert line == b"AUTH PLAIN " + expected + b"\r\n"
        peer.say(b"235 2.7.0 welcome")
        assert result.value.usable

    @pytest.mark.parametrize("offer", [b"AUTH LOGIN", b"AUTH=LOGIN"])
    def test_login(self, net: Net, credential: Credential, offer: bytes) -> None:
        peer, result = opening(net, replace(TARGET, credential=credential))
        assert greet(peer, offer) == b"AUTH LOGIN\r\n"
        assert base64.b64decode(peer.say(b"334 VXNlcm5hbWU6")) == b"relay@corp.example"
        assert base64.b64decode(peer.say(b"334 UGFzc3dvcmQ6")) == self.secret(credential)
        peer.say(b"235 welcome")
        assert result.value.usable

    @pytest.mark.parametrize("line", [b"535 5.7.8 no", b"454 4.7.0 no", b"334 more?", b"250 ok", b"421 no"])
    def test_refused_is_the_path(self, net: Net, credential: Credential, line: bytes) -> None:
        peer, result = opening(net, replace(TARGET, credential=credential))
        greet(peer, b"AUTH PLAIN")
        peer.say(line)
        fault = ended(peer, result)
        assert fault.stage is Stage.AUTH
        assert "s3cret" not in f"{fault} {fault.detail} {fault.reply}"

    @pytest.mark.parametrize("offer", [b"PIPELINING", b"AUTH GSSAPI NTLM", b"AUTH"])
    def test_no_mechanism(self, net: Net, credential: Credential, offer: bytes) -> None:
        peer, result = opening(net, replace(TARGET, credential=credential))
        assert greet(peer, offer) == b""
        assert ended(peer, result).stage is Stage.AUTH

    @pytest.mark.parametrize("content", [None, b"", b"\r\n", b"a\0b"])
    def test_no_password(self, net: Net, credential: Credential, content: bytes | None) -> None:
        assert credential.password_file is not None
        if content is None:
            credential.password_file.unlink()
        else:
            credential.password_file.write_bytes(content)
        peer, result = opening(net, replace(TARGET, credential=credential))
        assert greet(peer, b"AUTH PLAIN") == b""
        assert ended(peer, result).stage is Stage.AUTH

    @pytest.mark.parametrize("level", [OutboundTls.NONE, OutboundTls.MAY, OutboundTls.REQUIRE])
    def test_never_in_the_clear(self, net: Net, credential: Credential, level: OutboundTls) -> None:
        careful = replace(credential, allow_insecure=False)
        peer, result = opening(net, replace(TARGET, tls=level, credential=careful))
        assert greet(peer, b"AUTH PLAIN") == b""
        assert ended(peer, result).stage is Stage.STARTTLS


class TestLeaving:
    def test_quit(self, net: Net) -> None:
        peer, connection = net.opened()
        left = Result(connection.quit())
        assert peer.read() == b"QUIT\r\n"
        assert left.waiting
        peer.say(b"221 bye")
        assert left.value is None
        assert peer.wire.disconnecting
        assert not peer.wire.aborted
        peer.drop()
        assert not net.reactor.getDelayedCalls()

    def test_quit_without_an_answer(self, net: Net) -> None:
        peer, connection = net.opened()
        left = Result(connection.quit())
        net.reactor.advance(5)
        assert left.value is None
        assert peer.wire.aborted

    def test_quit_and_a_peer_that_does_not_close(self, net: Net) -> None:
        peer, connection = net.opened()
        connection.quit()
        peer.say(b"221 bye")
        net.reactor.advance(5)
        assert peer.wire.aborted

    def test_quit_in_a_transaction_breaks_it_off(self, net: Net) -> None:
        peer, connection = net.opened()
        sent = Result(connection.send(ALICE, [BOB], Body(HELLO)))
        assert Result(connection.quit()).value is None
        assert peer.wire.aborted
        peer.drop()
        sent.fault(PathFault)

    @pytest.mark.parametrize("line", [b"421 4.4.2 idle too long", b"250 what?", b"noise"])
    def test_words_while_idle_end_it(self, net: Net, line: bytes) -> None:
        peer, connection = net.opened()
        lost = []
        connection.closed = lost.append
        peer.say(line)
        assert peer.ended
        assert not connection.usable
        peer.drop()
        assert lost == [connection]

    def test_idle_costs_no_timer_for_ever(self, net: Net) -> None:
        _, connection = net.opened()
        net.reactor.advance(1000)
        assert connection.usable
        assert not net.reactor.getDelayedCalls()


def test_time_outs_from_the_settings() -> None:
    assert Timeouts.of(Delivery(timeout=60.0)) == Timeouts(30.0, 60.0, 600.0)
    assert Timeouts.of(Delivery(timeout=900.0)) == Timeouts(30.0, 900.0, 900.0)


@pytest.mark.parametrize(
    ("reply", "soft"),
    [
        (Reply.of(554, "5.7.1", "no"), Reply.of(451, "4.7.1", "no")),
        (Reply.of(554, "", "no"), Reply.of(451, "4.0.0", "no")),
        (Reply.of(421, "4.3.2", "no"), Reply.of(421, "4.3.2", "no")),
        (Reply.of(250, "2.0.0", "no"), Reply.of(451, "4.0.0", "no")),
    ],
)
def test_softened(reply: Reply, soft: Reply) -> None:
    assert softened(reply) == soft


@pytest.mark.parametrize("level", [OutboundTls.NONE, OutboundTls.MAY, OutboundTls.REQUIRE, OutboundTls.VERIFY])
def test_a_credential_raises_the_level(level: OutboundTls) -> None:
    assert replace(TARGET, tls=level, credential=Credential("c")).level is OutboundTls.VERIFY
    assert replace(TARGET, tls=level, credential=Credential("c", allow_insecure=True)).level is level
    assert replace(TARGET, tls=level).level is level
