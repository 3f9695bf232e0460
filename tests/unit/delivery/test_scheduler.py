"""The scheduler: who is sent to, in which order, how much at once, and what is recorded."""

from __future__ import annotations

import math
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.delivery import Sent, Stage
from relayd.delivery.sending import HASTE
from relayd.model import Fault, Path, Recipient, Reply, Sender
from relayd.queue.store import MessageState
from relayd.resolver import NoSuchDomain
from tests.unit.delivery.fakes import BUSY, OK, UNKNOWN, Rig, Sending
from tests.unit.delivery.values import Octets, claim, hop, local, path, recipient, remote, settings

SMART: dict[str, Any] = {"smart_host": (hop("one.example"),)}
TWO: dict[str, Any] = {"smart_host": (hop("one.example"), hop("two.example:587"))}


def many(count: int, domain: str = "dest.example", start: int = 0) -> list[Any]:
    return [claim(f"u@{domain}", message_id=f"{domain}-{n}", first_id=n) for n in range(start, start + count)]


class TestOneMessage:
    def test_goes_out_from_memory_at_once(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("bob@dest.example", sender="alice@corp.example", received_at=990.0))
        (sending,) = rig.pool.under_way
        assert (str(sending.sender.path), sending.to) == ("alice@corp.example", ["bob@dest.example"])
        assert (sending.target.host, sending.target.port) == ("one.example", 25)
        sending.answer()
        (attempt,) = rig.store.attempts
        assert attempt.state is MessageState.DELIVERED
        assert (attempt.reply, attempt.tls) == (OK, "TLSv1.3")
        assert attempt.host.startswith("one.example[")
        (event,) = rig.named("delivered")
        assert dict(event.items())["delay"] == 10.0
        assert rig.scheduler.active == 0

    def test_each_recipient_has_a_result_of_its_own(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example", "b@dest.example", "c@dest.example"))
        rig.pool.under_way[0].answer(OK, BUSY, UNKNOWN)
        assert rig.store.states() == {1: "delivered", 2: "queued", 3: "bounced"}

    def test_the_smart_host_takes_all_domains_in_one_transaction(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@one.org", "b@two.org", "c@one.org"))
        (sending,) = rig.pool.under_way
        assert sending.to == ["a@one.org", "b@two.org", "c@one.org"]

    def test_a_domain_of_its_own_has_a_transaction_of_its_own(self) -> None:
        rig = Rig(settings())
        rig.scheduler.take(claim("a@one.org", "b@two.org", "c@ONE.org"))
        assert [(s.target.host, s.to) for s in rig.pool.under_way] == [
            ("mx.one.org", ["a@one.org", "c@ONE.org"]),
            ("mx.two.org", ["b@two.org"]),
        ]
        rig.pool.under_way[1].answer()
        assert rig.store.states() == {2: "delivered"}
        rig.pool.under_way[0].answer()
        assert rig.store.states() == {1: "delivered", 2: "delivered", 3: "delivered"}

    def test_a_transaction_has_a_hundred_recipients_at_most(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim(*(f"u{n}@dest.example" for n in range(250))))
        assert [len(sending.recipients) for sending in rig.pool.under_way] == [100, 100, 50]

    def test_a_local_domain_goes_to_the_drop_folder(self) -> None:
        rig = Rig(settings(local("corp.example"), **SMART))
        rig.scheduler.take(claim("a@corp.example", "b@corp.example", "c@dest.example", sender="x@y.example"))
        assert rig.drop.files == [("M1", "x@y.example", ["a@corp.example", "b@corp.example"])]
        assert [sending.to for sending in rig.pool.under_way] == [["c@dest.example"]]
        assert rig.store.states() == {1: "delivered", 2: "delivered"}

    def test_a_full_drop_folder_defers(self) -> None:
        rig = Rig(settings(local("corp.example")))
        rig.drop.fault = Fault(Reply.of(452, "4.3.1", "Insufficient storage"), "no space")
        rig.scheduler.take(claim("a@corp.example"))
        (attempt,) = rig.store.attempts
        assert (attempt.state, attempt.detail) == (MessageState.QUEUED, "no space")

    def test_the_bare_postmaster_is_sent_to_a_real_address(self) -> None:
        rig = Rig(settings(postmaster=path("it@admin.example")))
        rig.scheduler.take(claim(recipient("postmaster")))
        assert rig.pool.under_way[0].to == ["it@admin.example"]

    def test_the_sender_is_masqueraded_outside(self) -> None:
        rig = Rig(settings(local("corp.example"), masquerade_domain="example.com", **SMART))
        rig.scheduler.take(claim("b@dest.example", sender="alice@corp.example"))
        assert str(rig.pool.under_way[0].sender.path) == "alice@example.com"

    def test_dns_is_not_asked_for_each_message(self) -> None:
        rig = Rig(settings(**SMART))
        rig.pool.answers = Sending.answer
        for each in many(20):
            rig.scheduler.take(each)
        assert rig.lookups.asked == ["one.example"]
        assert len(rig.store.attempts) == 20


class TestHops:
    def test_the_next_hop_is_tried_when_the_path_is_at_fault(self) -> None:
        rig = Rig(settings(**TWO))
        rig.scheduler.take(claim("a@dest.example"))
        rig.pool.under_way[0].fault(Stage.AUTH, "535 no", 535)
        (second,) = rig.pool.under_way
        assert (second.target.host, second.target.port) == ("two.example", 587)
        second.answer()
        assert rig.store.states() == {1: "delivered"}

    def test_an_address_is_given_up_soon_where_its_host_has_another(self) -> None:
        rig = Rig(settings())
        addresses = {"one.example": ("2001:db8::1", "198.51.100.1"), "two.example": ("198.51.100.2",)}
        rig.lookups.hosts |= {host: tuple(map(ip_address, texts)) for host, texts in addresses.items()}
        rig.lookups.exchangers["dest.example"] = ((10, "one.example"), (20, "two.example"))
        rig.pool.answers = Sending.fault
        rig.scheduler.take(claim("bob@dest.example"))
        assert [(str(s.target.address), s.target.haste) for s in rig.pool.all] == [
            ("2001:db8::1", HASTE),
            ("198.51.100.1", math.inf),
            ("198.51.100.2", math.inf),
        ]

    def test_a_path_fault_is_never_final(self) -> None:
        rig = Rig(settings(**TWO))
        rig.scheduler.take(claim("a@dest.example"))
        rig.pool.under_way[0].fault(Stage.GREETING, "554 go away", 554)
        rig.pool.under_way[0].fault(Stage.CONNECT, "No connection")
        (attempt,) = rig.store.attempts
        assert attempt.state is MessageState.QUEUED
        assert attempt.counts
        assert attempt.next_at == 1000.0 + 900.0
        assert attempt.host.startswith("two.example[")
        (event,) = rig.named("deferred")
        assert dict(event.items())["attempts"] == 1

    def test_4xx_waits_and_does_not_try_the_next_hop(self) -> None:
        rig = Rig(settings(**TWO))
        rig.scheduler.take(claim("a@dest.example"))
        rig.pool.under_way[0].answer(BUSY)
        assert not rig.pool.under_way
        assert rig.store.states() == {1: "queued"}

    def test_a_hop_that_failed_is_passed_over_while_it_rests(self) -> None:
        rig = Rig(settings(**TWO))
        for each in many(2):
            rig.scheduler.take(each)
            first = rig.pool.under_way[0]
            if first.target.host == "one.example":
                first.fault()
            rig.pool.under_way[0].answer()
        assert [sending.target.host for sending in rig.pool.all] == [
            "one.example",
            "two.example",
            "two.example",
        ]
        rig.clock.advance(6)
        rig.scheduler.take(many(1, start=5)[0])
        assert rig.pool.under_way[0].target.host == "one.example"

    def test_when_all_rest_mail_goes_back_untried_and_comes_again(self) -> None:
        rig = Rig(settings(**SMART))
        first, second = many(2)
        rig.scheduler.take(first)
        rig.pool.under_way[0].fault()
        (rests,) = rig.named("hop-rests")
        assert dict(rests.items())["seconds"] == 5.0
        rig.scheduler.take(second)
        assert not rig.pool.under_way
        untried = rig.store.attempts[-1]
        assert (untried.counts, untried.next_at, untried.state) == (False, 1005.0, MessageState.QUEUED)
        assert untried.reply.text == "No connection"
        rig.clock.advance(5.1)
        (sending,) = rig.pool.under_way
        sending.answer()
        assert rig.store.states()[second.recipients[0].id] == "delivered"

    def test_rests_grow_longer(self) -> None:
        rig = Rig(settings(**SMART))
        for n in range(8):
            rig.scheduler.take(many(1, start=n)[0])
            rig.pool.under_way[0].fault()
            rig.clock.advance(301)
            for other in list(rig.pool.under_way):
                other.fault()
            rig.clock.advance(301)
        seconds: list[Any] = [dict(event.items())["seconds"] for event in rig.named("hop-rests")]
        assert seconds == sorted(seconds)
        assert seconds[-1] == 300.0

    def test_no_rest_is_longer_than_the_waits_that_the_administrator_chose(self) -> None:
        rig = Rig(settings(retry=(2.0, 900.0), **SMART))
        for each in many(3):
            rig.scheduler.take(each)
            rig.pool.under_way[0].fault()
            rig.clock.advance(2.1)
            for other in list(rig.pool.under_way):
                other.fault()
            rig.clock.advance(2.1)
        assert {dict(event.items())["seconds"] for event in rig.named("hop-rests")} == {2.0}

    def test_an_administrator_does_not_wait_for_the_rest(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example"))
        rig.pool.under_way[0].fault()
        rig.queue(many(1, start=9)[0])
        rig.scheduler.retry()
        assert len(rig.pool.under_way) == 1

    def test_a_hop_that_takes_no_more_connections_is_not_dead(self) -> None:
        rig = Rig(settings(**SMART))
        for each in many(3):
            rig.scheduler.take(each)
        a, b, c = rig.pool.under_way
        a.answer()
        b.fault(Stage.GREETING, "421 too many connections", 421)
        assert not rig.named("hop-rests")
        assert rig.store.states() == {0: "delivered"}
        c.answer()
        (again,) = rig.pool.under_way
        assert again.to == b.to
        again.answer()
        assert set(rig.store.states().values()) == {"delivered"}

    def test_dns_that_says_no_is_final(self) -> None:
        rig = Rig(settings())
        rig.lookups.exchangers["gone.example"] = NoSuchDomain("gone.example")
        rig.scheduler.take(claim("a@gone.example"))
        assert rig.store.states()[1] == "bounced"

    def test_dns_that_fails_is_not(self) -> None:
        rig = Rig(settings())
        rig.lookups.exchangers["slow.example"] = Fault(Reply.of(451, "4.4.3", "DNS did not answer"), "time-out")
        rig.scheduler.take(claim("a@slow.example"))
        (attempt,) = rig.store.attempts
        assert (attempt.state, attempt.counts, attempt.detail) == (MessageState.QUEUED, True, "time-out")

    def test_our_own_shortage_is_no_attempt(self) -> None:
        rig = Rig(settings())
        rig.lookups.exchangers["slow.example"] = Fault(Reply.of(451, "4.3.2", "Busy"))
        rig.scheduler.take(claim("a@slow.example"))
        (attempt,) = rig.store.attempts
        assert (attempt.counts, attempt.next_at) == (False, 1030.0)


class TestConcurrency:
    def test_starts_low_and_grows_with_success(self) -> None:
        rig = Rig(settings(connections_per_hop=12, **SMART))
        for each in many(60):
            rig.scheduler.take(each)
        assert len(rig.pool.under_way) == 5
        for _ in range(30):
            rig.pool.under_way[0].answer()
        assert len(rig.pool.under_way) == 12

    def test_a_domain_has_its_own_limit(self) -> None:
        table = remote("dest.example", route=(hop("gate.example"),), connections=2)
        rig = Rig(settings(table, **SMART))
        for each in many(10):
            rig.scheduler.take(each)
        assert len(rig.pool.under_way) == 2

    def test_the_total_is_kept_and_destinations_take_turns(self) -> None:
        rig = Rig(settings(connections=4))
        for domain in ("a.example", "b.example", "c.example"):
            for each in many(10, domain, start=100 * ord(domain[0])):
                rig.scheduler.take(each)
        served = []
        while rig.pool.under_way:
            assert len(rig.pool.under_way) <= 4
            sending = rig.pool.under_way[0]
            served.append(sending.target.host)
            sending.answer()
        assert len(served) == 30
        assert set(served[4:16]) == {"mx.a.example", "mx.b.example", "mx.c.example"}

    def test_one_destination_is_first_in_first_out(self) -> None:
        rig = Rig(settings(remote("dest.example", route=(hop("gate.example"),), connections=1)))
        for n in range(5):
            rig.scheduler.take(claim(f"u{n}@dest.example", message_id=f"M{n}", first_id=n))
        while rig.pool.under_way:
            rig.pool.under_way[0].answer()
        assert [sending.to[0] for sending in rig.pool.all] == [f"u{n}@dest.example" for n in range(5)]

    def test_a_hanging_destination_holds_up_nobody_else(self) -> None:
        rig = Rig(settings())
        for each in many(50, "hangs.example"):
            rig.scheduler.take(each)
        for each in many(50, "works.example", start=1000):
            rig.scheduler.take(each)
        while sendings := rig.pool.to("mx.works.example"):
            sendings[0].answer()
        states = rig.store.states()
        assert len(states) == 50
        assert set(states.values()) == {"delivered"}

    def test_a_hanging_destination_does_not_fill_the_memory(self) -> None:
        rig = Rig(settings())
        for each in many(2000, "hangs.example"):
            rig.scheduler.take(each)
        assert rig.scheduler.room == 0
        rig.queue(*many(5, "works.example", start=5000))
        rig.scheduler.wake()
        rig.clock.pump([5.0] * 3)
        assert rig.scheduler.room > 1000
        assert len(rig.pool.to("mx.works.example")) == 5
        sent_away = [attempt for attempt in rig.store.attempts if not attempt.counts]
        assert sent_away
        assert all(attempt.next_at >= 1060.0 for attempt in sent_away)

    def test_a_slow_destination_with_a_long_backlog_holds_up_nobody_else(self) -> None:
        rig = Rig(settings())
        rig.queue(*many(10000, "slow.example"), at=10.0)
        rig.queue(*many(200, "works.example", start=20000), at=20.0)
        rig.pool.answers = lambda sending: sending.answer() if sending.target.host != "mx.slow.example" else None
        rig.scheduler.wake()
        for _ in range(90):  # one every second
            rig.clock.advance(1.0)
            if slow := rig.pool.to("mx.slow.example"):
                slow[0].answer()
        states = rig.store.states()
        assert [states.get(n) for n in range(20000, 20200)] == ["delivered"] * 200
        assert len(rig.pool.to("mx.slow.example")) >= 5

    def test_mail_for_a_slow_destination_is_not_fetched_over_and_over(self) -> None:
        rig = Rig(settings())
        rig.queue(*many(5000, "slow.example"), at=10.0)
        rig.scheduler.wake()
        for _ in range(600):
            rig.clock.advance(1.0)
            if slow := rig.pool.to("mx.slow.example"):
                slow[0].answer()
        untried = [attempt for attempt in rig.store.attempts if not attempt.counts]
        assert len(untried) < 3 * 5000
        assert sum(attempt.counts for attempt in rig.store.attempts) >= 595

    def test_a_healthy_destination_keeps_its_backlog(self) -> None:
        rig = Rig(settings(**SMART))
        for each in many(1500):
            rig.scheduler.take(each)
        for _ in range(4):
            rig.clock.advance(5)
            rig.pool.under_way[0].answer()
        assert all(attempt.counts for attempt in rig.store.attempts)

    def test_large_messages_fill_the_room_by_their_size(self) -> None:
        rig = Rig(settings(**SMART))
        body = Octets(b"x" * (64 * 1024**2))
        assert rig.scheduler.room > 0
        for n in range(2):
            rig.scheduler.take(claim("a@dest.example", message_id=f"M{n}", body=body))
        assert rig.scheduler.room == 0
        rig.pool.under_way[0].answer()
        assert rig.scheduler.room > 0


class TestTheStore:
    def test_what_waits_is_taken_at_the_start(self) -> None:
        rig = Rig(settings(**SMART), start=False)
        rig.queue(*many(3))
        rig.scheduler.startService()
        assert len(rig.pool.under_way) == 3

    def test_what_is_due_later_is_taken_then(self) -> None:
        rig = Rig(settings(**SMART), start=False)
        rig.queue(claim("a@dest.example"), at=1100.0)
        rig.scheduler.startService()
        rig.clock.advance(99)
        assert not rig.pool.under_way
        rig.clock.advance(1.1)
        assert len(rig.pool.under_way) == 1

    def test_a_deferred_message_comes_again_by_the_schedule(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example", received_at=1000.0))
        due = []
        for _ in range(6):
            rig.pool.under_way[0].answer(BUSY)
            due.append(rig.store.attempts[-1].next_at - rig.clock.seconds())
            rig.clock.pump([60.0] * (int(due[-1] / 60) + 1))
        assert due == [900.0, 1800.0, 3600.0, 14400.0, 14400.0, 14400.0]

    def test_wake_looks_at_once(self) -> None:
        rig = Rig(settings(**SMART))
        rig.queue(claim("a@dest.example"))
        rig.scheduler.wake()
        assert len(rig.pool.under_way) == 1

    def test_a_wake_during_a_claim_is_not_lost(self) -> None:
        rig = Rig(settings(**SMART))
        pending: Deferred[Any] = Deferred()
        original, rig.store.claim = rig.store.claim, lambda limit: pending  # type: ignore[method-assign]
        rig.scheduler.wake()
        rig.queue(claim("a@dest.example"))
        rig.scheduler.wake()
        rig.store.claim = original  # type: ignore[method-assign]
        pending.callback(())
        assert len(rig.pool.under_way) == 1

    def test_no_more_is_claimed_than_there_is_room_for(self) -> None:
        rig = Rig(settings(**SMART), start=False)
        rig.queue(*many(3000))
        rig.scheduler.startService()
        assert len(rig.store.waiting) >= 1000
        rig.pool.answers = Sending.answer
        while rig.pool.under_way:
            rig.pool.under_way[0].answer()
        assert not rig.store.waiting
        assert len(rig.store.states()) == 3000

    def test_a_store_that_fails_is_asked_again(self) -> None:
        rig = Rig(settings(**SMART), start=False)
        rig.store.broken = Fault(Reply.of(451, "4.3.0", "locked"), "database is locked")
        rig.queue(claim("a@dest.example"))
        rig.scheduler.startService()
        assert rig.named("fault")
        rig.clock.pump([1.0] * 10)
        assert len(rig.store.claims) < 6
        rig.store.broken = None
        rig.clock.pump([1.0] * 20)
        assert len(rig.pool.under_way) == 1

    def test_what_could_not_be_recorded_is_recorded_later_and_not_sent_again(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example"))
        rig.store.broken = Fault(Reply.of(452, "4.3.1", "full"), "disk full")
        rig.pool.under_way[0].answer()
        rig.clock.pump([1.0] * 90)
        assert not rig.store.settlements
        assert len(rig.pool.all) == 1
        rig.store.broken = None
        rig.clock.pump([1.0] * 61)
        assert rig.store.states() == {1: "delivered"}
        assert len(rig.pool.all) == 1

    def test_leases_of_long_deliveries_are_renewed(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example"))
        rig.clock.pump([1.0] * 70)
        assert rig.store.renewed == ["M1", "M1", "M1"]

    def test_nothing_is_renewed_after_the_end(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example"))
        rig.pool.under_way[0].answer()
        rig.clock.pump([5.0] * 60)
        assert not rig.store.renewed

    def test_an_unexpected_fault_defers_and_is_told(self) -> None:
        rig = Rig(settings(**SMART))

        def explode(sending: Sending) -> None:
            raise RuntimeError("bug")

        rig.pool.answers = explode
        rig.scheduler.take(claim("a@dest.example"))
        assert rig.store.states() == {1: "queued"}
        (event,) = rig.named("fault")
        assert dict(event.items())["queue_id"] == "M1"
        assert rig.scheduler.active == 0

    def test_an_unexpected_fault_before_sending_defers_too(self) -> None:
        rig = Rig(settings(**SMART))
        broken: Any = object()  # no path: a claim that nobody can read
        rig.scheduler.take(claim(Recipient(broken)))
        (attempt,) = rig.store.attempts
        assert (attempt.state, attempt.counts) == (MessageState.QUEUED, False)


class TestBounces:
    def test_5xx_bounces_to_the_sender_in_the_same_settlement(self) -> None:
        rig = Rig(settings(local("corp.example"), **SMART))
        rig.scheduler.take(claim("a@dest.example", sender="alice@corp.example"))
        rig.pool.under_way[0].answer(UNKNOWN)
        settlement = rig.store.settlements[0]
        assert settlement.attempts[0].state is MessageState.BOUNCED
        (notice,) = settlement.notices
        assert notice.envelope.sender.path.null
        assert [str(r.path) for r in notice.envelope.recipients] == ["alice@corp.example"]
        assert rig.drop.files == [("DSN1", "", ["alice@corp.example"])]
        (event,) = rig.named("dsn-queued")
        assert dict(event.items()) == {
            "queue_id": "DSN1",
            "about": "M1",
            "kind": "failure",
            "recipient": "alice@corp.example",
        }

    def test_one_notice_for_all_that_failed_together(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example", "b@dest.example", "c@dest.example"))
        rig.pool.under_way[0].answer(UNKNOWN, OK, UNKNOWN)
        (notice,) = rig.store.settlements[0].notices
        assert notice.octets.count(b"Final-Recipient:") == 2

    def test_expiry_bounces_after_a_last_try(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example", received_at=1000.0 - 172800.0, attempts=15))
        rig.pool.under_way[0].answer(BUSY)
        (attempt,) = rig.store.attempts
        assert attempt.state is MessageState.BOUNCED
        assert b"Status: 4.4.7" in rig.store.settlements[0].notices[0].octets

    def test_the_null_sender_never_gets_one(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example", sender=Sender(Path(""))))
        rig.pool.under_way[0].answer(UNKNOWN)
        assert rig.badmail.kept == [("M1", [("a@dest.example", str(UNKNOWN))])]
        (settlement,) = rig.store.settlements
        assert settlement.attempts[0].state is MessageState.BADMAIL
        assert not settlement.notices
        assert rig.named("badmail")

    def test_a_bounce_that_cannot_be_kept_is_not_lost(self) -> None:
        rig = Rig(settings(**SMART))
        rig.badmail.fault = Fault(Reply.of(452, "4.3.1", "full"), "no space left")
        rig.scheduler.take(claim("a@dest.example", "b@dest.example", sender=Sender(Path(""))))
        rig.pool.under_way[0].answer(OK, UNKNOWN)
        assert rig.store.states() == {1: "delivered", 2: "queued"}
        assert rig.named("fault")

    @pytest.mark.parametrize(
        ("notify", "notices"),
        [((), 1), (("FAILURE",), 1), (("NEVER",), 0), (("SUCCESS",), 0), (("DELAY", "SUCCESS"), 0)],
    )
    def test_notify_says_whether_a_failure_is_told(self, notify: tuple[str, ...], notices: int) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim(recipient("a@dest.example", *notify)))
        rig.pool.under_way[0].answer(UNKNOWN)
        (settlement,) = rig.store.settlements
        assert settlement.attempts[0].state is MessageState.BOUNCED
        assert len(settlement.notices) == notices

    def test_a_copy_goes_to_the_administrator(self) -> None:
        rig = Rig(settings(bounce_copy_to=path("it@corp.example"), **SMART))
        rig.scheduler.take(claim("a@dest.example", sender="alice@corp.example"))
        rig.pool.under_way[0].answer(UNKNOWN)
        (notice,) = rig.store.settlements[0].notices
        assert [str(r.path) for r in notice.envelope.recipients] == ["alice@corp.example", "it@corp.example"]

    def test_a_bounce_of_a_bounce_ends_in_badmail(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example", sender="alice@corp.example"))
        rig.pool.under_way[0].answer(UNKNOWN)
        rig.pool.under_way[0].answer(UNKNOWN)
        assert [kept[0] for kept in rig.badmail.kept] == ["DSN1"]
        assert not rig.pool.under_way


class TestDelay:
    def test_is_told_once(self) -> None:
        rig = Rig(settings(delay_notice=3600.0, expire=86400.0, retry=(1800.0,), **SMART))
        rig.pool.answers = lambda s: s.answer(OK if s.sender.path.null else BUSY)
        rig.scheduler.take(claim("a@dest.example", received_at=1000.0))
        rig.clock.pump([300.0] * 60)
        notices = [notice for settlement in rig.store.settlements for notice in settlement.notices]
        assert len(notices) == 1
        assert b"Action: delayed" in notices[0].octets

    @pytest.mark.parametrize("notify", [("NEVER",), ("FAILURE",)])
    def test_is_not_told_to_those_who_do_not_want_it(self, notify: tuple[str, ...]) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim(recipient("a@dest.example", *notify), received_at=1000.0 - 50000))
        rig.pool.under_way[0].answer(BUSY)
        assert not rig.store.settlements[0].notices


class TestSuccess:
    def test_is_told_of_the_drop_folder(self) -> None:
        rig = Rig(settings(local("corp.example"), **SMART))
        rig.scheduler.take(claim(recipient("a@corp.example", "SUCCESS"), sender="x@dest.example"))
        (notice,) = rig.store.settlements[0].notices
        assert b"Action: delivered" in notice.octets

    @pytest.mark.parametrize(("extensions", "notices"), [({"DSN"}, 0), (set(), 1)])
    def test_a_host_without_dsn_is_answered_for(self, extensions: set[str], notices: int) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim(recipient("a@dest.example", "SUCCESS")))
        rig.pool.under_way[0].extensions = frozenset(extensions)
        rig.pool.under_way[0].answer()
        told = rig.store.settlements[0].notices
        assert len(told) == notices
        assert all(b"Action: relayed" in notice.octets for notice in told)


class TestStop:
    def test_what_waits_goes_back_and_what_is_under_way_is_finished(self) -> None:
        rig = Rig(settings(remote("dest.example", route=(hop("gate.example"),), connections=1)))
        for each in many(3):
            rig.scheduler.take(each)
        stopped = rig.scheduler.stopService()
        assert [(a.recipient_id, a.counts) for a in rig.store.attempts] == [(1, False), (2, False)]
        assert not stopped.called
        rig.pool.under_way[0].answer()
        assert rig.store.states()[0] == "delivered"
        assert stopped.called
        assert not [call for call in rig.clock.getDelayedCalls() if call.active()]

    def test_what_does_not_end_is_given_back_after_a_while(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example"))
        stopped = rig.scheduler.stopService()
        rig.clock.advance(5.1)
        assert stopped.called
        (attempt,) = rig.store.attempts
        assert (attempt.state, attempt.counts) == (MessageState.QUEUED, False)
        assert not rig.pool.under_way

    def test_a_claim_that_comes_too_late_goes_back(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.stopService()
        assert rig.scheduler.room == 0
        rig.scheduler.take(claim("a@dest.example"))
        assert rig.store.states() == {1: "queued"}
        assert not rig.pool.under_way

    def test_a_store_that_is_broken_does_not_hold_up_the_stop(self) -> None:
        rig = Rig(settings(**SMART))
        rig.scheduler.take(claim("a@dest.example"))
        rig.store.broken = Fault(Reply.of(451, "4.3.0", "gone"))
        stopped = rig.scheduler.stopService()
        rig.clock.pump([1.0] * 12)
        assert stopped.called


def test_ten_thousand_messages_through_one_connection_do_not_nest() -> None:
    rig = Rig(settings(remote("dest.example", route=(hop("gate.example"),), connections=1)))
    rig.pool.answers = lambda sending: sending.done.callback(Sent((OK,), "gate", "", frozenset()))
    rig.queue(*many(10000))
    rig.scheduler.wake()
    rig.clock.pump([0.3] * 100)
    assert len(rig.store.states()) == 10000
