"""Sends what lies in the pickup folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path as File
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from relayd.delivery import BadmailFolder
from relayd.events import BadMail, Events, InternalFault, MessageAccepted, Notice
from relayd.model import Body, Envelope, Fault, Recipient, Reply, Rule, Sender
from relayd.pickup.folder import BATCH, BLOCK, Files, Look, Taken
from relayd.pickup.submission import Content, Refused, Submission
from relayd.pickup.watch import Watch
from relayd.policy import Policy
from relayd.queue import Claim, Draft, Store
from relayd.settings import Settings
from relayd.threads import BoundedPool
from relayd.wire import count_received, missing_fields, section, submitted_header

#: Seconds between looks at the folder; and until a file that could not be queued is tried again.
LOOK, AGAIN = 1.0, 30.0
#: A header longer than this is none.
HEADER_LIMIT: Final = 256 * 1024


_STILL_WRITTEN: Final = Reply.of(451, "4.3.0", "Still being written")


class Onward(Protocol):
    """Who delivers."""

    @property
    def room(self) -> int: ...

    def take(self, claim: Claim) -> None: ...

    def wake(self) -> None: ...


class PickupFolder(Service):
    """Queues each file of the folder once. Bad ones go to badmail.

    :param policy: a callable, since a reload swaps it.
    :param onward: who delivers.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Callable[[], Policy],
        store: Store,
        onward: Onward,
        badmail: BadmailFolder,
        events: Events,
        reactor: Any,
        clock: Callable[[], float] = time.time,
    ) -> None:
        directory = settings.pickup.directory
        assert directory is not None
        self._settings = settings
        self._policy = policy
        self._store = store
        self._onward = onward
        self._badmail = badmail
        self._events = events
        self._reactor = reactor
        self._clock = clock
        self._files = Files(directory, settings.pickup.dot_stuffed)
        self._watch = Watch(directory, reactor)
        key = "pickup.directory"
        self._rule = str(Rule(key, settings.lines.get(key, 0)))
        self._threads = BoundedPool("pickup", reactor, threads=4, waiting=2 * BATCH)
        self._round: Deferred[None] | None = None
        self._next: IDelayedCall | None = None
        self._told: dict[str, str] = {}
        self._look_again_at = 0.0

    def prepare(self) -> None:
        """Makes what it needs in the folder. Blocks.

        :raises OSError: it may not write there.
        """
        self._files.prepare()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._begin()

    def stopService(self) -> Deferred[None]:
        """Finishes what is under way."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._watch.stop()
        if self._round is not None:
            ended: Deferred[None] = Deferred()
            self._round.addBoth(lambda _: ended.callback(None))
            await ended
        self._threads.stop()
        self._badmail.stop()

    # ---- one look after the other -----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._next = None
        self._round = Deferred.fromCoroutine(self._look())
        self._round.addErrback(self._fault)
        self._round.addBoth(self._ended)

    def _ended(self, _: object) -> None:
        self._round = None
        if self.running:
            self._next = self._reactor.callLater(LOOK, self._begin)

    async def _look(self) -> None:
        self._watch.start()
        now = self._reactor.seconds()
        if now >= self._look_again_at:
            self._look_again_at = now + AGAIN
            await self._finish_what_was_begun()
        try:
            look: Look = await self._threads.run(self._files.look, now, frozenset(self._watch.written))
        except OSError as error:
            self._tell("", f"{error.strerror}: nothing is picked up")
            return
        self._tell("", "")
        for name, why in look.unreadable:
            self._tell(name, why)
        for start in range(0, len(look.ready), BATCH):
            if not self.running:
                return
            await self._take(look.ready[start : start + BATCH])
        present = {"", *look.ready, *(name for name, _ in look.unreadable)}
        self._told = {name: why for name, why in self._told.items() if name in present}

    async def _take(self, names: Sequence[str]) -> None:
        """Takes files of these names, and queues them."""
        drafts = [self._store.draft() for _ in names]
        wanted = [(name, draft.message_id) for name, draft in zip(names, drafts, strict=True)]
        moved = await self._threads.run(self._files.take, wanted)
        taken = []
        for name, draft, to in zip(names, drafts, moved, strict=True):
            if isinstance(to, File):
                taken.append((draft, to))
            else:
                draft.abandon()
                self._tell(name, to)
        await self._send(taken)

    async def _finish_what_was_begun(self) -> None:
        """What was taken before, by a process that died or when the queue was full: done, or taken again."""
        try:
            left = await self._threads.run(self._files.left)
        except OSError:
            return  # the look says so
        queued, again = [], []
        for file, message_id in left:
            if await self._store.show(message_id) is not None:
                queued.append(file)
                continue
            draft = self._store.draft()
            again.append((draft, await self._threads.run(self._files.take_again, file, draft.message_id)))
            if len(again) == BATCH:
                await self._send(again)
                again = []
        await self._send(again)
        await self._let_go(queued)

    async def _send(self, taken: Sequence[tuple[Draft, File]]) -> None:
        done = await gatherResults([Deferred.fromCoroutine(self._queue(draft, file)) for draft, file in taken])
        await self._let_go([file for (_, file), gone in zip(taken, done, strict=True) if gone])

    async def _let_go(self, files: Sequence[File]) -> None:
        if not files:
            return
        try:
            await self._threads.run(self._files.let_go, files)
        except OSError as error:
            self._tell("", f"what was queued cannot be removed: {error.strerror}")

    # ---- one file -------------------------------------------------------------------------------------------------

    async def _queue(self, draft: Draft, file: File) -> bool:
        """Whether *file* is no longer needed: it is in the queue, or in badmail."""
        try:
            opened = await self._threads.run(self._files.open, file)
        except OSError as error:
            draft.abandon()
            self._tell(file.name, f"it cannot be read: {error.strerror}")
            return False
        try:
            envelope = await self._written(draft, opened)
            claim = await draft.commit(envelope, claimed=self._onward.room > 0)
        except Refused as why:
            draft.abandon()
            return await self._bad(draft.message_id, opened, str(why))
        except Fault as fault:
            draft.abandon()
            if not fault.temporary:
                return await self._bad(draft.message_id, opened, fault.reply.text)
            self._tell(file.name, fault.detail or str(fault.reply))
            return False
        finally:
            opened.file.close()
        self._accepted(draft, envelope, claim)
        return True

    def _accepted(self, draft: Draft, envelope: Envelope, claim: Claim | None) -> None:
        self._events.emit(
            MessageAccepted(
                session=envelope.session,
                queue_id=draft.message_id,
                client="",
                sender=str(envelope.sender.path),
                recipients=len(envelope.recipients),
                size=draft.size,
                rule=envelope.rule,
            )
        )
        if claim is not None:
            self._onward.take(claim)
        else:
            self._onward.wake()

    async def _written(self, draft: Draft, opened: Taken) -> Envelope:
        """Writes the message into *draft*; its envelope.

        :raises Refused: it is none.
        :raises Fault: the policy knows no such address; the disk is full.
        """
        most = self._settings.limits.message_size
        if opened.size > most:
            raise Refused(f"it has {opened.size} octets; limits.message_size is {most}")
        content = Content(unstuff=opened.unstuff)
        head = b""
        submission: Submission | None = None
        while block := await self._read(opened):
            octets = content.feed(block)
            if submission is None:
                head += octets
                if b"\r\n\r\n" not in head and len(head) < HEADER_LIMIT and len(block) == BLOCK:
                    continue
                submission = Submission.parse(section(head))
                octets = self._headed(draft, submission, head)
            if octets and (room := draft.write(octets)) is not None:
                await room
        octets = content.finish()
        if submission is None:
            submission = Submission.parse(section(head + octets))
            octets = self._headed(draft, submission, head + octets)
        if octets:
            draft.write(octets)
        if await self._threads.run(lambda: opened.changed):
            raise Fault(_STILL_WRITTEN, "somebody still writes to it")
        return self._envelope(submission, content.ascii)

    async def _read(self, opened: Taken) -> bytes:
        left = opened.size - opened.file.tell()
        return await self._threads.run(opened.file.read, min(BLOCK, left)) if left > 0 else b""

    def _headed(self, draft: Draft, submission: Submission, head: bytes) -> bytes:
        """*head* with the header section that leaves."""
        if count_received(submission.header) >= self._settings.delivery.max_hops:
            raise Refused(f"it has {self._settings.delivery.max_hops} Received fields or more: it goes in circles")
        if len(submission.header) >= HEADER_LIMIT:
            raise Refused(f"its header has no end within {HEADER_LIMIT} octets")
        hostname, now = self._settings.server.hostname, self._clock()
        return (
            submitted_header(by=hostname, message_id=draft.message_id, at=now)
            # RFC 6409 8: where mail begins is where it is completed.
            + missing_fields(submission.header, hostname, draft.message_id, now)
            + submission.header
            + head[len(section(head)) :]
        )

    def _envelope(self, submission: Submission, ascii_: bool) -> Envelope:
        policy = self._policy()
        sender = policy.complete(submission.sender, sender=True)
        recipients = tuple(dict.fromkeys(map(policy.complete, submission.recipients)))
        international = not all(path.ascii for path in (sender, *recipients))
        return Envelope(
            sender=Sender(sender, body=Body.SEVEN_BIT if ascii_ else Body.EIGHT_BIT, smtputf8=international),
            recipients=tuple(map(Recipient, recipients)),
            session="pickup",
            rule=self._rule,
            may_relay=True,
        )

    async def _bad(self, message_id: str, opened: Taken, why: str) -> bool:
        """Keeps *opened* in badmail; whether it is there."""
        try:
            kept = await self._badmail.keep_file(message_id, opened.path, opened.name, why, self._clock())
        except Fault as fault:
            self._tell(opened.name, f"{why}; it cannot be kept in badmail: {fault.detail}")
            return False
        self._events.emit(BadMail(queue_id=message_id, file=kept, reason=f"pickup: {opened.name}: {why}"))
        return True

    # ---- events ---------------------------------------------------------------------------------------------------

    def _tell(self, name: str, why: str) -> None:
        """Says once what is wrong with the file *name*, or with the folder where it is empty; *why* empty: nothing."""
        if self._told.get(name, "") == why:
            return
        self._told[name] = why
        if why:
            where = self._files.folder / name if name else self._files.folder
            shown = "".join(c if c.isprintable() else "?" for c in os.fspath(where))
            self._events.emit(Notice(text=f"{shown}: {why}", key="pickup.directory"))

    def _fault(self, failure: Failure) -> None:
        self._events.emit(InternalFault(where="pickup", detail=failure.getTraceback()))
