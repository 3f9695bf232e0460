"""The queue of one node in a SQLite file: one writing thread, a few reading ones, large bodies in files.

::

    queue/0.db, 0.db-wal, 0.db-shm   everything but large bodies
    queue/0.lock                     whoever holds the lock owns the shard
    queue/bodies/xx/ID               large bodies
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from relayd.events import Events, InternalFault
from relayd.events import Notice as Remark
from relayd.model import Envelope, Fault
from relayd.queue import ids, operations, reads
from relayd.queue.body import FileBody, SmallBody
from relayd.queue.database import (
    Connect,
    Found,
    Lock,
    Places,
    make_directory,
    open_database,
    open_reader,
    refuse_network,
)
from relayd.queue.disk import Disk
from relayd.queue.draft import SqliteDraft
from relayd.queue.faults import as_fault, trouble
from relayd.queue.rows import Row, attempt_rows, message_rows, note_row, renew_rows
from relayd.queue.spool import BodyFile
from relayd.queue.store import (
    Claim,
    Filter,
    HistoryEntry,
    MessageBody,
    QueuedRecipient,
    QueueEntry,
    Settlement,
)
from relayd.queue.writer import CallsFromThread, Work, Writer, closed_fault

#: Seconds that a claim holds unless it is renewed.
LEASE: Final = 60.0
#: Seconds that a finished message is kept for its history, and how many are kept at most.
KEEP: Final = 7 * 86400.0
KEEP_MESSAGES: Final = 1_000_000
#: Seconds between looks for what is older; and, while there is something, between batches of so many.
TIDY: Final = 60.0
PURGE_PAUSE: Final = 0.05
PURGE_BATCH: Final = 500

#: Threads that write and remove files of bodies, and that read the database; questions that may wait for the latter.
FILE_THREADS: Final = 4
READ_THREADS: Final = 2
READS: Final = 256

#: Messages that an administrator's act changes in one commit.
ACT_BATCH: Final = 500

P = ParamSpec("P")
T = TypeVar("T")


class SqliteStore:
    """See :class:`relayd.queue.store.Store`.

    :param directory: ``state/queue``; made when it is not there.
    :param events: told of faults of the disk and of messages whose file is gone.
    :param shard: which database of the directory; ids of different shards differ.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        reactor: Any,
        events: Events | None = None,
        shard: int = 0,
        clock: Callable[[], float] = time.time,
        lease: float = LEASE,
        keep: float = KEEP,
        keep_messages: int = KEEP_MESSAGES,
        tidy: float = TIDY,
        disk: Disk | None = None,
        connect: Connect = sqlite3.connect,
    ) -> None:
        self._places = Places(os.path.abspath(directory), shard)
        self._files = self._places.bodies
        self._reactor: CallsFromThread = reactor
        self._events = events
        self._clock = clock
        self._lease = lease
        self._keep = keep
        self._keep_messages = keep_messages
        self._tidy = tidy
        self._disk = disk or Disk()
        self._connect = connect
        self._writer: Writer | None = None
        self._ids = ids.MessageIds(shard=shard, clock=clock)
        self._sequence = count(time.time_ns()).__next__
        self._reading = 0
        self._commits = 0
        self._finished: list[int] = []  # messages whose files may have to go
        self._removing = False
        self._idle: Deferred[None] | None = None
        self._complained = ("", 0.0)

    # ---- opening and closing ----------------------------------------------------------------------------------

    def open(self) -> Deferred[None]:
        if self._writer is not None:
            return fail(trouble("the queue is open already"))
        self._file_pool = ThreadPool(0, FILE_THREADS, "relayd-queue-files")
        self._read_pool = ThreadPool(0, READ_THREADS, "relayd-queue-reads")
        self._connections: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._excess = 0
        writer = Writer(
            self._reactor,
            name=f"relayd-queue-{self._places.shard}",
            connect=self._possess,
            disconnect=self._release,
            idle=self._purge,
            complain=self._complain,
        )

        def opened(_: None) -> None:
            self._file_pool.start()
            self._read_pool.start()
            self._writer = writer

        return writer.start().addCallback(opened)

    def close(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        writer = self._writer
        if writer is None:
            return
        if self._idle is not None:
            return  # somebody else closes it
        if self._commits:
            self._idle = Deferred()
            await self._idle
            self._idle = None
        self._writer = None
        await writer.stop()

    def _possess(self) -> sqlite3.Connection:
        """In the writer's thread: what *open* has to do."""
        places = self._places
        make_directory(places.directory, self._disk)
        refuse_network(places.directory)
        lock = Lock(places.lock)
        try:
            found = open_database(places, self._clock(), self._disk, self._connect)
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        self._ids = ids.MessageIds(found.last, shard=places.shard, clock=self._clock)
        self._reactor.callFromThread(self._report, found)
        return found.connection

    def _report(self, found: Found) -> None:
        if self._events is None:
            return
        for message_id in found.missing:
            path = self._files.path(message_id)
            detail = f"{path} is missing: its message is held"
            self._events.emit(InternalFault(where="queue", detail=detail, queue_id=message_id))
        if found.orphans:
            text = f"{found.orphans} files of messages that were never accepted, or are finished, were removed"
            self._events.emit(Remark(text=text))

    def _release(self, connection: sqlite3.Connection) -> None:
        """In the writer's thread, at its end."""
        try:
            self._file_pool.stop()
            self._read_pool.stop()
            for reader in self._connections:
                reader.close()
            connection.close()
        finally:
            self._lock.release()

    # ---- arriving ---------------------------------------------------------------------------------------------

    def draft(self) -> SqliteDraft:
        return SqliteDraft(self, self._ids.next())

    def body_file(self, message_id: str) -> BodyFile:
        """A file for a large body; for drafts."""
        return BodyFile(self._files.path(message_id), self._in_file_thread, self._disk)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """While it lasts, *close* waits; for drafts."""
        self._commits += 1
        try:
            yield
        finally:
            self._commits -= 1
            if not self._commits and self._idle is not None:
                self._idle.callback(None)

    def insert(
        self, number: int, envelope: Envelope, body: SmallBody | FileBody, claimed: bool
    ) -> Deferred[Claim | None]:
        """Commits a message whose octets are safe, or come along; for drafts."""
        if not envelope.recipients:
            return fail(trouble("a message without recipients"))
        now = self._clock()
        until = now + self._lease
        rows = message_rows(number, envelope, now, body.size, body.octets, until if claimed else now, claimed)
        claim = _new_claim(number, envelope, body, now, until) if claimed else None
        return self._put(Work(rows=rows, result=claim, octets=0 if body.octets is None else body.size))

    # ---- leaving ----------------------------------------------------------------------------------------------

    def claim(self, limit: int) -> Deferred[tuple[Claim, ...]]:
        if limit < 1:
            return succeed(())

        def call(connection: sqlite3.Connection) -> tuple[Claim, ...]:
            now = self._clock()
            return operations.claim(connection, limit, now, now + self._lease, self._files, self._damaged)

        return self._put(Work(call=call))

    def _damaged(self, message_id: str) -> None:
        """In the writer's thread: the octets of a message that was to be claimed are gone."""
        if self._events is not None:
            event = InternalFault(where="queue", detail="its octets are missing: it is held", queue_id=message_id)
            self._reactor.callFromThread(self._events.emit, event)

    def renew(self, claims: Sequence[Claim]) -> Deferred[None]:
        numbered = [(_number(claim.message_id), claim) for claim in claims]
        rows = renew_rows(numbered, self._clock() + self._lease)
        return self._put(Work(rows=rows)) if rows else succeed(None)

    def settle(self, settlement: Settlement) -> Deferred[tuple[Claim, ...]]:
        claim = settlement.claim
        number = _number(claim.message_id)
        now = self._clock()
        rows = attempt_rows(number, settlement.attempts, now, self._sequence)
        if not settlement.notices:
            done = self._put(Work(rows=rows, result=(), urgent=False)) if rows else succeed(())
        else:
            done = self._settle_with_notices(settlement, number, rows, now)
        if isinstance(claim.body, FileBody):
            done.addCallback(self._settled_file, number)
        return done

    def _settle_with_notices(
        self, settlement: Settlement, number: int, rows: list[Row], now: float
    ) -> Deferred[tuple[Claim, ...]]:
        until = now + self._lease
        claims: list[Claim] = []
        notices: list[Row] = []
        notes: list[Row] = []
        for notice in settlement.notices:
            own = self._ids.next()
            body = SmallBody(notice.octets)
            notices += message_rows(own, notice.envelope, now, body.size, body.octets, until, True)
            notes.append(note_row(number, self._sequence(), now, "dsn", ids.encode(own)))
            claims.append(_new_claim(own, notice.envelope, body, now, until))
        recipients = [attempt.recipient_id for attempt in settlement.attempts]
        call = partial(
            operations.settle_with_notices,
            number=number,
            recipients=recipients,
            rows=rows,
            notices=notices,
            notes=notes,
            claims=tuple(claims),
        )
        return self._put(Work(call=call, octets=sum(len(n.octets) for n in settlement.notices)))

    def _settled_file(self, result: T, number: int) -> T:
        self._remove_finished([number])
        return result

    def _remove_finished(self, numbers: Sequence[int]) -> None:
        """Removes the files of what is finished, in few jobs."""
        self._finished += numbers
        if self._finished and not self._removing and self._writer is not None:
            self._removing = True
            Deferred.fromCoroutine(self._remove_when_finished()).addErrback(
                lambda failure: self._complain(as_fault(failure.value, "remove finished messages' files"))
            )

    async def _remove_when_finished(self) -> None:
        with self.in_flight():
            try:
                while numbers := tuple(self._finished):
                    # Where this fails, they wait for the next that is finished.
                    found = await self._read(reads.finished, numbers)
                    del self._finished[: len(numbers)]
                    paths = [self._files.path(ids.encode(number)) for number in found]
                    if paths:
                        await self._in_file_thread(self._remove_files, paths)
            finally:
                self._removing = False

    def _remove_files(self, paths: Sequence[str]) -> None:
        """What cannot be removed is an orphan, and goes when the queue is opened again."""
        for path in paths:
            try:
                self._disk.remove(path)
            except OSError as error:
                self._complain(as_fault(error, "remove a finished message's file"))

    def next_due(self) -> Deferred[float | None]:
        """See the interface. A lease counts with its end: then its recipients may be claimed again."""
        return self._read(reads.next_due)

    # ---- administration ---------------------------------------------------------------------------------------

    def list(self, wanted: Filter) -> Deferred[tuple[QueueEntry, ...]]:
        """What waits, unless *wanted* names ids or a final state; a limit of 0 is none."""
        return self._read(reads.entries, wanted, self._clock())

    def show(self, message_id: str) -> Deferred[QueueEntry | None]:
        number = ids.decode(message_id)
        return succeed(None) if number is None else self._read(reads.show, number)

    def body(self, message_id: str) -> Deferred[MessageBody | None]:
        number = ids.decode(message_id)
        return succeed(None) if number is None else self._read(reads.body, number, self._files)

    def history(self, message_id: str) -> Deferred[tuple[HistoryEntry, ...]]:
        number = ids.decode(message_id)
        return succeed(()) if number is None else self._read(reads.history, number)

    def retry(self, wanted: Filter, who: str) -> Deferred[int]:
        async def act() -> int:
            changed = 0
            for numbers in await self._batches(wanted):
                changed += await self._act(operations.retry, numbers, who)
            return changed

        return Deferred.fromCoroutine(act())

    def drop(self, wanted: Filter, who: str) -> Deferred[int]:
        async def act() -> int:
            changed = 0
            for numbers in await self._batches(wanted):
                dropped = await self._act(operations.drop, numbers, who)
                changed += len(dropped)
                self._remove_finished(dropped)
            return changed

        return Deferred.fromCoroutine(act())

    async def _batches(self, wanted: Filter) -> tuple[Sequence[int], ...]:
        """All that *wanted* means, whatever its limit."""
        numbers = await self._read(reads.matching, wanted, self._clock(), 0)
        return tuple(numbers[start : start + ACT_BATCH] for start in range(0, len(numbers), ACT_BATCH))

    def _act(
        self,
        operation: Callable[[sqlite3.Connection, Sequence[int], str, float, Callable[[], int]], T],
        numbers: Sequence[int],
        who: str,
    ) -> Deferred[T]:
        def call(connection: sqlite3.Connection) -> T:
            return operation(connection, numbers, who, self._clock(), self._sequence)

        return self._put(Work(call=call))

    def counts(self) -> Deferred[dict[str, int]]:
        """See the interface. ``queued`` is what is due or being tried; ``deferred`` is not in it."""
        return self._read(reads.counts, self._clock())

    # ---- threads ----------------------------------------------------------------------------------------------

    def _put(self, work: Work) -> Deferred[Any]:
        if self._writer is None:
            return fail(closed_fault())
        self._writer.put(work)
        return work.done

    def _read(
        self, query: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Runs *query* in a reading thread."""
        if self._writer is None:
            return fail(closed_fault())
        if self._reading >= READS:
            return fail(trouble(f"{self._reading} questions wait for the queue's reading threads"))
        self._reading += 1

        def run() -> T:
            try:
                return query(self._reader(), *args, **kwargs)
            except Exception as error:
                raise as_fault(error, "read the queue") from error

        def done(result: Any) -> Any:
            self._reading -= 1
            return result

        return deferToThreadPool(self._reactor, self._read_pool, run).addBoth(done)  # type: ignore[arg-type]

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = open_reader(self._places.database, self._connect)
            reads.prepare(connection)
            self._connections.append(connection)
        return connection

    def _in_file_thread(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        if self._writer is None:
            return fail(closed_fault())
        return deferToThreadPool(self._reactor, self._file_pool, function, *args)  # type: ignore[arg-type]

    def _purge(self, connection: sqlite3.Connection) -> float:
        """In the writer's thread, now and then: forgets old history, a little at a time."""
        if self._excess <= 0:
            kept = connection.execute("SELECT count(*) FROM message WHERE finished_at IS NOT NULL").fetchone()[0]
            self._excess = kept - self._keep_messages
        if self._excess > 0:
            limit = min(PURGE_BATCH, self._excess)
            gone = operations.purge(connection, float("inf"), limit)
            self._excess -= gone
        else:
            limit = PURGE_BATCH
            gone = operations.purge(connection, self._clock() - self._keep, limit)
        if gone < limit:
            self._excess = 0
        return PURGE_PAUSE if gone == limit else self._tidy

    def _complain(self, fault: Fault) -> None:
        """From any thread: a fault of the disk, said once in a while."""
        text = fault.detail or str(fault)
        now = time.monotonic()
        before, at = self._complained
        if self._events is None or (text == before and now - at < 10.0):
            return
        self._complained = (text, now)
        self._reactor.callFromThread(self._events.emit, InternalFault(where="queue", detail=text))


def _number(message_id: str) -> int:
    number = ids.decode(message_id)
    if number is None:
        raise ValueError(f"{message_id!r} is no message id")
    return number


def _new_claim(number: int, envelope: Envelope, body: MessageBody, now: float, until: float) -> Claim:
    recipients = tuple(QueuedRecipient(n, recipient) for n, recipient in enumerate(envelope.recipients))
    origin = replace(envelope, recipients=())
    return Claim(ids.encode(number), envelope.sender, origin, now, recipients, body, until)
