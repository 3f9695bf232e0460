"""What the writer does that has to read first: claims, notices, an administrator's acts, the end of old history."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from relayd.queue import ids
from relayd.queue.body import BodyFiles, FileBody, SmallBody
from relayd.queue.rows import (
    Row,
    decode_envelope,
    decode_recipient,
    lease_rows,
    note_row,
    purge_row,
    retry_row,
    stop_row,
)
from relayd.queue.store import Claim, MessageBody, MessageState, QueuedRecipient
from relayd.queue.writer import insert_rows

#: Bodies that one claim brings into memory.
CLAIM_OCTETS: Final = 16 * 1024 * 1024

#: A term that repeats the partial index's condition lets SQLite use it.
DUE_SQL: Final = """
SELECT r.message, r.n, r.attempts, r.delay_notified, r.local, r.domain, r.extra,
       m.received_at, m.size, m.in_file, m.envelope
FROM recipient AS r CROSS JOIN message AS m ON m.id = r.message
WHERE r.state < 2 AND r.state = 0 AND r.due_at <= ?
ORDER BY r.due_at LIMIT ?
"""

_Sequence = Callable[[], int]


class _Due(NamedTuple):
    message: int
    n: int
    attempts: int
    delay_notified: int
    local: str
    domain: str
    extra: str
    received_at: float
    size: int
    in_file: int
    envelope: str


def claim(
    connection: sqlite3.Connection,
    limit: int,
    now: float,
    until: float,
    files: BodyFiles,
    damaged: Callable[[str], None],
) -> tuple[Claim, ...]:
    """Leases until *until* on up to *limit* recipients that are due at *now*.

    :param damaged: told of each message whose octets are not there; it is held.
    """
    due: dict[int, list[_Due]] = {}
    octets = 0
    for entry in map(_Due._make, connection.execute(DUE_SQL, (now, limit)).fetchall()):
        known = due.get(entry.message)
        if known is not None:
            known.append(entry)
            continue
        octets += 0 if entry.in_file else entry.size
        if octets > CLAIM_OCTETS and due:
            break
        due[entry.message] = [entry]
    claims = []
    rows: list[Row] = []
    for number, entries in due.items():
        body = _body(connection, number, entries[0], files)
        if body is None:
            # It must not keep all others from being claimed.
            damaged(ids.encode(number))
            rows.append(stop_row(number, MessageState.HELD, now))
            continue
        rows += lease_rows(((number, entry.n) for entry in entries), until)
        claims.append(_claim(number, entries, body, until))
    insert_rows(connection, rows, "act")
    return tuple(claims)


def _body(connection: sqlite3.Connection, number: int, entry: _Due, files: BodyFiles) -> MessageBody | None:
    if entry.in_file:
        return FileBody(files.path(ids.encode(number)), entry.size)
    row = connection.execute("SELECT octets FROM body WHERE id = ?", (number,)).fetchone()
    return None if row is None else SmallBody(row[0])


def _claim(number: int, entries: Sequence[_Due], body: MessageBody, until: float) -> Claim:
    first = entries[0]
    envelope = decode_envelope(first.envelope)
    recipients = tuple(
        QueuedRecipient(e.n, decode_recipient(e.local, e.domain, e.extra), e.attempts, bool(e.delay_notified))
        for e in entries
    )
    return Claim(ids.encode(number), envelope.sender, envelope, first.received_at, recipients, body, until)


def settle_with_notices(
    connection: sqlite3.Connection,
    number: int,
    recipients: Sequence[int],
    rows: Sequence[Row],
    notices: Sequence[Row],
    notes: Sequence[Row],
    claims: tuple[Claim, ...],
) -> tuple[Claim, ...]:
    """Writes *rows* of a settlement, its *notices*, and *notes* on them in the history.

    There are no notices when all *recipients* were final before: dropped by an administrator, or settled by whoever
    got them after the lease had ended. Then nobody must hear of it, or hear of it again.
    """
    waiting = connection.execute(
        "SELECT count(*) FROM recipient WHERE message = ? AND state < 2 AND n IN (SELECT value FROM json_each(?))",
        (number, json.dumps(list(recipients))),
    ).fetchone()[0]
    insert_rows(connection, rows)
    if not waiting:
        return ()
    insert_rows(connection, notices)
    insert_rows(connection, notes, "act")
    return claims


def retry(connection: sqlite3.Connection, numbers: Sequence[int], who: str, now: float, sequence: _Sequence) -> int:
    """Makes what waits of the messages due now; how many have something that waited."""
    waiting = _having(connection, numbers, "state = 0 AND leased = 0")
    rows: list[Row] = []
    for number in waiting:
        rows += (retry_row(number, now), note_row(number, sequence(), now, "retry", f"by {who}"))
    insert_rows(connection, rows, "act")
    return len(waiting)


def drop(
    connection: sqlite3.Connection, numbers: Sequence[int], who: str, now: float, sequence: _Sequence
) -> list[int]:
    """Takes messages out of the queue; which ones had something left to take."""
    waiting = _having(connection, numbers, "state < 2")
    rows: list[Row] = []
    for number in waiting:
        rows += (
            stop_row(number, MessageState.DROPPED, now),
            note_row(number, sequence(), now, "dropped", f"by {who}"),
        )
    insert_rows(connection, rows, "act")
    return waiting


def _having(connection: sqlite3.Connection, numbers: Sequence[int], condition: str) -> list[int]:
    sql = (
        "SELECT j.value FROM json_each(?) AS j"
        f" WHERE EXISTS (SELECT 1 FROM recipient WHERE message = j.value AND {condition})"
    )
    return [row[0] for row in connection.execute(sql, (json.dumps(list(numbers)),)).fetchall()]


PURGE_SQL: Final = """
SELECT id FROM message
WHERE finished_at IS NOT NULL AND finished_at < ? AND id < (SELECT max(id) FROM message)
ORDER BY finished_at LIMIT ?
"""


def purge(connection: sqlite3.Connection, before: float, limit: int) -> int:
    """Forgets up to *limit* messages that were finished before *before*; how many. Runs in autocommit mode.

    The newest message stays: the next id is greater than it, whatever the clock says.
    """
    numbers: list[tuple[Any, ...]] = connection.execute(PURGE_SQL, (before, limit)).fetchall()
    insert_rows(connection, [purge_row(row[0]) for row in numbers], "act")
    return len(numbers)
