"""What an administrator sees and does."""

from __future__ import annotations

import pytest

from relayd.model import Reply
from relayd.queue import Filter, MessageState, QueueEntry, Settlement, SqliteStore
from tests.unit.queue.conftest import MakeStore
from tests.unit.queue.loop import Loop, Now, attempt, deferred, delivered, envelope, put, put_claimed


def ids_of(entries: tuple[QueueEntry, ...]) -> list[str]:
    return [entry.message_id for entry in entries]


class TestFilter:
    """Four messages: plain, bounce, literal, deferred."""

    @pytest.fixture
    def names(self, loop: Loop, now: Now, store: SqliteStore) -> dict[str, str]:
        """Which message has which id."""
        plain = loop.wait(put(store, what=envelope("Alice@Example.org", "bob@example.net", sender="App@corp.example")))
        now.at += 100
        bounce = loop.wait(put(store, what=envelope("app@corp.example", sender="")))
        literal = loop.wait(put(store, what=envelope("x@[192.0.2.7]", "ünï@exämple.org", sender="scan1@corp.example")))
        claim = loop.wait(put_claimed(store, what=envelope("late@example.org", sender="scan2@corp.example")))
        tried = attempt(
            claim.recipients[0], MessageState.QUEUED, Reply.of(450, "4.2.0", "You are GreyListed"), next_at=now.at + 900
        )
        loop.wait(store.settle(Settlement(claim, (tried,))))
        done = loop.wait(put_claimed(store, what=envelope("gone@example.org")))
        loop.wait(store.settle(delivered(done)))
        return {plain: "plain", bounce: "bounce", literal: "literal", claim.message_id: "late", done.message_id: "done"}

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (Filter(), ["plain", "bounce", "literal", "late"]),
            (Filter(limit=2), ["plain", "bounce"]),
            (Filter(limit=0), ["plain", "bounce", "literal", "late"]),
            (Filter(sender="app@corp.example"), ["plain"]),
            (Filter(sender="APP@*"), ["plain"]),
            (Filter(sender="<>"), ["bounce"]),
            (Filter(sender="scan?@corp.example"), ["literal", "late"]),
            (Filter(sender="scan[12]@corp.example"), []),
            (Filter(recipient="alice@example.org"), ["plain"]),
            (Filter(recipient="*@example.*"), ["plain", "late"]),
            (Filter(recipient="x@[192.0.2.7]"), ["literal"]),
            (Filter(recipient="ÜNÏ@*"), ["literal"]),
            (Filter(domain="EXAMPLE.org"), ["plain", "late"]),
            (Filter(domain="example.net", recipient="alice@*"), []),
            (Filter(domain="example.net", recipient="bob@*"), ["plain"]),
            (Filter(state=MessageState.QUEUED), ["plain", "bounce", "literal", "late"]),
            (Filter(state=MessageState.HELD), []),
            (Filter(state=MessageState.DELIVERED), ["done"]),
            (Filter(older=50), ["plain"]),
            (Filter(older=100), ["plain"]),
            (Filter(older=101), []),
            (Filter(error="greylisted"), ["late"]),
            (Filter(error="450 4.2.0"), ["late"]),
            (Filter(error="%"), []),
            (Filter(ids=("0000000000000",)), []),
            (Filter(ids=("no id",)), []),
            (Filter(recipient="' OR 1 --"), []),
        ],
    )
    def test_what_it_means(
        self, loop: Loop, store: SqliteStore, names: dict[str, str], wanted: Filter, expected: list[str]
    ) -> None:
        assert [names[i] for i in ids_of(loop.wait(store.list(wanted)))] == expected

    def test_ids_mean_finished_messages_too(self, loop: Loop, store: SqliteStore, names: dict[str, str]) -> None:
        entries = loop.wait(store.list(Filter(ids=tuple(i.lower() for i in names))))
        assert ids_of(entries) == list(names)


def test_a_message_as_it_is_shown(loop: Loop, now: Now, store: SqliteStore) -> None:
    what = envelope("a@example.org", "b@example.org", client="192.0.2.1", rule="relay.list[0]")
    received = now.at
    claim = loop.wait(put_claimed(store, what=what))
    now.at += 5
    a = attempt(claim.recipients[0], MessageState.QUEUED, Reply.of(450, "4.2.0", "Later"), next_at=now.at + 900)
    loop.wait(store.settle(Settlement(claim, (a,))))
    entry = loop.wait(store.show(claim.message_id))
    assert entry is not None
    assert entry == loop.wait(store.list(Filter()))[0]
    assert (entry.envelope, entry.received_at, entry.size) == (what, received, 3)
    first, second = entry.recipients
    assert (first.attempts, first.next_at, first.last_reply) == (1, now.at + 900, "450 4.2.0 Later")
    assert first.last_host == "mx.example.org[192.0.2.1]:25"
    # Being delivered.
    assert (second.attempts, second.next_at, second.last_reply, second.last_host) == (0, 0.0, "", "")


def test_an_unknown_message(loop: Loop, store: SqliteStore) -> None:
    for name in ("0123456789ABC", "nonsense", ""):
        assert loop.wait(store.show(name)) is None
        assert loop.wait(store.body(name)) is None
        assert loop.wait(store.history(name)) == ()


def test_the_history_tells_who_let_the_message_in_and_what_came_of_it(loop: Loop, now: Now, store: SqliteStore) -> None:
    start = now.at
    what = envelope(client="192.0.2.1", helo="printer", principal="alice", rule="relay.list[0]", tls="TLSv1.3")
    claim = loop.wait(put_claimed(store, what=what))
    now.at += 1
    loop.wait(store.settle(deferred(claim, now.at + 900)))
    now.at += 1
    assert loop.wait(store.retry(Filter(), "root")) == 1
    (claim,) = loop.wait(store.claim(1))
    now.at += 1
    tried = attempt(claim.recipients[0], tls="TLSv1.2", detail="route domain[3]")
    loop.wait(store.settle(Settlement(claim, (tried,))))
    accepted, first, act, last = loop.wait(store.history(claim.message_id))
    assert (accepted.at, accepted.what, accepted.host, accepted.tls) == (start, "accepted", "192.0.2.1", "TLSv1.3")
    assert accepted.detail == "helo printer, user alice, rule relay.list[0]"
    assert (first.at, first.what, first.recipient) == (start + 1, "deferred", "alice@example.org")
    assert first.reply == "450 4.2.0 Greylisted"
    assert (act.at, act.what, act.detail) == (start + 2, "retry", "by root")
    assert (last.at, last.what, last.reply, last.tls, last.detail) == (
        start + 3, "delivered", "250 2.0.0 Ok", "TLSv1.2", "route domain[3]"
    )  # fmt: skip


def test_retry_makes_due_what_waits(loop: Loop, now: Now, store: SqliteStore) -> None:
    claims = [loop.wait(put_claimed(store)) for _ in range(3)]
    for claim in claims[:2]:
        loop.wait(store.settle(deferred(claim, now.at + 900)))
    assert loop.wait(store.counts()) == {"queued": 1, "deferred": 2, "held": 0, "messages": 3}
    # The third is being delivered.
    assert loop.wait(store.retry(Filter(ids=tuple(claim.message_id for claim in claims)), "root")) == 2
    assert loop.wait(store.next_due()) == now.at
    assert [c.message_id for c in loop.wait(store.claim(9))] == [c.message_id for c in claims[:2]]


def test_drop_takes_messages_out_without_a_notice(loop: Loop, now: Now, store: SqliteStore) -> None:
    one = loop.wait(put(store, what=envelope("a@example.org", "b@example.org")))
    two = loop.wait(put(store, what=envelope("a@example.net")))
    assert loop.wait(store.drop(Filter(domain="example.org"), "root")) == 1
    assert loop.wait(store.drop(Filter(ids=(one,)), "root")) == 0
    entry = loop.wait(store.show(one))
    assert entry is not None
    assert [r.state for r in entry.recipients] == [MessageState.DROPPED] * 2
    assert loop.wait(store.body(one)) is None
    assert [e.what for e in loop.wait(store.history(one))] == ["accepted", "dropped"]
    assert [claim.message_id for claim in loop.wait(store.claim(9))] == [two]


def test_acts_reach_all_that_is_meant_whatever_the_limit(loop: Loop, store: SqliteStore) -> None:
    for waiting in [put(store) for _ in range(1234)]:
        loop.wait(waiting)
    assert loop.wait(store.retry(Filter(limit=1), "root")) == 1234
    assert loop.wait(store.drop(Filter(limit=1), "root")) == 1234
    assert loop.wait(store.counts())["messages"] == 0


class TestKeepingHistory:
    def test_it_is_forgotten_after_a_week(self, loop: Loop, now: Now, make_store: MakeStore) -> None:
        store = make_store(tidy=0.01)
        old = loop.wait(put_claimed(store))
        loop.wait(store.settle(delivered(old)))
        waiting = loop.wait(put(store))
        now.at += 7 * 86400 - 1
        newer = loop.wait(put_claimed(store))
        loop.wait(store.settle(delivered(newer)))
        now.at += 2

        def forgotten() -> bool:
            return loop.wait(store.show(old.message_id)) is None

        loop.poll(forgotten)
        assert loop.wait(store.history(old.message_id)) == ()
        assert loop.wait(store.show(waiting)) is not None
        assert loop.wait(store.show(newer.message_id)) is not None

    def test_no_more_than_so_many_are_kept_and_never_one_that_waits(
        self, loop: Loop, now: Now, make_store: MakeStore
    ) -> None:
        store = make_store(tidy=0.01, keep_messages=10)
        waiting = [loop.wait(put(store)) for _ in range(20)]
        claims = [loop.wait(put_claimed(store)) for _ in range(30)]
        for claim in claims:
            now.at += 1
            loop.wait(store.settle(delivered(claim)))
        finished = Filter(state=MessageState.DELIVERED, limit=0)
        loop.poll(lambda: len(loop.wait(store.list(finished))) <= 10)
        assert ids_of(loop.wait(store.list(finished))) == [claim.message_id for claim in reversed(claims[-10:])]
        assert ids_of(loop.wait(store.list(Filter(limit=0)))) == waiting

    def test_the_newest_id_is_kept_so_that_it_never_comes_again(
        self, loop: Loop, now: Now, make_store: MakeStore
    ) -> None:
        store = make_store(tidy=0.01)
        claims = [loop.wait(put_claimed(store)) for _ in range(2)]
        for claim in claims:
            loop.wait(store.settle(delivered(claim)))
        now.at += 8 * 86400
        loop.poll(lambda: loop.wait(store.show(claims[0].message_id)) is None)
        loop.wait(store.close())
        now.at -= 9 * 86400
        assert make_store().draft().message_id > claims[1].message_id
