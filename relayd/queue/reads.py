"""What people ask a queue, answered from short snapshots of the database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from relayd.model import Path
from relayd.queue import ids
from relayd.queue.body import BodyFiles, FileBody, SmallBody
from relayd.queue.rows import STATE_OF, STATES, decode_envelope, decode_recipient
from relayd.queue.store import Filter, HistoryEntry, MessageBody, QueueEntry, RecipientEntry

#: Both read an index alone, in its order: nothing is sorted, however many wait.
COUNTS_SQL = "SELECT state, count(*), sum(due_at > ? AND NOT leased) FROM recipient WHERE state < 2 GROUP BY state"
OPEN_SQL = "SELECT count(*) FROM message INDEXED BY message_open WHERE finished_at IS NULL"
NEXT_DUE_SQL = "SELECT min(due_at) FROM recipient WHERE state < 2 AND state = 0"


def prepare(connection: sqlite3.Connection) -> None:
    """Adds what the queries need to a reading connection."""
    connection.create_function("fold", 1, _fold, deterministic=True)


def _fold(text: str | None) -> str:
    return (text or "").lower()


def _glob(pattern: str) -> str:
    """A pattern with ``*`` and ``?`` as GLOB takes it: brackets are letters of an address literal, no class."""
    return "" if pattern == "<>" else pattern.lower().replace("[", "[[]")


def _folded(text: str, pattern: str) -> str:
    """The SQL for *text* in lower case, as far as *pattern* can tell.

    A function of Python's takes the interpreter's lock for each row, and gets it late beside a busy reactor.
    """
    return f"lower({text})" if pattern.isascii() else f"fold({text})"


def _in_queue(wanted: Filter) -> bool:
    """Whether *wanted* means nothing but what is in the queue."""
    return not wanted.ids and (wanted.state is None or not wanted.state.final)


def _conditions(wanted: Filter, now: float) -> tuple[str, list[Any]]:
    """The WHERE clause on message m, and its values."""
    where: list[str] = []
    values: list[Any] = []
    if wanted.ids:
        numbers = [number for text in wanted.ids if (number := ids.decode(text)) is not None]
        where.append("m.id IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(numbers))
    elif _in_queue(wanted):
        where.append("m.finished_at IS NULL")
    if wanted.sender:
        sender = (
            "json_extract(m.envelope, '$.sender[0]') || CASE json_extract(m.envelope, '$.sender[1]')"
            " WHEN '' THEN '' ELSE '@' || json_extract(m.envelope, '$.sender[1]') END"
        )
        where.append(f"{_folded(sender, wanted.sender)} GLOB ?")
        values.append(_glob(wanted.sender))
    if wanted.older:
        where.append("m.received_at <= ?")
        values.append(now - wanted.older)
    some: list[str] = []
    if wanted.state is not None:
        some.append("r.state = ?")
        values.append(STATES[wanted.state])
    if wanted.recipient:
        address = "r.local || CASE r.domain WHEN '' THEN '' ELSE '@' || r.domain END"
        some.append(f"{_folded(address, wanted.recipient)} GLOB ?")
        values.append(_glob(wanted.recipient))
    if wanted.domain:
        some.append(f"{_folded('r.domain', wanted.domain)} GLOB ?")
        values.append(_glob(wanted.domain))
    if wanted.error:
        some.append(f"instr({_folded('r.last_reply', wanted.error)}, ?) > 0")
        values.append(wanted.error.lower())
    if some:
        where.append(f"EXISTS (SELECT 1 FROM recipient AS r WHERE r.message = m.id AND {' AND '.join(some)})")
    return " AND ".join(where) or "1", values


def matching(connection: sqlite3.Connection, wanted: Filter, now: float, limit: int) -> list[int]:
    """Numbers of the messages that *wanted* means: those in the queue, unless it names ids or a final state.

    Oldest first; those in a final state newest first. *limit* 0 = all.
    """
    where, values = _conditions(wanted, now)
    order = "DESC" if wanted.state is not None and wanted.state.final else "ASC"
    by = " INDEXED BY message_open" if _in_queue(wanted) else ""
    rows = connection.execute(
        f"SELECT m.id FROM message AS m{by} WHERE {where} ORDER BY m.id {order} LIMIT ?", (*values, limit or -1)
    ).fetchall()
    return [row[0] for row in rows]


def entries(connection: sqlite3.Connection, wanted: Filter, now: float) -> tuple[QueueEntry, ...]:
    connection.execute("BEGIN")
    try:
        return tuple(
            entry
            for number in matching(connection, wanted, now, wanted.limit)
            if (entry := _entry(connection, number)) is not None
        )
    finally:
        connection.execute("COMMIT")


def show(connection: sqlite3.Connection, number: int) -> QueueEntry | None:
    connection.execute("BEGIN")
    try:
        return _entry(connection, number)
    finally:
        connection.execute("COMMIT")


def _entry(connection: sqlite3.Connection, number: int) -> QueueEntry | None:
    row = connection.execute("SELECT received_at, size, envelope FROM message WHERE id = ?", (number,)).fetchone()
    if row is None:
        return None
    received_at, size, text = row
    found = connection.execute(
        "SELECT state, leased, due_at, attempts, local, domain, extra, last_reply, last_host"
        " FROM recipient WHERE message = ? ORDER BY n",
        (number,),
    ).fetchall()
    return QueueEntry(
        ids.encode(number),
        replace(decode_envelope(text), recipients=tuple(decode_recipient(*r[4:7]) for r in found)),
        received_at,
        size,
        tuple(_recipient(r) for r in found),
    )


def _recipient(row: Sequence[Any]) -> RecipientEntry:
    state, leased, due_at, attempts, local, domain, _, last_reply, last_host = row
    return RecipientEntry(
        Path(local, domain),
        STATE_OF[state],
        attempts,
        due_at if state == 0 and not leased else 0.0,
        last_reply or "",
        last_host or "",
    )


def body(connection: sqlite3.Connection, number: int, files: BodyFiles) -> MessageBody | None:
    row = connection.execute(
        "SELECT m.size, m.in_file, b.octets FROM message AS m LEFT JOIN body AS b ON b.id = m.id"
        " WHERE m.id = ? AND m.finished_at IS NULL",
        (number,),
    ).fetchone()
    if row is None:
        return None
    size, in_file, octets = row
    if in_file:
        return FileBody(files.path(ids.encode(number)), size)
    return None if octets is None else SmallBody(octets)


def history(connection: sqlite3.Connection, number: int) -> tuple[HistoryEntry, ...]:
    """All that happened to a message. That it was accepted stands in its own row, not in the history's."""
    connection.execute("BEGIN")
    try:
        row = connection.execute("SELECT received_at, envelope FROM message WHERE id = ?", (number,)).fetchone()
        if row is None:
            return ()
        found = connection.execute(
            "SELECT h.at, h.what, r.local, r.domain, h.reply, h.host, h.tls, h.detail"
            " FROM history AS h LEFT JOIN recipient AS r ON r.message = h.message AND r.n = h.n"
            " WHERE h.message = ? ORDER BY h.seq",
            (number,),
        ).fetchall()
    finally:
        connection.execute("COMMIT")
    received_at, text = row
    return (_accepted(received_at, text), *(_event(r) for r in found))


def _accepted(received_at: float, text: str) -> HistoryEntry:
    origin = decode_envelope(text)
    told = (("session", origin.session), ("helo", origin.helo), ("user", origin.principal), ("rule", origin.rule))
    return HistoryEntry(
        received_at,
        "accepted",
        host=origin.client,
        tls=origin.tls,
        detail=", ".join(f"{name} {value}" for name, value in told if value),
    )


def _event(row: Sequence[Any]) -> HistoryEntry:
    at, what, local, domain, reply, host, tls, detail = row
    recipient = "" if local is None else str(Path(local, domain))
    return HistoryEntry(at, what, recipient, reply or "", host or "", tls or "", detail or "")


def next_due(connection: sqlite3.Connection) -> float | None:
    due: float | None = connection.execute(NEXT_DUE_SQL).fetchone()[0]
    return due


def counts(connection: sqlite3.Connection, now: float) -> dict[str, int]:
    result = {"queued": 0, "deferred": 0, "held": 0, "messages": 0}
    connection.execute("BEGIN")
    try:
        for state, count, later in connection.execute(COUNTS_SQL, (now,)):
            if state == 1:
                result["held"] = count
            else:
                result["queued"], result["deferred"] = count - later, later
        (result["messages"],) = connection.execute(OPEN_SQL).fetchone()
    finally:
        connection.execute("COMMIT")
    return result


def finished(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[int]:
    """Those of *numbers* whose octets nobody needs any more, though a file may hold them."""
    rows = connection.execute(
        "SELECT id FROM message WHERE id IN (SELECT value FROM json_each(?)) AND in_file AND finished_at IS NOT NULL",
        (json.dumps(list(numbers)),),
    ).fetchall()
    return [row[0] for row in rows]
