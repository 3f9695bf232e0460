"""Work that does not grow with the queue: by the plans that SQLite makes, and by the steps that it takes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relayd.queue import Claim, MessageState, QueuedRecipient, ids, reads
from relayd.queue.body import SmallBody
from relayd.queue.database import FILES_SQL, Places, open_database
from relayd.queue.disk import Disk
from relayd.queue.operations import DUE_SQL, PURGE_SQL, claim, purge
from relayd.queue.rows import attempt_rows, message_rows, renew_rows
from relayd.queue.store import Filter
from relayd.queue.writer import insert_rows
from tests.unit.queue.loop import attempt, envelope

NOW = 1000.0


def filled(directory: Path, messages: int) -> sqlite3.Connection:
    """A queue with so many messages that are due, as many that are deferred, and as many that are finished."""
    directory.mkdir()
    places = Places(str(directory), 0)
    connection = open_database(places, NOW, Disk()).connection
    what = envelope()
    connection.execute("PRAGMA synchronous = OFF")  # for speed: nothing here is about safety
    connection.execute("BEGIN")
    for start in range(0, messages, 1000):
        rows = []
        for number in range(start, min(start + 1000, messages)):
            rows += message_rows(3 * number + 1, what, NOW, 3, b"x\r\n", NOW - messages + number, False)
            rows += message_rows(3 * number + 2, what, NOW, 3, b"x\r\n", NOW + 900 + number, False)
            rows += message_rows(3 * number + 3, what, NOW, 3, b"x\r\n", NOW + 60, True)
        insert_rows(connection, rows)
    connection.execute("UPDATE recipient SET state = 2, leased = 0 WHERE message % 3 = 0")
    connection.execute("UPDATE message SET finished_at = received_at WHERE id % 3 = 0")
    connection.execute("COMMIT")
    return connection


def steps(connection: sqlite3.Connection, act: Callable[[], Any]) -> int:
    """About how many virtual machine instructions *act* takes."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 10
        return 0

    act()  # statements are prepared
    connection.set_progress_handler(count, 10)
    act()
    connection.set_progress_handler(None, 0)
    return taken


def plan(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> str:
    return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))


@pytest.fixture(scope="module")
def queues(tmp_path_factory: pytest.TempPathFactory) -> dict[int, sqlite3.Connection]:
    where = tmp_path_factory.mktemp("scale")
    return {size: filled(where / str(size), size) for size in (300, 100_000)}


FILES = Places("/", 0).bodies

#: Each gets the connection and the number of a message that is due; it is called twice, with different ones.
ACTS: dict[str, Callable[[sqlite3.Connection, int], Any]] = {
    "claim": lambda queue, number: claim(queue, 20, NOW, NOW + 60, FILES, lambda _: None),
    "insert": lambda queue, number: insert_rows(
        queue, message_rows(number + 3_000_000, envelope(), NOW, 3, b"x\r\n", NOW + 60, True)
    ),
    "settle": lambda queue, number: insert_rows(
        queue, attempt_rows(number, (attempt(recipient(number).recipients[0]),), NOW, lambda: 1)
    ),
    "defer": lambda queue, number: insert_rows(
        queue,
        attempt_rows(
            number,
            (attempt(recipient(number).recipients[0], MessageState.QUEUED, next_at=NOW + 9),),
            NOW,
            lambda: 2,
        ),
    ),
    "renew": lambda queue, number: insert_rows(queue, renew_rows([(number, recipient(number))], NOW + 120)),
    "next_due": lambda queue, number: reads.next_due(queue),
    "show": reads.show,
    "history": reads.history,
    "body": lambda queue, number: reads.body(queue, number, FILES),
    "list": lambda queue, number: reads.entries(queue, Filter(limit=20), NOW),
    "files": lambda queue, number: queue.execute(FILES_SQL).fetchall(),
    "purge": lambda queue, number: purge(queue, NOW + 1, 5),
}


def recipient(number: int) -> Claim:
    what = envelope()
    waiting = QueuedRecipient(0, what.recipients[0])
    return Claim(ids.encode(number), what.sender, what, NOW, (waiting,), SmallBody(b"x\r\n"), NOW + 60)


@pytest.mark.parametrize("act", ACTS)
def test_it_takes_as_many_steps_in_a_long_queue_as_in_a_short_one(
    queues: dict[int, sqlite3.Connection], act: str
) -> None:
    taken = {}
    for size, queue in queues.items():
        numbers = iter((3 * (size // 2) + 1, 3 * (size // 2) + 4))
        taken[size] = steps(queue, lambda queue=queue, numbers=numbers: ACTS[act](queue, next(numbers)))  # type: ignore[misc]
    short, long = taken.values()
    assert long <= short * 1.5 + 50, taken


@pytest.mark.parametrize(("sql", "values"), [(DUE_SQL, (NOW, 20)), (reads.NEXT_DUE_SQL, ()), (PURGE_SQL, (NOW, 500))])
def test_statements_use_indexes(queues: dict[int, sqlite3.Connection], sql: str, values: tuple[Any, ...]) -> None:
    told = plan(queues[100_000], sql, values)
    assert "SEARCH" in told
    assert "SCAN" not in told, told
    assert "TEMP B-TREE" not in told, told


@pytest.mark.parametrize(("sql", "values"), [(reads.COUNTS_SQL, (NOW,)), (reads.OPEN_SQL, ())])
def test_who_counts_everything_reads_an_index_alone(
    queues: dict[int, sqlite3.Connection], sql: str, values: tuple[Any, ...]
) -> None:
    told = plan(queues[100_000], sql, values)
    assert "COVERING INDEX" in told, told
    assert "TEMP B-TREE" not in told, told
