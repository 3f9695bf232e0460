"""Connections kept for reuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as Refused

from relayd.delivery import ConnectionPool, PathFault, Stage, Target
from relayd.settings import OutboundTls
from tests.unit.delivery.peer import (
    ALICE,
    BOB,
    CAROL,
    HELLO,
    TARGET,
    TLS,
    Body,
    Net,
    Peer,
    Result,
    codes,
    greet,
    in_thread,
)

OTHER = replace(TARGET, port=2525)


class Pooled(Net):
    """A pool over a reactor in memory."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.pool = ConnectionPool(self.reactor, hostname="relay.corp.example", tls=TLS, in_thread=in_thread, **more)

    def send(self, target: Target = TARGET, recipients=(BOB,)) -> Result:
        return Result(Deferred.fromCoroutine(self.pool.send(target, ALICE, recipients, Body(HELLO))))

    def fresh(self) -> Peer:
        """Accept the connection that was asked for, up to the message's first commands."""
        peer = self.accept()
        assert greet(peer, b"PIPELINING").startswith(b"MAIL")
        return peer

    def delivered(self, target: Target = TARGET) -> Peer:
        """Send a message through a fresh connection."""
        result = self.send(target)
        peer = self.fresh()
        take(peer)
        assert codes(result.value.replies) == [250]
        return peer


def take(peer: Peer) -> None:
    peer.say(b"250 ok", b"250 ok", b"354 go")
    peer.say(b"250 ok")


@pytest.fixture
def net() -> Pooled:
    return Pooled()


def test_what_is_told_of_a_message(net: Pooled) -> None:
    result = net.send()
    take(net.fresh())
    sent = result.value
    assert (sent.peer, sent.tls, sent.broken) == ("mx.example[192.0.2.1]:25", "", False)
    assert sent.extensions == {"PIPELINING"}


def test_the_next_message_takes_the_same_connection(net: Pooled) -> None:
    peer = net.delivered()
    assert (net.pool.busy, net.pool.idle, net.pool.open_to(TARGET)) == (0, 1, 1)
    result = net.send()
    assert (net.pool.busy, net.pool.idle, net.pool.open_to(TARGET)) == (1, 0, 1)
    assert peer.read().startswith(b"MAIL")
    take(peer)
    assert codes(result.value.replies) == [250]
    assert net.attempts == 1


@pytest.mark.parametrize("other", [OTHER, replace(TARGET, tls=OutboundTls.MAY), replace(TARGET, host="other.example")])
def test_another_target_takes_another_connection(net: Pooled, other: Target) -> None:
    net.delivered()
    net.send(other)
    assert net.attempts == 2
    assert (net.pool.open_to(TARGET), net.pool.open_to(other)) == (1, 1)


def test_a_busy_connection_is_not_shared(net: Pooled) -> None:
    net.send()
    net.send()
    assert net.attempts == 2
    assert net.pool.busy == 2


def test_an_unused_connection_is_left_after_five_seconds(net: Pooled) -> None:
    peer = net.delivered()
    net.reactor.advance(4.9)
    assert peer.read() == b""
    net.reactor.advance(0.1)
    assert peer.read() == b"QUIT\r\n"
    assert net.pool.idle == 0
    peer.say(b"221 bye")
    assert peer.wire.disconnecting


def test_each_connection_has_its_own_time(net: Pooled) -> None:
    first, second = net.delivered(), net.delivered(OTHER)
    net.reactor.advance(3)
    net.send()
    take(first)
    first.read()
    net.reactor.advance(2)
    assert (first.read(), second.read()) == (b"", b"QUIT\r\n")
    net.reactor.advance(3)
    assert first.read() == b"QUIT\r\n"


def test_a_connection_carries_so_many_messages() -> None:
    net = Pooled(messages=2)
    peer = net.delivered()
    net.send()
    peer.read()
    take(peer)
    assert peer.read() == b""
    assert net.pool.idle == 0
    net.send()
    assert net.attempts == 2


def test_the_last_message_is_followed_by_quit() -> None:
    net = Pooled(messages=1)
    result = net.send()
    peer = net.fresh()
    peer.say(b"250 ok", b"250 ok", b"354 go")
    assert peer.say(b"250 ok") == b"QUIT\r\n"
    assert codes(result.value.replies) == [250]


class TestDeadIdleConnections:
    def test_closed_before(self, net: Pooled) -> None:
        net.delivered().drop()
        assert net.pool.idle == 0
        result = net.send()
        take(net.fresh())
        assert codes(result.value.replies) == [250]

    @pytest.mark.parametrize("farewell", [[], [b"421 4.4.2 idle too long"]], ids=["closed", "421"])
    def test_closed_while_the_next_message_is_written(self, net: Pooled, farewell: list[bytes]) -> None:
        peer = net.delivered()
        result = net.send()
        if farewell:
            peer.say(*farewell)
        peer.drop()
        assert result.waiting
        take(net.fresh())
        assert codes(result.value.replies) == [250]

    def test_said_421_and_not_yet_closed(self, net: Pooled) -> None:
        peer = net.delivered()
        peer.say(b"421 4.4.2 idle too long")
        result = net.send()
        take(net.fresh())
        assert codes(result.value.replies) == [250]

    def test_several(self, net: Pooled) -> None:
        first = net.send()
        second = net.send()
        peers = [net.fresh(), net.fresh()]
        for peer in peers:
            take(peer)
        assert codes(first.value.replies + second.value.replies) == [250, 250]
        result = net.send()
        for peer in reversed(peers):
            peer.drop()
        take(net.fresh())
        assert codes(result.value.replies) == [250]

    def test_lost_after_an_answer_counts(self, net: Pooled) -> None:
        peer = net.delivered()
        result = net.send()
        peer.say(b"250 ok")
        peer.drop()
        assert result.fault(PathFault).stage is Stage.RCPT
        assert net.attempts == 1

    def test_a_fresh_connection_that_dies_counts(self, net: Pooled) -> None:
        result = net.send()
        net.fresh().drop()
        assert result.fault(PathFault).stage is Stage.MAIL
        assert net.attempts == 1
        assert (net.pool.busy, net.pool.idle) == (0, 0)


class TestCleartext:
    target = replace(TARGET, tls=OutboundTls.MAY)

    def broken(self, net: Pooled) -> Result:
        result = net.send(self.target)
        peer = net.accept()
        greet(peer, b"STARTTLS")
        peer.say(b"220 go")
        peer.drop()
        return result

    def test_once_more_without_tls(self, net: Pooled) -> None:
        result = self.broken(net)
        peer = net.accept()
        assert greet(peer, b"STARTTLS", b"PIPELINING").startswith(b"MAIL")
        take(peer)
        assert codes(result.value.replies) == [250]
        assert net.pool.open_to(self.target) == 1
        net.send(self.target)
        assert net.attempts == 2
        assert peer.read().startswith(b"MAIL")

    def test_once_alone(self, net: Pooled) -> None:
        result = self.broken(net)
        net.refuse(Refused(111))
        assert result.fault(PathFault).stage is Stage.CONNECT
        assert net.attempts == 2

    def test_never_where_tls_is_required(self, net: Pooled) -> None:
        result = net.send(replace(TARGET, tls=OutboundTls.REQUIRE))
        peer = net.accept()
        greet(peer, b"STARTTLS")
        peer.say(b"220 go")
        peer.drop()
        assert result.fault(PathFault).stage is Stage.TLS
        assert net.attempts == 1


def test_some_answered_and_then_broken(net: Pooled) -> None:
    result = net.send(recipients=(BOB, CAROL))
    peer = net.fresh()
    peer.say(b"250 ok", b"550 5.1.1 who?")
    peer.drop()
    sent = result.value
    assert codes(sent.replies) == [550, 451]
    assert sent.broken
    assert net.pool.idle == 0


def test_an_idle_connection_makes_room_for_a_new_one() -> None:
    net = Pooled(most=1)
    idle = net.delivered()
    net.send(OTHER)
    assert idle.read() == b"QUIT\r\n"
    assert (net.pool.busy, net.pool.idle) == (1, 0)


def test_close_takes_leave(net: Pooled) -> None:
    idle = net.delivered(OTHER)
    busy = net.send()
    peer = net.fresh()
    closed = Result(Deferred.fromCoroutine(net.pool.close()))
    assert idle.read() == b"QUIT\r\n"
    assert closed.waiting
    idle.say(b"221 bye")
    idle.drop()
    closed.value  # noqa: B018
    peer.say(b"250 ok", b"250 ok", b"354 go")
    assert peer.say(b"250 ok") == b"QUIT\r\n"
    assert codes(busy.value.replies) == [250]
    peer.say(b"221 bye")
    peer.drop()
    assert not net.reactor.getDelayedCalls()
