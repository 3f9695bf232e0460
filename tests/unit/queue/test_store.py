"""A message's way through the store: draft, commit, claim, renew, settle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File

import pytest

from relayd.model import NULL_PATH, Body, Envelope, Fault, Path, Recipient, Reply, Sender
from relayd.queue import Attempt, Claim, Filter, MessageState, NewMessage, Settlement, SqliteStore
from tests.unit.queue.conftest import MakeStore
from tests.unit.queue.loop import (
    Loop,
    Now,
    attempt,
    deferred,
    delivered,
    envelope,
    put,
    put_claimed,
)

EVERYTHING = Envelope(
    Sender(Path("ünïcode", "corp.example"), 77, Body.EIGHT_BIT, True, "HDRS", "env=id", "alice@corp.example"),
    (
        Recipient(Path('"quoted local"', "example.org"), frozenset({"SUCCESS", "DELAY"}), "rfc822;q@example.org"),
        Recipient(Path("postmaster")),
        Recipient(Path("Bob", "[192.0.2.7]")),
    ),
    session="s1",
    client="192.0.2.25",
    helo="printer",
    principal="alice",
    listener="smtp",
    tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    rule="relay.list[2] (line 31)",
)

NOTICE = NewMessage(Envelope(Sender(NULL_PATH), (Recipient(Path("app", "corp.example")),), session="dsn"), b"dsn\r\n")


def only(claims: tuple[Claim, ...]) -> Claim:
    (claim,) = claims
    return claim


class TestArriving:
    def test_an_unclaimed_message_is_found_by_claim_as_it_was_committed(self, loop: Loop, store: SqliteStore) -> None:
        draft = store.draft()
        assert [draft.write(block) for block in (b"Subject: a\r\n", b"\r\n", b"text\r\n")] == [None] * 3
        assert draft.size == 20
        assert loop.wait(draft.commit(EVERYTHING, claimed=False)) is None

        claim = only(loop.wait(store.claim(10)))
        assert claim.message_id == draft.message_id
        assert claim.sender == EVERYTHING.sender
        assert claim.origin == replace(EVERYTHING, recipients=())
        assert tuple(recipient.recipient for recipient in claim.recipients) == EVERYTHING.recipients
        assert all(recipient.attempts == 0 for recipient in claim.recipients)
        assert claim.body.octets == b"Subject: a\r\n\r\ntext\r\n"
        assert claim.body.size == 20
        with claim.body.open() as file:
            assert file.read() == claim.body.octets

    def test_a_claim_from_memory_is_the_one_that_the_database_would_give(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        draft = store.draft()
        draft.write(b"x\r\n")
        claim = loop.wait(draft.commit(EVERYTHING, claimed=True))
        assert claim is not None
        assert loop.wait(store.claim(10)) == ()
        now.at = claim.lease_until
        assert only(loop.wait(store.claim(10))) == replace(claim, lease_until=claim.lease_until + 60)

    def test_a_message_is_as_safe_as_it_is_answered(self, loop: Loop, make_store: MakeStore) -> None:
        store = make_store()
        ids = [loop.wait(put(store)) for _ in range(3)]
        loop.wait(store.close())
        assert [claim.message_id for claim in loop.wait(make_store().claim(9))] == ids

    def test_an_abandoned_draft_leaves_nothing(self, loop: Loop, store: SqliteStore) -> None:
        draft = store.draft()
        draft.write(b"x\r\n")
        draft.abandon()
        draft.abandon()
        assert draft.write(b"more") is None
        assert loop.fault(draft.commit(envelope(), claimed=False)).temporary
        assert loop.wait(store.counts())["messages"] == 0

    def test_a_draft_is_committed_once(self, loop: Loop, store: SqliteStore) -> None:
        draft = store.draft()
        draft.write(b"x\r\n")
        first, second = draft.commit(envelope(), claimed=False), draft.commit(envelope(), claimed=False)
        loop.fault(second)
        loop.wait(first)
        draft.abandon()
        assert loop.wait(store.counts())["messages"] == 1

    def test_no_recipients_is_a_fault(self, loop: Loop, store: SqliteStore) -> None:
        fault = loop.fault(store.draft().commit(replace(envelope(), recipients=()), claimed=False))
        assert str(fault.reply).startswith("451 4.3.0 ")

    def test_many_at_once_each_get_their_own_answer(self, loop: Loop, store: SqliteStore) -> None:
        many = [put_claimed(store, b"%d\r\n" % n, envelope(f"r{n}@example.org")) for n in range(1500)]
        for n, waiting in enumerate(many):
            claim = loop.wait(waiting)
            assert claim.body.octets == b"%d\r\n" % n
            assert str(claim.recipients[0].recipient.path) == f"r{n}@example.org"
        assert loop.wait(store.counts()) == {"queued": 1500, "deferred": 0, "held": 0, "messages": 1500}

    def test_thousands_of_recipients(self, loop: Loop, store: SqliteStore) -> None:
        names = [f"r{n}@example.org" for n in range(5000)]
        loop.wait(put(store, what=envelope(*names)))
        claim = only(loop.wait(store.claim(10_000)))
        assert [str(recipient.recipient.path) for recipient in claim.recipients] == names
        loop.wait(store.settle(delivered(claim)))
        assert loop.wait(store.counts())["messages"] == 0


class TestClaiming:
    def test_the_longest_due_come_first_and_no_more_than_asked_for(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        ids = []
        for _ in range(5):
            ids.append(loop.wait(put(store)))
            now.at += 1
        claims = [claim.message_id for _ in range(4) for claim in loop.wait(store.claim(2))]
        assert claims == ids

    def test_limit_counts_recipients(self, loop: Loop, store: SqliteStore) -> None:
        loop.wait(put(store, what=envelope("a@example.org", "b@example.org", "c@example.org")))
        first, second = only(loop.wait(store.claim(2))), only(loop.wait(store.claim(2)))
        assert first.message_id == second.message_id
        assert sorted(r.id for claim in (first, second) for r in claim.recipients) == [0, 1, 2]
        assert loop.wait(store.claim(0)) == ()

    def test_a_claim_brings_few_octets_into_memory(self, loop: Loop, store: SqliteStore) -> None:
        for waiting in [put(store, bytes(250_000)) for _ in range(100)]:
            loop.wait(waiting)
        sizes = []
        while claims := loop.wait(store.claim(1000)):
            sizes.append(sum(claim.body.size for claim in claims))
        assert sum(sizes) == 100 * 250_000
        assert max(sizes) <= 16 * 1024 * 1024

    def test_a_lease_ends_by_itself(self, loop: Loop, now: Now, store: SqliteStore) -> None:
        message_id = loop.wait(put(store))
        claim = only(loop.wait(store.claim(1)))
        assert claim.lease_until == now.at + 60
        now.at += 59
        assert loop.wait(store.claim(1)) == ()
        now.at += 1
        assert only(loop.wait(store.claim(1))).message_id == message_id

    def test_a_renewed_lease_does_not(self, loop: Loop, now: Now, store: SqliteStore) -> None:
        loop.wait(put(store))
        claims = loop.wait(store.claim(1))
        now.at += 50
        loop.wait(store.renew(claims))
        now.at += 50
        assert loop.wait(store.claim(1)) == ()
        now.at += 10
        assert len(loop.wait(store.claim(1))) == 1
        loop.wait(store.renew(()))

    def test_leases_of_a_dead_predecessor_are_free(self, loop: Loop, make_store: MakeStore) -> None:
        store = make_store()
        claim = loop.wait(put_claimed(store))
        loop.wait(store.close())
        assert only(loop.wait(make_store().claim(1))).message_id == claim.message_id

    def test_what_is_deferred_stays_deferred_over_a_restart(self, loop: Loop, now: Now, make_store: MakeStore) -> None:
        store = make_store()
        loop.wait(store.settle(deferred(loop.wait(put_claimed(store)), now.at + 900)))
        loop.wait(store.close())
        store = make_store()
        assert loop.wait(store.claim(1)) == ()
        now.at += 900
        assert only(loop.wait(store.claim(1))).recipients[0].attempts == 1

    def test_next_due(self, loop: Loop, now: Now, store: SqliteStore) -> None:
        assert loop.wait(store.next_due()) is None
        claim = loop.wait(put_claimed(store))
        assert loop.wait(store.next_due()) == claim.lease_until
        loop.wait(store.settle(deferred(claim, now.at + 900)))
        assert loop.wait(store.next_due()) == now.at + 900
        loop.wait(put(store))
        assert loop.wait(store.next_due()) == now.at


class TestSettling:
    def test_recipients_fare_alone(self, loop: Loop, now: Now, store: SqliteStore) -> None:
        claim = loop.wait(put_claimed(store, what=envelope("a@example.org", "b@example.org", "c@example.org")))
        a, b, c = claim.recipients
        loop.wait(store.settle(Settlement(claim, (attempt(a), attempt(b, MessageState.QUEUED, next_at=now.at + 10)))))
        loop.wait(store.settle(Settlement(claim, (attempt(c, MessageState.BOUNCED),))))

        entry = loop.wait(store.show(claim.message_id))
        assert entry is not None
        assert [r.state for r in entry.recipients] == [
            MessageState.DELIVERED,
            MessageState.QUEUED,
            MessageState.BOUNCED,
        ]
        assert [r.attempts for r in entry.recipients] == [1, 1, 1]
        now.at += 10
        again = only(loop.wait(store.claim(9)))
        assert [(r.id, r.attempts) for r in again.recipients] == [(b.id, 1)]
        assert again.body.octets == b"x\r\n"

    def test_a_finished_message_keeps_its_history_and_loses_its_octets(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        claim = loop.wait(put_claimed(store))
        assert loop.wait(store.body(claim.message_id)) is not None
        assert loop.wait(store.settle(delivered(claim))) == ()
        assert loop.wait(store.body(claim.message_id)) is None
        assert loop.wait(store.next_due()) is None
        assert [entry.what for entry in loop.wait(store.history(claim.message_id))] == ["accepted", "delivered"]

    def test_what_came_back_untried_has_no_attempt_and_no_history(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        claim = loop.wait(put_claimed(store))
        back = Attempt(0, MessageState.QUEUED, Reply.of(451, "4.3.2", "Shutting down"), next_at=now.at, counts=False)
        loop.wait(store.settle(Settlement(claim, (back,))))
        again = only(loop.wait(store.claim(1)))
        assert again.recipients[0].attempts == 0
        assert [entry.what for entry in loop.wait(store.history(claim.message_id))] == ["accepted"]

    def test_why_it_was_not_tried_is_shown_until_there_is_a_real_reply(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        claim = loop.wait(put_claimed(store))

        def shown(state: Attempt) -> str:
            loop.wait(store.settle(Settlement(claim, (state,))))
            entry = loop.wait(store.show(claim.message_id))
            assert entry is not None
            return entry.recipients[0].last_reply

        rests = Reply.of(451, "4.4.1", "No connection: Connection refused")
        back = Attempt(0, MessageState.QUEUED, rests, "mx.example[192.0.2.1]:25", next_at=now.at, counts=False)
        assert shown(back) == "451 4.4.1 No connection: Connection refused"
        assert shown(attempt(claim.recipients[0], MessageState.QUEUED)) == "450 4.2.0 Greylisted"
        assert shown(back) == "450 4.2.0 Greylisted"

    def test_that_a_delay_was_told_is_remembered(self, loop: Loop, now: Now, store: SqliteStore) -> None:
        claim = loop.wait(put_claimed(store))
        for told in (True, False):
            tried = attempt(claim.recipients[0], MessageState.QUEUED, next_at=now.at, delay_notified=told)
            loop.wait(store.settle(Settlement(claim, (tried,))))
            claim = only(loop.wait(store.claim(1)))
            assert claim.recipients[0].delay_notified

    def test_notices_are_queued_with_the_settlement_already_claimed(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        claim = loop.wait(put_claimed(store))
        bounced = Settlement(claim, (attempt(claim.recipients[0], MessageState.BOUNCED),), (NOTICE,))
        notice = only(loop.wait(store.settle(bounced)))
        assert notice.body.octets == NOTICE.octets
        assert notice.sender.path.null
        assert notice.lease_until == now.at + 60
        assert loop.wait(store.claim(9)) == ()
        history = loop.wait(store.history(claim.message_id))
        assert [(entry.what, entry.detail) for entry in history][1:] == [("bounced", ""), ("dsn", notice.message_id)]
        now.at += 60
        assert only(loop.wait(store.claim(9))).message_id == notice.message_id

    def test_a_settlement_that_comes_too_late_tells_nobody_again(
        self, loop: Loop, now: Now, store: SqliteStore
    ) -> None:
        late = loop.wait(put_claimed(store))
        now.at += 60
        claim = only(loop.wait(store.claim(1)))
        loop.wait(store.settle(delivered(claim)))
        bounced = Settlement(late, (attempt(late.recipients[0], MessageState.BOUNCED),), (NOTICE,))
        assert loop.wait(store.settle(bounced)) == ()
        entry = loop.wait(store.show(late.message_id))
        assert entry is not None
        assert entry.recipients[0].state is MessageState.DELIVERED
        assert loop.wait(store.counts())["messages"] == 0

    @pytest.mark.parametrize("state", [MessageState.DELIVERED, MessageState.QUEUED, MessageState.BOUNCED])
    def test_what_was_dropped_meanwhile_stays_dropped(
        self, loop: Loop, now: Now, store: SqliteStore, state: MessageState
    ) -> None:
        claim = loop.wait(put_claimed(store))
        assert loop.wait(store.drop(Filter(ids=(claim.message_id,)), "admin")) == 1
        loop.wait(store.settle(Settlement(claim, (attempt(claim.recipients[0], state, next_at=now.at),))))
        entry = loop.wait(store.show(claim.message_id))
        assert entry is not None
        assert entry.recipients[0].state is MessageState.DROPPED
        assert loop.wait(store.claim(9)) == ()
        now.at += 100
        assert loop.wait(store.claim(9)) == ()
        # Though it went out after all, which the history tells.
        assert [entry.what for entry in loop.wait(store.history(claim.message_id))][:2] == ["accepted", "dropped"]
        assert len(loop.wait(store.history(claim.message_id))) == 3

    def test_nothing_to_settle(self, loop: Loop, store: SqliteStore) -> None:
        assert loop.wait(store.settle(Settlement(loop.wait(put_claimed(store)), ()))) == ()


class TestClosing:
    def test_what_waits_is_committed_first(self, loop: Loop, make_store: MakeStore) -> None:
        store = make_store()
        waiting = [put(store) for _ in range(50)]
        loop.wait(store.close())
        for one in waiting:
            loop.wait(one)
        assert loop.wait(make_store().counts())["messages"] == 50

    def test_a_closed_store_says_so(self, loop: Loop, make_store: MakeStore, directory: File) -> None:
        store = make_store()
        draft = store.draft()
        loop.wait(store.close())
        for asked in (draft.commit(envelope(), claimed=False), store.claim(1), store.list(Filter()), store.next_due()):
            assert loop.fault(asked).reply.code == 451
        loop.wait(store.close())

    def test_a_store_that_was_never_opened_says_so(self, loop: Loop, directory: File) -> None:
        store = SqliteStore(directory, reactor=loop)
        with pytest.raises(Fault):
            loop.wait(store.claim(1))
        loop.wait(store.close())

    def test_it_can_be_opened_again(self, loop: Loop, store: SqliteStore) -> None:
        loop.wait(put(store))
        loop.wait(store.close())
        loop.wait(store.open())
        assert loop.wait(store.counts())["messages"] == 1
        assert loop.fault(store.open()).reply.code == 451
