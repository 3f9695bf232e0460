"""Sends what lies in the pickup folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path as File
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from relayd.delivery import BadmailFolder
from relayd.events import BadMail, Events, InternalFault, MessageAccepted, Notice
from relayd.model import Body, Envelope, Fault, Path, Recipient, Rule, Sender
from relayd.pickup.folder import BATCH, BLOCK, Files, Look, Taken, called
from relayd.pickup.submission import Content, Refused, Submission
from relayd.pickup.watch import Watch
from relayd.policy import Policy, fold
from relayd.queue import KEEP, Claim, Draft, Onward, Store, hand_on, made_at
from relayd.settings import Settings
from relayd.threads import BoundedPool
from relayd.wire import count_received, missing_fields, section, submitted_header

#: Seconds between looks at the folder; and until a file that could not be queued is tried again.
LOOK, AGAIN = 1.0, 30.0
#: A header longer than this is none.
HEADER_LIMIT: Final = 256 * 1024

#: The session that envelopes name.
SESSION: Final = "pickup"

#: What trouble is about, where it is not about one file; no file has such a name.
_FOLDER, _QUEUE, _REMOVAL, _ITSELF = "/", "/queue", "/removal", "/itself"


class _Unfinished(Exception):
    """A file cannot be sent yet; the text says why."""


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
        self._stuck: set[str] = set()  # names of files that were taken, and could not be queued
        self._again_at = 0.0
        self._held = False  # whether the folder was ever this process's to empty
        self._ill = False  # whether the queue did not take what it was given

    def prepare(self) -> None:
        """Makes what it needs in the folder. Blocks.

        :raises OSError: it may not write there.
        """
        self._files.prepare()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._watch.start()  # from before anybody is told that relayd is there
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
        self._files.release()

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
        try:
            await self._pick_up()
        except OSError as error:
            self._tell(_FOLDER, f"{error.strerror or error}: nothing is picked up")
            return
        except Fault as fault:
            self._queue_is_ill(fault)
            return
        self._tell(_FOLDER, "")
        self._tell(_ITSELF, "")
        if not self._ill:
            self._tell(_QUEUE, "")

    async def _pick_up(self) -> None:
        """
        :raises OSError: of the folder.
        :raises Fault: of the queue.
        """
        run = self._threads.run
        if await run(self._files.hold):
            if self._held:
                self._watch.stop()  # it watches a folder that is not there any more
            self._held = True
        self._watch.start()
        now = self._reactor.seconds()
        if not self._again_at - AGAIN <= now < self._again_at:  # clocks are set back, too
            self._again_at = now + AGAIN
            self._ill = False
            await self._finish_what_was_begun()
        look: Look = await run(self._files.look, now, frozenset(self._watch.written))
        for name, why in look.stuck:
            self._tell(name, why)
        for start in range(0, len(look.ready), BATCH):
            # What the queue cannot take now is safe where it lies.
            if not self.running or self._ill:
                break
            await self._take(look.ready[start : start + BATCH])
        known = {*look.ready, *(name for name, _ in look.stuck), *self._stuck}
        self._told = {name: why for name, why in self._told.items() if name in known or name.startswith("/")}

    async def _take(self, names: Sequence[str]) -> None:
        """Takes files of these names, and queues them."""
        drafts = [self._store.draft() for _ in names]
        wanted = [(name, draft.message_id) for name, draft in zip(names, drafts, strict=True)]
        try:
            moved = await self._threads.run(self._files.take, wanted)
        except BaseException:
            for draft in drafts:
                draft.abandon()
            raise
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
        self._stuck.clear()
        queued, again = [], []
        for file, message_id in await self._threads.run(self._files.left):
            if not self.running:
                break
            entry = await self._store.show(message_id)
            if entry is not None and entry.envelope.session == SESSION:
                queued.append(file)
            elif made_at(message_id) < self._clock() - KEEP:
                why = "it was taken long ago, and nobody knows any more whether it was sent"
                if await self._bad(message_id, file, why):
                    queued.append(file)
            else:
                draft = self._store.draft()
                again.append((draft, await self._threads.run(self._files.take_again, file, draft.message_id)))
                if len(again) == BATCH:
                    await self._send(again)
                    again = []
        await self._send(again)
        await self._let_go(queued)

    async def _send(self, taken: Sequence[tuple[Draft, File]]) -> None:
        # None of them fails, so all have come to their end when this goes on.
        done = await gatherResults([Deferred.fromCoroutine(self._settled(draft, file)) for draft, file in taken])
        await self._let_go([file for (_, file), gone in zip(taken, done, strict=True) if gone])

    async def _let_go(self, files: Sequence[File]) -> None:
        if not files:
            return
        try:
            await self._threads.run(self._files.let_go, files)
        except OSError as error:
            self._tell(_REMOVAL, f"what was queued cannot be removed: {error.strerror}")
        else:
            self._tell(_REMOVAL, "")

    # ---- one file -------------------------------------------------------------------------------------------------

    async def _settled(self, draft: Draft, file: File) -> bool:
        """Whether *file* is no longer needed: it is in the queue, or in badmail."""
        name = called(file)
        gone = False
        try:
            gone = await self._queue(draft, file)
        except _Unfinished as error:
            self._tell(name, str(error))
        except OSError as error:
            self._tell(name, f"it cannot be read: {error.strerror}")
        except Fault as fault:
            self._queue_is_ill(fault)
        except Exception:
            self._fault(Failure())
        if not gone:
            self._stuck.add(name)
            draft.abandon()
        return gone

    async def _queue(self, draft: Draft, file: File) -> bool:
        """
        :raises OSError: of the file.
        :raises Fault: a temporary one, of the queue.
        """
        opened = await self._threads.run(self._files.open, file)
        try:
            envelope = await self._written(draft, opened)
            claim = await draft.commit(envelope, claimed=self._onward.room > 0)
        except Refused as refused:
            why = str(refused)
        except Fault as fault:
            if fault.temporary:
                raise
            why = fault.reply.text
        else:
            self._accepted(draft, envelope, claim, opened.name)
            return True
        finally:
            opened.file.close()
        draft.abandon()
        return await self._bad(draft.message_id, file, why)

    def _accepted(self, draft: Draft, envelope: Envelope, claim: Claim | None, name: str) -> None:
        self._events.emit(
            MessageAccepted(
                session=envelope.session,
                queue_id=draft.message_id,
                client="",
                sender=str(envelope.sender.path),
                recipients=len(envelope.recipients),
                size=draft.size,
                rule=envelope.rule,
                file=name,
            )
        )
        hand_on(self._onward, claim)

    async def _written(self, draft: Draft, opened: Taken) -> Envelope:
        """Writes the message into *draft*; its envelope.

        :raises Refused: it is none.
        :raises Fault: the policy knows no such address; the disk is full.
        """
        most = self._settings.limits.message_size
        if opened.size > most:
            raise Refused(f"it has {opened.size} octets; limits.message_size is {most}")
        content = Content(unstuff=opened.unstuff)
        size, head = 0, b""
        submission: Submission | None = None
        while block := await self._read(opened):
            octets = content.feed(block)
            size += len(octets)
            if size > most:  # with CRLF where there was LF
                raise Refused(f"it has more than {most} octets, which limits.message_size is")
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
            raise _Unfinished("somebody still writes to it")
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
        once: dict[tuple[str, str], Path] = {}
        for path in map(policy.complete, submission.recipients):
            once.setdefault((path.local, fold(path.domain)), path)
        recipients = tuple(once.values())
        if len(recipients) > self._settings.limits.recipients:
            raise Refused(
                f"it has {len(recipients)} recipients; limits.recipients is {self._settings.limits.recipients}"
            )
        international = not all(path.ascii for path in (sender, *recipients))
        return Envelope(
            sender=Sender(sender, body=Body.SEVEN_BIT if ascii_ else Body.EIGHT_BIT, smtputf8=international),
            recipients=tuple(map(Recipient, recipients)),
            session=SESSION,
            rule=self._rule,
            may_relay=True,
        )

    async def _bad(self, message_id: str, file: File, why: str) -> bool:
        """Keeps *file* in badmail; whether it is there."""
        name = called(file)
        try:
            kept = await self._badmail.keep_file(message_id, file, name, why, self._clock())
        except Fault as fault:
            detail = fault.detail.replace(message_id, "")  # which is another one each time
            self._tell(name, f"{why}; it cannot be kept in badmail: {detail}")
            return False
        self._events.emit(BadMail(queue_id=message_id, file=kept, reason=f"pickup: {name}: {why}"))
        return True

    # ---- events ---------------------------------------------------------------------------------------------------

    def _tell(self, about: str, why: str) -> None:
        """Says once what is wrong with the file of that name, or with the folder or the queue; *why* empty: nothing."""
        if self._told.get(about, "") == why:
            return
        self._told[about] = why
        if why:
            where = self._files.folder if about.startswith("/") else self._files.folder / about
            shown = "".join(c if c.isprintable() else "?" for c in os.fspath(where))
            self._events.emit(Notice(text=f"{shown}: {why}", key="pickup.directory"))

    def _queue_is_ill(self, fault: Fault) -> None:
        self._ill = True
        if not self._told.get(_QUEUE):  # of many files each says it with its own id
            self._tell(_QUEUE, fault.detail or str(fault.reply))

    def _fault(self, failure: Failure) -> None:
        """A fault of relayd's own, said once until a round goes well."""
        what = failure.getErrorMessage()
        if self._told.get(_ITSELF) != what:
            self._told[_ITSELF] = what
            self._events.emit(InternalFault(where="pickup", detail=failure.getTraceback()))
