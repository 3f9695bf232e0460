"""What must not happen to mail when clocks jump, leases end, disks fill and many next hops hang at once."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any, BinaryIO

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from relayd.delivery.destination import Health
from relayd.delivery.mx import Hop
from relayd.delivery.scheduler import CAPACITY
from relayd.model import Fault, Reply
from relayd.queue.store import Claim, MessageState
from tests.unit.delivery.fakes import OK, Rig, Sending
from tests.unit.delivery.values import Octets, claim, hop, settings

SMART: dict[str, Any] = {"smart_host": (hop("smart.example"),)}


def many(count: int, domain: str, *, start: int = 1, octets: int = 10) -> list[Claim]:
    body = Octets(b"x" * octets)
    return [claim(f"u{n}@{domain}", message_id=f"M{n}", first_id=n, body=body) for n in range(start, start + count)]


class TestALeaseThatEndedBeforeItsDelivery:
    """A machine that slept, a clock that was set, a store that could not renew: the store gives the message again."""

    def test_it_is_not_sent_twice(self) -> None:
        rig = Rig(settings(**SMART))
        one = claim("a@x.example", "b@x.example")
        rig.scheduler.take(one)
        rig.queue(one)
        rig.scheduler.wake()
        assert len(rig.pool.all) == 1
        rig.pool.under_way[0].answer()
        assert len(rig.pool.all) == 1
        assert rig.store.states() == {1: "delivered", 2: "delivered"}
        assert rig.scheduler.room == CAPACITY

    def test_only_what_is_not_under_way_is_tried(self) -> None:
        rig = Rig(settings())
        both = claim("a@hangs.example", "b@defers.example")
        rig.pool.answers = lambda sending: (
            sending.answer(Reply.of(450, "4.2.0", "later")) if "defers" in sending.target.host else None
        )
        rig.scheduler.take(both)
        assert rig.store.states() == {2: "queued"}
        rig.queue(both)
        rig.scheduler.wake()
        assert [sending.to for sending in rig.pool.all] == [
            ["a@hangs.example"],
            ["b@defers.example"],
            ["b@defers.example"],
        ]

    def test_what_was_sent_and_could_not_be_recorded_is_not_sent_again(self) -> None:
        rig = Rig(settings(**SMART))
        one = claim("a@x.example")
        rig.scheduler.take(one)
        rig.store.broken = Fault(Reply.of(452, "4.3.1", "full"))
        rig.pool.under_way[0].answer()
        rig.clock.advance(3.0)
        rig.store.broken = None
        rig.queue(one)  # nothing could renew its lease
        rig.scheduler.wake()
        rig.clock.pump([1.0] * 60)
        assert len(rig.pool.all) == 1
        assert rig.store.states() == {1: "delivered"}
        assert rig.scheduler.room == CAPACITY


class TestManyThatHang:
    @pytest.mark.parametrize(
        ("number", "each", "octets"),
        [(20, 100, 10), (9, 250, 10), (3, 250, 260_000), (60, 60, 40_000), (500, 3, 10)],
        ids=["twenty", "nine full ones", "three with large mail", "sixty", "more than there are connections for"],
    )
    def test_they_hold_up_nobody_else(self, number: int, each: int, octets: int) -> None:
        rig = Rig(settings())
        for n in range(number):
            rig.queue(*many(each, f"hangs{n}.example", start=1 + n * each, octets=octets), at=10.0)
        rig.queue(*many(200, "works.example", start=50_000), at=20.0)
        rig.pool.answers = lambda sending: sending.answer() if "works" in sending.target.host else None
        rig.scheduler.wake()
        rig.clock.pump([1.0] * 60)
        states = rig.store.states()
        assert [states.get(n) for n in range(50_000, 50_200)] == ["delivered"] * 200
        assert rig.scheduler.room > 0

    def test_they_stop_half_way_to_the_last_connection_when_they_had_many(self) -> None:
        rig = Rig(settings(connections=100, connections_per_hop=20))
        rig.pool.answers = lambda sending: sending.answer()
        for n in range(10):
            rig.queue(*many(200, f"worked{n}.example", start=1 + n * 200))
        rig.scheduler.wake()
        rig.pool.answers = lambda sending: sending.answer() if "works" in sending.target.host else None
        rig.clock.advance(20.0)
        for n in range(10):
            rig.queue(*many(100, f"worked{n}.example", start=10_001 + n * 100))
        rig.scheduler.wake()
        assert 50 <= rig.scheduler.active < 70
        rig.queue(*many(50, "works.example", start=50_000))
        rig.scheduler.wake()
        assert [rig.store.states().get(n) for n in range(50_000, 50_050)] == ["delivered"] * 50

    def test_when_they_answer_at_last_all_arrives(self) -> None:
        rig = Rig(settings())
        for n in range(9):
            rig.queue(*many(250, f"hangs{n}.example", start=1 + n * 250), at=10.0)
        rig.scheduler.wake()
        rig.clock.pump([1.0] * 60)
        rig.pool.answers = lambda sending: sending.answer()
        for sending in list(rig.pool.under_way):
            sending.answer()
        rig.clock.pump([5.0] * 400)
        assert set(rig.store.states().values()) == {"delivered"}
        assert len(rig.store.states()) == 9 * 250
        assert rig.scheduler.room == CAPACITY


class TestADeadHost:
    def test_a_long_queue_does_not_come_and_go_with_each_short_rest(self) -> None:
        rig = Rig(settings(retry=(1.0,), **SMART))
        rig.pool.answers = lambda sending: sending.fault()
        rig.queue(*many(3000, "x.example"))
        rig.scheduler.wake()
        rig.clock.pump([0.5] * 240)
        assert len(rig.pool.all) >= 60, "it is tried all the same"
        assert len(rig.store.attempts) < 120 * 300, "fetched and given back over and over"
        rig.pool.answers = lambda sending: sending.answer()
        rig.clock.pump([0.5] * 120)
        assert set(rig.store.states().values()) == {"delivered"}

    def test_what_was_not_tried_tells_why(self) -> None:
        rig = Rig(settings(**SMART))
        rig.pool.answers = lambda sending: sending.fault(text="No connection: refused")
        for each in many(10, "x.example"):
            rig.scheduler.take(each)
        untried = [attempt for attempt in rig.store.attempts if not attempt.counts]
        assert untried
        assert {str(attempt.reply) for attempt in untried} == {"451 4.4.1 No connection: refused"}


class TestAStop:
    def test_waits_for_a_claim_that_is_on_its_way(self) -> None:
        """Else the queue is closed before what it brings can be given back."""
        rig = Rig(settings(**SMART), start=False)
        coming: Deferred[tuple[Claim, ...]] = Deferred()
        rig.store.claim = lambda limit: coming  # type: ignore[method-assign]
        rig.scheduler.startService()
        stopped: list[object] = []
        rig.scheduler.stopService().addCallback(stopped.append)
        assert not stopped
        coming.callback(tuple(many(200, "x.example")))
        assert stopped
        assert set(rig.store.states().values()) == {"queued"}

    def test_but_not_for_ever(self) -> None:
        rig = Rig(settings(**SMART), start=False)
        rig.store.claim = lambda limit: Deferred()  # type: ignore[method-assign]
        rig.scheduler.startService()
        stopped: list[object] = []
        rig.scheduler.stopService().addCallback(stopped.append)
        rig.clock.pump([1.0] * 20)
        assert stopped


class TestExpiry:
    def test_a_relay_that_was_off_for_days_tries_before_it_bounces(self) -> None:
        """The network comes up a moment after the relay."""
        rig = Rig(settings(expire=3600.0, **SMART), now=100_000.0)
        rig.queue(*many(50, "x.example"))  # received at 0
        rig.pool.answers = lambda sending: sending.fault()
        rig.scheduler.wake()
        rig.clock.pump([1.0] * 60)
        bounced = [a for a in rig.store.attempts if a.state is MessageState.BOUNCED]
        assert all(a.counts for a in bounced), "given up untried"
        assert len(bounced) < 20
        rig.pool.answers = lambda sending: sending.answer()
        rig.clock.pump([5.0] * 100)
        states = list(rig.store.states().values())
        assert states.count("delivered") >= 30 + len(rig.store.settlements[0].notices)

    def test_mail_to_a_host_that_stays_dead_expires_all_the_same(self) -> None:
        rig = Rig(settings(expire=7200.0, **SMART), now=0.0)
        rig.pool.answers = lambda sending: sending.fault()
        for each in many(300, "x.example"):
            rig.scheduler.take(replace(each, received_at=0.0))
        rig.clock.pump([30.0] * (7200 // 30 + 20))
        states = rig.store.states()
        assert [states[n] for n in range(1, 301)] == ["bounced"] * 300

    def test_a_stop_gives_up_nothing(self) -> None:
        rig = Rig(settings(expire=3600.0, **SMART), now=100_000.0)
        for each in many(30, "x.example"):  # received at 0: long expired
            rig.scheduler.take(each)
        rig.scheduler.stopService()
        rig.clock.advance(60.0)
        assert set(rig.store.states().values()) == {"queued"}
        assert not any(settlement.notices for settlement in rig.store.settlements)


class Unreadable(Octets):
    def open(self) -> BinaryIO:
        raise FileNotFoundError(2, "No such file or directory")


def test_a_bounce_goes_even_when_the_message_cannot_be_read_any_more() -> None:
    """Else it would be tried, and fail, and be kept for its bounce for ever."""
    rig = Rig(settings(**SMART))
    rig.scheduler._settling._notifier._in_thread = lambda call: maybeDeferred(call)  # type: ignore[assignment]
    rig.scheduler.take(claim("a@x.example", body=Unreadable(b"x", filed=True)))
    rig.pool.under_way[0].answer(Reply.of(550, "5.1.1", "nobody"))
    assert rig.store.states()[1] == "bounced"
    (notice,) = rig.store.settlements[0].notices
    assert b"550 5.1.1 nobody" in notice.octets
    assert not rig.named("fault")


class TestAClockThatIsSetBack:
    def test_a_hop_does_not_rest_for_as_long_as_the_clock_jumped(self) -> None:
        health = Health()
        there = Hop("mx.example", ip_address("192.0.2.1"), 25)
        assert health.failed(there, 10_000.0) == 5.0
        assert health.resting(there, 10_004.0)
        assert not health.resting(there, 6_400.0)
        assert health.until([there], 6_400.0) == 6_400.0
        assert health.failed(there, 6_400.0) == 10.0


def test_room_comes_back_whatever_happens() -> None:
    rig = Rig(settings(expire=7200.0))
    turn = 0

    def answer(sending: Sending) -> None:
        nonlocal turn
        turn += 1
        match turn % 6:
            case 0:
                sending.answer(OK)
            case 1:
                sending.answer(Reply.of(450, "4.2.0", "later"))
            case 2:
                sending.answer(Reply.of(550, "5.1.1", "nobody"))
            case 3:
                sending.fault()
            case 4:
                sending.done.errback(RuntimeError("a bug"))
            case _:
                sending.done.errback(Fault(Reply.of(451, "4.3.2", "busy")))

    rig.pool.answers = answer
    for n in range(500):
        sender = "" if n % 7 == 0 else "app@corp.example"
        rig.scheduler.take(
            claim(
                *(f"u{i}@d{(n + i) % 11}.example" for i in range(1 + n % 3)),
                f"v@gone{n}.example",
                sender=sender,
                message_id=f"M{n}",
                first_id=n * 10,
            )
        )
        if n % 50 == 0:
            rig.store.broken = Fault(Reply.of(452, "4.3.1", "full"))
            rig.badmail.fault = Fault(Reply.of(452, "4.3.1", "full"))
        elif n % 50 == 5:
            rig.store.broken = rig.badmail.fault = None
            rig.clock.advance(7.0)
    rig.store.broken = rig.badmail.fault = None
    rig.clock.pump([20.0] * 1500)  # notices expire, too
    assert set(rig.store.states().values()) <= {"delivered", "bounced", "badmail"}
    assert rig.scheduler.room == CAPACITY
    assert rig.scheduler.active == 0
