"""Queues that are long before anybody looks: written by the store's own statements, without waiting for the disk."""

from __future__ import annotations

import time
from pathlib import Path

from relayd.model import Envelope, Recipient, Sender
from relayd.model import Path as MailPath
from relayd.queue import ids
from relayd.queue.database import Places, open_database
from relayd.queue.disk import Disk
from relayd.queue.rows import Row, message_rows
from relayd.queue.writer import insert_rows

__all__ = ["fill"]

BODY = b"Subject: benchmark\r\n\r\n" + (b"x" * 76 + b"\r\n") * 6
TOGETHER = 10_000


def fill(directory: Path, messages: int, *, due_in: float, domains: int = 1000) -> None:
    """Makes the queue of *directory*, a relayd's ``state/queue``, with *messages* of half a KiB and one recipient each.

    :param due_in: seconds from now until the first is due; the others follow within an hour.
    """
    directory.mkdir(parents=True, mode=0o700)
    now = time.time()
    connection = open_database(Places(str(directory), 0), now, Disk()).connection
    connection.execute("PRAGMA synchronous = OFF")
    at = now
    numbers = ids.MessageIds(clock=lambda: at)
    for start in range(0, messages, TOGETHER):
        rows: list[Row] = []
        for n in range(start, min(start + TOGETHER, messages)):
            at = now - 86400 * (1 - n / messages)  # accepted in the last day
            # After retries the order of what is due is not the order in which it came.
            due = now + due_in + 3600 * (n * 7919 % messages) / messages
            rows += message_rows(numbers.next(), _envelope(n, domains), at, len(BODY), BODY, due, False)
        connection.execute("BEGIN")
        insert_rows(connection, rows)
        connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _envelope(number: int, domains: int) -> Envelope:
    return Envelope(
        Sender(MailPath("alice", "application.example"), size=len(BODY)),
        (Recipient(MailPath(f"bob{number}", f"d{number % domains}.crowd.example")),),
        session="9f3a6c1e",
        client="192.0.2.25",
        helo="printer.application.example",
        listener="smtp",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        rule="relay.list[2] (line 31)",
    )
