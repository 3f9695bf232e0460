"""The one thread that writes to a queue's database, and commits whatever waits at once (group commit)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from relayd.model import Fault
from relayd.queue.faults import as_fault, trouble
from relayd.queue.rows import Row
from relayd.queue.schema import WIDTH

#: A batch ends when it holds so many rows, or octets of bodies.
BATCH_ROWS: Final = 1024
BATCH_OCTETS: Final = 8 * 1024 * 1024

#: How long work that is in no hurry waits for a commit that others need anyway, in seconds. A settlement that is lost
#: in a crash means a message sent twice, so this stays below what the network makes uncertain all the same.
PATIENCE: Final = 0.02

_ROW_SQL: Final = f"({','.join('?' * WIDTH)})"
_PADDING: Final = (0,) * WIDTH


class CallsFromThread(Protocol):
    """The part of a reactor that threads may use."""

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None: ...


@dataclass(slots=True)
class Work:
    """Something to write. *done* fires in the reactor's thread once it is safe.

    :ivar rows: of the view ``work``; written with other work in one statement.
    :ivar call: instead of rows: what has to read before it writes. It gets the connection within a transaction, may be
        called a second time after the first was rolled back, and its result is the answer.
    :ivar result: the answer, where *rows* are given.
    :ivar octets: how much of bodies the rows hold.
    :ivar urgent: somebody waits for it; other work may wait :data:`PATIENCE` for company.
    """

    rows: list[Row] = field(default_factory=list)
    call: Callable[[sqlite3.Connection], Any] | None = None
    result: Any = None
    octets: int = 0
    urgent: bool = True
    done: Deferred[Any] = field(default_factory=Deferred)


_Answers = list[tuple[Deferred[Any], Any]]


def insert_rows(connection: sqlite3.Connection, rows: Sequence[Row], view: str = "work") -> None:
    """Gives *rows* to the triggers of *view*, in as few statements as can be.

    Statements come in sizes that are powers of two, so that few have to be prepared; what is left over is
    filled with rows that no trigger heeds.
    """
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        size = 1 << (len(part) - 1).bit_length()
        values: list[Any] = []
        for row in part:
            values += row
        values += _PADDING * (size - len(part))
        connection.execute(_sql(view, size), values)


@cache
def _sql(view: str, size: int) -> str:
    return f"INSERT INTO {view} VALUES " + ",".join([_ROW_SQL] * size)


class Writer:
    """Owns the writing connection from *connect* to *disconnect*, both of which run in its thread.

    :param idle: run between batches; says for how many seconds it need not run again. It may write; what it raises
        goes to *complain*.
    :param complain: told of each batch that failed, from the writer's thread.
    """

    def __init__(
        self,
        reactor: CallsFromThread,
        *,
        name: str,
        connect: Callable[[], sqlite3.Connection],
        disconnect: Callable[[sqlite3.Connection], None],
        idle: Callable[[sqlite3.Connection], float],
        complain: Callable[[Fault], None],
    ) -> None:
        self._reactor = reactor
        self._connect = connect
        self._disconnect = disconnect
        self._idle = idle
        self._complain = complain
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._opened: Deferred[None] = Deferred()
        self._closed: Deferred[None] = Deferred()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Deferred[None]:
        """Fires once connected; fails with a Fault, and the writer is of no more use then."""
        self._thread.start()
        return self._opened

    def stop(self) -> Deferred[None]:
        """Commits what was put before, and disconnects."""
        self._queue.put(None)
        return self._closed

    def put(self, work: Work) -> None:
        """Queues *work*. For the reactor's thread, between *start* and *stop*."""
        self._queue.put(work)

    # ---- in the writer's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            self._reactor.callFromThread(self._opened.errback, as_fault(error, "open the queue"))
            return
        self._reactor.callFromThread(self._opened.callback, None)
        try:
            self._serve(connection)
        finally:
            try:
                self._disconnect(connection)
            except Exception as error:
                self._complain(as_fault(error, "close the queue"))
            self._reactor.callFromThread(self._closed.callback, None)

    def _serve(self, connection: sqlite3.Connection) -> None:
        rest_at = 0.0
        while True:
            now = monotonic()
            if now >= rest_at:
                rest_at = now + self._rest(connection)
            try:
                first = self._queue.get(timeout=max(rest_at - now, 0.0))
            except Empty:
                continue
            batch, last = self._gather(first)
            if batch:
                self._reactor.callFromThread(_answer, self._write(connection, batch))
            if last:
                return

    def _gather(self, first: Work | None) -> tuple[list[Work], bool]:
        """All that waits, up to the size of a batch, and whether the end was reached."""
        batch: list[Work] = []
        rows = octets = 0
        urgent = False
        until = monotonic() + PATIENCE
        work = first
        while work is not None:
            batch.append(work)
            rows += len(work.rows)
            octets += work.octets
            urgent = urgent or work.urgent
            if rows >= BATCH_ROWS or octets >= BATCH_OCTETS:
                return batch, False
            try:
                work = self._queue.get_nowait() if urgent else self._queue.get(timeout=max(until - monotonic(), 0.0))
            except Empty:
                return batch, False
        return batch, True

    def _rest(self, connection: sqlite3.Connection) -> float:
        try:
            return self._idle(connection)
        except Exception as error:
            self._complain(as_fault(error, "tidy the queue"))
            return 60.0

    def _write(self, connection: sqlite3.Connection, batch: list[Work]) -> _Answers:
        plain = [work for work in batch if work.call is None]
        calls = [work for work in batch if work.call is not None]
        answers: _Answers = []
        if plain:
            answers += self._together(connection, plain, _write_rows)
        if calls:
            answers += self._together(connection, calls, _write_calls)
        return answers

    def _together(
        self,
        connection: sqlite3.Connection,
        batch: list[Work],
        write: Callable[[sqlite3.Connection, list[Work]], list[Any]],
    ) -> _Answers:
        """Commits *batch* in one transaction; where that fails, each of it alone, so that one fault is one fault."""
        try:
            results = write(connection, batch)
            return [(work.done, result) for work, result in zip(batch, results, strict=True)]
        except Exception as error:
            fault = as_fault(error, "write to the queue")
            _roll_back(connection)
            if len(batch) == 1 or _hopeless(error):
                self._complain(fault)
                return [(work.done, fault) for work in batch]
        answers: _Answers = []
        for work in batch:
            answers += self._together(connection, [work], write)
        return answers


def _write_rows(connection: sqlite3.Connection, batch: list[Work]) -> list[Any]:
    rows: list[Row] = []
    for work in batch:
        rows += work.rows
    if len(rows) <= BATCH_ROWS:
        insert_rows(connection, rows)  # one statement: a transaction by itself
    else:
        with _Transaction(connection):
            insert_rows(connection, rows)
    return [work.result for work in batch]


def _write_calls(connection: sqlite3.Connection, batch: list[Work]) -> list[Any]:
    with _Transaction(connection):
        return [work.call(connection) for work in batch if work.call is not None]


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT; the caller rolls back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        pass  # SQLite rolls back by itself after most errors; the next BEGIN tells if it did not


def _hopeless(error: BaseException) -> bool:
    """Whether each of a batch would fail as the whole did: somebody else holds the lock, or nothing can be written.

    Waiting for the lock again for each of a hundred would hold all others up for minutes.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
    )


def _answer(answers: _Answers) -> None:
    for done, result in answers:
        if isinstance(result, Fault):
            done.errback(result)
        else:
            done.callback(result)


def closed_fault() -> Fault:
    """What is said to whoever comes before *open* or after *close*."""
    return trouble("the queue is not open")
